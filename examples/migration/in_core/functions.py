"""Parameters and state without a module, in the core."""

# region define
import jax.numpy as jnp

import bridges as br


class Counter(br.Variable):
    pass


def forward(x):
    counter = br.get("counter", jnp.ones, (), jnp.int32, kind=Counter)
    multiplier = br.get("multiplier", jnp.ones, (1,), x.dtype, kind=br.Param)
    output = x + multiplier * counter
    br.context()["counter"] = counter + 1
    return output


# endregion

# region create
state = br.init(forward)({}, jnp.ones((1, 64)))
# endregion

# region look
assert state["multiplier"].shape == (1,)
assert state["counter"] == 1
# endregion


# region call
def call_twice(state, x):
    state, first = br.pure(forward)(state, x)
    state, second = br.pure(forward)(state, x)
    return first, second, state


# endregion
