"""Characters by a plain recurrence: NNX's SimpleCell, plain JAX with one-hot characters and weights from the left"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges._infer._function import Function

VOCABULARY, DIM = 12, 12
X64 = False  # `nnx.SimpleCell` computes in float32


class CharRNN(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.rnn = nnx.RNN(nnx.SimpleCell(DIM, DIM, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(DIM, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens)))


def source():
    return lambda: CharRNN(nnx.Rngs(0))


def step(params, h, x):
    Wxh, Whh, Why, bh, by = (params[name] for name in ("Wxh", "Whh", "Why", "bh", "by"))
    h = jnp.tanh(Wxh @ x + Whh @ h + bh)
    return h, Why @ h + by


def sequence(params, tokens):
    xs = jnp.einsum("tv,vd->td", jax.nn.one_hot(tokens, VOCABULARY, dtype=params["E"].dtype), params["E"])
    return jax.lax.scan(lambda h, x: step(params, h, x), jnp.zeros(DIM, xs.dtype), xs)[1]


def target():
    shapes = {"E": (VOCABULARY, DIM), "Wxh": (DIM, DIM), "Whh": (DIM, DIM), "Why": (VOCABULARY, DIM), "bh": (DIM,)}
    shapes["by"] = (VOCABULARY,)
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return Function(lambda params, tokens: jax.vmap(sequence, (None, 0))(params, tokens), params)


def inputs():
    return (np.random.default_rng(0).integers(0, VOCABULARY, (3, 6)).astype(np.int32),)


def truth(s):
    return {
        "E": s["params/embed/embedding"],
        "Wxh": s["params/rnn/cell/dense_i/kernel"].T,
        "bh": s["params/rnn/cell/dense_i/bias"],
        "Whh": s["params/rnn/cell/dense_h/kernel"].T,
        "Why": s["params/head/kernel"].T,
        "by": s["params/head/bias"],
    }
