"""A graph network: messages along edges, summed at their receivers by `segment_sum`, a few rounds, a readout."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

ROUNDS, WIDTH, CLASSES = 3, 6, 2


def summed(messages, receivers, nodes):
    return jax.ops.segment_sum(messages, receivers, nodes.shape[0])


class MessagePassing(hk.Module):
    def __call__(self, nodes, edges, senders, receivers):
        ends = jnp.concatenate([nodes[senders], nodes[receivers], edges], -1)
        messages = hk.nets.MLP([2 * WIDTH, WIDTH], name="message")(ends)
        inbox = jnp.concatenate([nodes, summed(messages, receivers, nodes)], -1)
        return nodes + hk.nets.MLP([2 * WIDTH, WIDTH], name="update")(inbox)


def haiku(nodes, edges, senders, receivers, train):
    nodes = hk.Linear(WIDTH, name="embed_nodes")(nodes)
    edges = hk.Linear(WIDTH, name="embed_edges")(edges)
    for _ in range(ROUNDS):
        nodes = MessagePassing()(nodes, edges, senders, receivers)
        nodes = hk.LayerNorm(-1, True, True)(nodes)
    return hk.Linear(CLASSES, name="readout")(nodes.mean(0))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(x)))


class Round(nn.Module):
    def setup(self):
        self.message, self.update = MLP(), MLP()

    def __call__(self, nodes, edges, senders, receivers):
        messages = self.message(jnp.concatenate([nodes[senders], nodes[receivers], edges], -1))
        return nodes + self.update(jnp.concatenate([nodes, summed(messages, receivers, nodes)], -1))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, nodes, edges, senders, receivers, train):
        nodes, edges = nn.Dense(WIDTH, name="node_encoder")(nodes), nn.Dense(WIDTH, name="edge_encoder")(edges)
        for _ in range(ROUNDS):
            nodes = Round()(nodes, edges, senders, receivers)
            nodes = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(nodes)
        return nn.Dense(CLASSES, name="decoder")(nodes.mean(0))


class Step(nnx.Module):
    def __init__(self, rngs):
        def mlp(width):
            return nnx.Sequential(
                nnx.Linear(width, 2 * WIDTH, rngs=rngs), nnx.relu, nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
            )

        self.edge_fn, self.node_fn = mlp(3 * WIDTH), mlp(2 * WIDTH)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, nodes, edges, senders, receivers):
        messages = self.edge_fn(jnp.concatenate([nodes[senders], nodes[receivers], edges], -1))
        inbox = jnp.concatenate([nodes, summed(messages, receivers, nodes)], -1)
        return self.norm(nodes + self.node_fn(inbox))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.nodes_in, self.edges_in = nnx.Linear(4, WIDTH, rngs=rngs), nnx.Linear(3, WIDTH, rngs=rngs)
        self.steps = nnx.List([Step(rngs) for _ in range(ROUNDS)])
        self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, nodes, edges, senders, receivers, train):
        nodes, edges = self.nodes_in(nodes), self.edges_in(edges)
        for step in self.steps:
            nodes = step(nodes, edges, senders, receivers)
        return self.out(nodes.mean(0))


def inputs():
    nodes = jax.random.normal(jax.random.key(0), (5, 4))
    edges = jax.random.normal(jax.random.key(1), (7, 3))
    return nodes, edges, jnp.array([0, 1, 2, 3, 4, 0, 2]), jnp.array([1, 2, 3, 4, 0, 2, 2])


# A network whose two functions have equal shapes: which one sends and which one updates, only the author knows.
LINES = {
    ("linen", "nnx"): {
        "Round_{i:int}/message": "steps/{i:int}/edge_fn",
        "Round_{i:int}/update": "steps/{i:int}/node_fn",
        "LayerNorm_{i:int}": "steps/{i:int}/norm",
    },
    ("nnx", "haiku"): {
        "steps/{i:int}/edge_fn": "message_passing{i:auto}/message",
        "steps/{i:int}/node_fn": "message_passing{i:auto}/update",
        "steps/{i:int}/norm": "layer_norm{i:auto}",
    },
}
