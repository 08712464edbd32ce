"""Parameters and state without a module, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


def forward(x):
    counter = hk.get_state("counter", shape=[], dtype=jnp.int32, init=jnp.ones)
    multiplier = hk.get_parameter("multiplier", shape=[1], dtype=x.dtype, init=jnp.ones)
    output = x + multiplier * counter
    hk.set_state("counter", counter + 1)
    return output


# endregion

# region create
model = hk.without_apply_rng(hk.transform_with_state(forward))
params, state = model.init(jax.random.key(0), jnp.ones((1, 64)))
# endregion

# region look
assert params["~"]["multiplier"].shape == (1,)
assert state["~"]["counter"] == 1  # init calls forward, and keeps initial values
# endregion


# region call
def call_twice(params, state, x):
    first, state = model.apply(params, state, x)
    second, state = model.apply(params, state, x)
    return first, second, state


# endregion
