"""Parameters and state of one's own, in NNX."""

# region define
import jax.numpy as jnp
from flax import nnx


class Counter(nnx.Variable):
    pass


class Model(nnx.Module):
    def __init__(self, rngs):
        self.counter = Counter(jnp.ones((), jnp.int32))
        self.multiplier = nnx.Param(nnx.initializers.ones(rngs.params(), (1,)))

    def __call__(self, x):
        output = x + self.multiplier * self.counter
        self.counter[...] += 1
        return output


# endregion

# region create
model = Model(nnx.Rngs(0))
# endregion

# region look
assert model.multiplier.shape == (1,)
assert model.counter[...] == 1
# endregion


# region call
def call_twice(model, x):
    first = model(x)
    second = model(x)
    return first, second


# endregion
