"""The recurrent classifier in Haiku."""

# region imports
import haiku as hk
import jax
import jax.numpy as jnp

# endregion


# region layers
class Scale(hk.Module):
    """Divides by a running mean of the squares."""

    def __call__(self, xs, training):
        shape = xs.shape[-1:]
        square = hk.get_state("square", shape, init=jnp.ones)
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(xs**2, axis=(0, 1))
            hk.set_state("square", new)
        return xs / jnp.sqrt(square + 1e-5)


class Cell(hk.Module):
    def __init__(self, units, name=None):
        super().__init__(name=name)
        self.units = units

    def __call__(self, h, x):
        w = self.weights("w", x.shape[-1])
        u = self.weights("u", self.units)
        b = hk.get_parameter("b", (self.units,), init=jnp.zeros)
        h = jnp.tanh(x @ w + h @ u + b)
        return h, h

    def weights(self, name, size):
        init = hk.initializers.VarianceScaling()
        return hk.get_parameter(name, (size, self.units), init=init)


# endregion


# region model
def forward(xs, training):
    xs = Scale()(xs, training)
    xs = hk.Linear(16, name="encoder")(xs)
    h = jnp.zeros((len(xs), 16))
    h, _ = hk.scan(Cell(16), h, xs.swapaxes(0, 1))
    return hk.Linear(10, name="head")(h)


# endregion

# region create
model = hk.without_apply_rng(hk.transform_with_state(forward))


def create(seed):
    key = jax.random.key(seed)
    return model.init(key, jnp.ones((1, 5, 8)), training=True)


# endregion


# region step
def predict(params, state, xs):
    logits, _ = model.apply(params, state, xs, training=False)
    return logits


# endregion
