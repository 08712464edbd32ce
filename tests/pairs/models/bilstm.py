"""Tagger of two LSTMs, one from the end: Haiku's cores, plain JAX with gates in another order and weights from the left"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._function import Function

FEATURES, DIM, TAGS = 8, 8, 5


def source():
    def forward(words):
        both = []
        for reverse in (False, True):
            core = hk.LSTM(DIM, name="backward" if reverse else "forward")
            state = core.initial_state(words.shape[0])
            both.append(hk.dynamic_unroll(core, words, state, reverse=reverse, time_major=False)[0])
        return hk.Linear(TAGS)(jnp.concatenate(both, axis=-1))

    return forward


def lstm(cell, xs):
    def step(carry, x):
        h, c = carry
        i, f, o, g = jnp.split(cell["weight"] @ jnp.concatenate([h, x]) + cell["bias"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros(DIM, xs.dtype)
    return jax.lax.scan(step, (zero, zero), xs)[1]


def tagger(params, words):
    def one(xs):
        right = lstm(params["right_to_left"], xs[::-1])[::-1]
        left = lstm(params["left_to_right"], xs)
        return right @ params["out"]["right"] + left @ params["out"]["left"] + params["out"]["bias"]

    return jax.vmap(one)(words)


def target():
    cell = {"weight": (4 * DIM, DIM + FEATURES), "bias": (4 * DIM,)}
    out = {"left": (DIM, TAGS), "right": (DIM, TAGS), "bias": (TAGS,)}
    shapes = {"left_to_right": cell, "right_to_left": cell, "out": out}
    leaf = jax.tree_util.Partial(jax.ShapeDtypeStruct, dtype=np.float32)
    return Function(tagger, jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple)))


def inputs():
    return (np.random.default_rng(0).normal(size=(3, 6, FEATURES)).astype(np.float32),)


def truth(s):
    made = {
        "out/left": s["params/linear/w"][:DIM],
        "out/right": s["params/linear/w"][DIM:],
        "out/bias": s["params/linear/b"],
    }
    for old, new in (("forward", "left_to_right"), ("backward", "right_to_left")):
        i, g, f, o = jnp.split(s[f"params/{old}/linear/w"], 4, 1)
        w = jnp.concatenate([i, f, o, g], 1)
        made[f"{new}/weight"] = jnp.concatenate([w[FEATURES:], w[:FEATURES]]).T
        i, g, f, o = jnp.split(s[f"params/{old}/linear/b"], 4)
        made[f"{new}/bias"] = jnp.concatenate([i, f + 1, o, g])
    return made
