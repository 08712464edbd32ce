"""Graph attention: plain JAX with heads first and two vectors a head, Haiku with one Linear of pairs of nodes"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._function import Function

NODES, FEATURES, HEADS, DIM, CLASSES = 6, 8, 2, 4, 4


def softmax(logits, index):
    """The softmax over the edges that share an end."""
    top = jax.ops.segment_max(logits, index, NODES)
    weights = jnp.exp(logits - top[index])
    return weights / jax.ops.segment_sum(weights, index, NODES)[index]


def layer(params, x, senders, receivers):
    h = jnp.einsum("nf,hfd->nhd", x, params["W"]) + params["b"]
    sent, received = (jnp.einsum("nhd,hd->nh", h, params[name]) for name in ("a_src", "a_dst"))
    scores = jax.nn.leaky_relu(sent[senders] + received[receivers], 0.2)
    alpha = softmax(scores, receivers)
    return jax.ops.segment_sum(alpha[..., None] * h[senders], receivers, NODES)


def network(params, x, senders, receivers):
    x = jax.nn.elu(layer(params["hidden"], x, senders, receivers).reshape(NODES, -1))
    return jnp.mean(layer(params["output"], x, senders, receivers), axis=1)


def source():
    shapes = {"W": (HEADS, FEATURES, DIM), "b": (HEADS, DIM), "a_src": (HEADS, DIM), "a_dst": (HEADS, DIM)}
    one = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return Function(network, {"output": one, "hidden": dict(one)})


def target():
    def convolve(x, senders, receivers, name):
        nodes = hk.Linear(HEADS * DIM, name=f"{name}_query")(x).reshape(NODES, HEADS, DIM)
        out = []
        for head in range(HEADS):
            mine = nodes[:, head]
            pairs = jnp.concatenate([mine[receivers], mine[senders]], axis=1)
            logits = hk.Linear(1, with_bias=False, name=f"{name}_logit_{head}")(pairs)
            weights = softmax(jax.nn.leaky_relu(logits, 0.2), receivers)
            out.append(jax.ops.segment_sum(mine[senders] * weights, receivers, NODES))
        return out

    def forward(x, senders, receivers):
        x = jax.nn.elu(jnp.concatenate(convolve(x, senders, receivers, "conv1"), axis=-1))
        return sum(convolve(x, senders, receivers, "conv2")) / HEADS

    return forward


def inputs():
    rng = np.random.default_rng(0)
    senders = np.array([0, 1, 2, 3, 4, 5, 0, 2, 4, 1, 0, 1, 2, 3, 4, 5], np.int32)
    receivers = np.array([1, 2, 3, 4, 5, 0, 3, 5, 1, 4, 0, 1, 2, 3, 4, 5], np.int32)
    return rng.normal(size=(NODES, FEATURES)).astype(np.float32), senders, receivers


def truth(s):
    made = {}
    for old, new in (("hidden", "conv1"), ("output", "conv2")):
        made[f"params/{new}_query/w"] = s[f"{old}/W"].transpose(1, 0, 2).reshape(FEATURES, -1)
        made[f"params/{new}_query/b"] = s[f"{old}/b"].reshape(-1)
        for head in range(HEADS):
            parts = s[f"{old}/a_dst"][head], s[f"{old}/a_src"][head]
            made[f"params/{new}_logit_{head}/w"] = jnp.concatenate(parts)[:, None]
    return made
