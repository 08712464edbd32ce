"""Recurrent classifier with a GRU: Equinox, gates fused and its own recurrent bias, Linen's GRUCell under `nn.scan`"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._function import Function

FEATURES, DIM, CLASSES = 8, 8, 4


class Classifier(eqx.Module):
    cell: eqx.nn.GRUCell
    linear: eqx.nn.Linear
    bias: jax.Array

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(FEATURES, DIM, key=one)
        self.linear = eqx.nn.Linear(DIM, CLASSES, use_bias=False, key=two)
        self.bias = jnp.zeros(CLASSES)

    def __call__(self, series):
        def step(carry, x):
            return self.cell(x, carry), None

        last, _ = jax.lax.scan(step, jnp.zeros(DIM, series.dtype), series)
        return jax.nn.sigmoid(self.linear(last) + self.bias)


def source():
    params, static = eqx.partition(eqx.filter_eval_shape(Classifier, jax.random.key(0)), lambda x: hasattr(x, "shape"))
    return Function(lambda params, batch: jax.vmap(eqx.combine(params, static))(batch), params)


class GRUClassifier(nn.Module):
    @nn.compact
    def __call__(self, batch):
        scan = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        carry, _ = scan(DIM, name="gru")(jnp.zeros((batch.shape[0], DIM), batch.dtype), batch)
        return nn.sigmoid(nn.Dense(CLASSES, name="head")(carry))


def target():
    return GRUClassifier()


def inputs():
    return (np.random.default_rng(0).normal(size=(3, 6, FEATURES)).astype(np.float32),)


def truth(s):
    made = {"params/head/kernel": s["linear/weight"].T, "params/head/bias": s["bias"]}
    made["params/gru/hn/bias"] = s["cell/bias_n"]
    rows = (jnp.split(s[f"cell/{name}"], 3) for name in ("weight_ih", "weight_hh", "bias"))
    for gate, i, h, b in zip("rzn", *rows, strict=True):
        made |= {f"params/gru/i{gate}/kernel": i.T, f"params/gru/h{gate}/kernel": h.T, f"params/gru/i{gate}/bias": b}
    return made
