"""Fresh weights, and where they come from, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


def forward(tokens, embed=None, linear=None):
    x = hk.Embed(500, 32, w_init=embed)(tokens)
    lstm = hk.LSTM(32)
    start = lstm.initial_state(tokens.shape[0])
    x, _ = hk.dynamic_unroll(lstm, x, start, time_major=False)
    return hk.Linear(32, w_init=linear)(x[:, -1])


model = hk.without_apply_rng(hk.transform(forward))
# endregion


# region create
sample = jnp.zeros((1, 4), jnp.int32)


def create(seed):
    return model.init(jax.random.key(seed), sample)


# endregion


# region keys
def kernel(key, names, of):
    def layers(x):
        return [hk.Linear(32, name=name)(x) for name in names]

    params = hk.transform(layers).init(key, jnp.ones((1, 32)))
    return params[of]["w"]


# endregion


# region other
lecun = hk.initializers.VarianceScaling()


def weights_of_gates(shape, dtype):
    size = shape[1] // 4
    orthogonal = hk.initializers.Orthogonal()
    of_x = [shape[0] - size, size]
    x = [lecun(of_x, dtype) for _ in range(4)]
    h = [orthogonal([size, size], dtype) for _ in range(4)]
    return jnp.concatenate([jnp.hstack(x), jnp.hstack(h)])


def biases_of_gates(shape, dtype):
    size = shape[0] // 4  # i, g, f, o: the cell adds 1 to f
    return jnp.zeros(shape, dtype).at[2 * size : 3 * size].set(-1)


def creator(next_creator, shape, dtype, init, context):
    if context.full_name == "lstm/linear/w":
        init = weights_of_gates
    if context.full_name == "lstm/linear/b":
        init = biases_of_gates
    return next_creator(shape, dtype, init)


def forward_like_flax(tokens):
    normal = hk.initializers.VarianceScaling(1.0, "fan_out", "normal")
    with hk.custom_creator(creator):
        return forward(tokens, embed=normal, linear=lecun)


def create_as_the_other(seed):
    init = hk.transform(forward_like_flax).init
    return init(jax.random.key(seed), sample)


# endregion


# region call
def predict(params, tokens):
    return model.apply(params, tokens)


# endregion
