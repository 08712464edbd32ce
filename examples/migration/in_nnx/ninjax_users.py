"""The recurrent classifier in NNX."""

# region imports
import jax
import jax.numpy as jnp
from flax import nnx

# endregion


# region layers
class Scale(nnx.Module):
    """Divides by a running mean of the squares."""

    def __init__(self, size):
        self.square = nnx.BatchStat(jnp.ones(size))

    def __call__(self, xs, training):
        square = self.square[...]
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(xs**2, axis=(0, 1))
            self.square[...] = new
        return xs / jnp.sqrt(square + 1e-5)


class Cell(nnx.Module):
    def __init__(self, size, units, rngs):
        init = nnx.initializers.lecun_normal()
        self.w = nnx.Param(init(rngs.params(), (size, units)))
        self.u = nnx.Param(init(rngs.params(), (units, units)))
        self.b = nnx.Param(jnp.zeros(units))

    def __call__(self, h, x):
        h = jnp.tanh(x @ self.w + h @ self.u + self.b)
        return h, h


# endregion


# region model
class Model(nnx.Module):
    def __init__(self, classes, rngs):
        self.scale = Scale(8)
        self.encoder = nnx.Linear(8, 16, rngs=rngs)
        self.cell = Cell(16, 16, rngs)
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, xs, training):
        xs = self.encoder(self.scale(xs, training))
        h = jnp.zeros((len(xs), 16))
        h, _ = jax.lax.scan(self.cell, h, xs.swapaxes(0, 1))
        return self.head(h)


# endregion


# region create
def create(seed):
    return Model(10, nnx.Rngs(seed))


# endregion


# region step
def predict(model, xs):
    return model(xs, training=False)


# endregion
