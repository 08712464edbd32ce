"""Parameters and state of one's own, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        counter = self.variable("counter", "count", jnp.ones, (), jnp.int32)
        multiplier = self.param("multiplier", nn.initializers.ones, (1,), x.dtype)
        output = x + multiplier * counter.value
        if not self.is_initializing():  # or init would count too
            counter.value += 1
        return output


# endregion

# region create
model = Model()
variables = model.init(jax.random.key(0), jnp.ones((1, 64)))
# endregion

# region look
assert variables["params"]["multiplier"].shape == (1,)
assert variables["counter"]["count"] == 1
# endregion


# region call
def call_twice(variables, x):
    first, new = model.apply(variables, x, mutable=["counter"])
    second, new = model.apply({**variables, **new}, x, mutable=["counter"])
    return first, second, {**variables, **new}


# endregion
