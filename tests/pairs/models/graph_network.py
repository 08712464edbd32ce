"""Graph network: Haiku MLPs of concatenated features, NNX with one weight for each feature, summed"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DIM, STEPS = 8, 2
NODES, EDGES, GRAPHS = 7, 10, 2


def source():
    def forward(nodes, edges, globals_, senders, receivers, node_graph, edge_graph):
        def update(name, *parts):
            return hk.nets.MLP([DIM, DIM], activate_final=True, name=name)(jnp.concatenate(parts, -1))

        for step in range(STEPS):
            edges = update(f"edge_{step}", edges, nodes[senders], nodes[receivers], globals_[edge_graph])
            sent = jax.ops.segment_sum(edges, senders, NODES)
            received = jax.ops.segment_sum(edges, receivers, NODES)
            nodes = update(f"node_{step}", nodes, sent, received, globals_[node_graph])
            pooled = jax.ops.segment_sum(nodes, node_graph, GRAPHS), jax.ops.segment_sum(edges, edge_graph, GRAPHS)
            globals_ = update(f"global_{step}", *pooled, globals_)
        return hk.Linear(1, name="readout")(globals_), nodes

    return forward


class Mix(nnx.Module):
    """An MLP whose first layer has a weight for each of its inputs."""

    def __init__(self, names, rngs):
        self.first = nnx.Dict({name: nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs) for name in names})
        self.bias = nnx.Param(jnp.zeros(DIM))
        self.second = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, **features):
        total = sum(self.first[name](x) for name, x in features.items()) + self.bias[...]
        return nnx.relu(self.second(nnx.relu(total)))


class Step(nnx.Module):
    def __init__(self, rngs):
        self.phi_u = Mix(("edges", "nodes", "u"), rngs)
        self.phi_v = Mix(("incoming", "outgoing", "u", "v"), rngs)
        self.phi_e = Mix(("e", "receiver", "sender", "u"), rngs)

    def __call__(self, v, e, u, senders, receivers, node_graph, edge_graph):
        e = self.phi_e(e=e, sender=v[senders], receiver=v[receivers], u=u[edge_graph])
        incoming, outgoing = (jnp.zeros_like(v).at[index].add(e) for index in (receivers, senders))
        v = self.phi_v(v=v, incoming=incoming, outgoing=outgoing, u=u[node_graph])
        nodes, edges = (jnp.zeros_like(u).at[index].add(x) for index, x in ((node_graph, v), (edge_graph, e)))
        return v, e, self.phi_u(u=u, nodes=nodes, edges=edges)


class GraphNet(nnx.Module):
    def __init__(self, rngs):
        self.steps = nnx.List([Step(rngs) for _ in range(STEPS)])
        self.head = nnx.Linear(DIM, 1, rngs=rngs)

    def __call__(self, v, e, u, *indices):
        for step in self.steps:
            v, e, u = step(v, e, u, *indices)
        return self.head(u), v


def target():
    return lambda: GraphNet(nnx.Rngs(0))


def inputs():
    rng = np.random.default_rng(0)
    node_graph = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)
    senders = np.array([0, 1, 2, 3, 0, 2, 4, 5, 6, 4], np.int32)
    receivers = np.array([1, 2, 3, 0, 2, 0, 5, 6, 4, 6], np.int32)
    features = (rng.normal(size=(n, DIM)).astype(np.float32) for n in (NODES, EDGES, GRAPHS))
    return *features, senders, receivers, node_graph, node_graph[senders]


def truth(s):
    made = {"params/head/kernel": s["params/readout/w"], "params/head/bias": s["params/readout/b"]}
    order = {
        "phi_e": ("edge", ("e", "sender", "receiver", "u")),
        "phi_v": ("node", ("v", "outgoing", "incoming", "u")),
        "phi_u": ("global", ("nodes", "edges", "u")),
    }
    for i in range(STEPS):
        for new, (old, parts) in order.items():
            to, layer = f"params/steps/{i}/{new}", f"params/{old}_{i}/~/linear"
            for part, rows in zip(parts, jnp.split(s[f"{layer}_0/w"], len(parts)), strict=True):
                made[f"{to}/first/{part}/kernel"] = rows
            made[f"{to}/bias"] = s[f"{layer}_0/b"]
            made[f"{to}/second/kernel"] = s[f"{layer}_1/w"]
            made[f"{to}/second/bias"] = s[f"{layer}_1/b"]
    return made
