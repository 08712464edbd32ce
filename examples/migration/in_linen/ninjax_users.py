"""The recurrent classifier in Linen."""

# region imports
import flax.linen as nn
import jax
import jax.numpy as jnp

# endregion


# region layers
class Scale(nn.Module):
    """Divides by a running mean of the squares."""

    @nn.compact
    def __call__(self, xs, training):
        shape = xs.shape[-1:]
        var = self.variable("batch_stats", "square", jnp.ones, shape)
        square = var.value
        if training and not self.is_initializing():
            new = 0.9 * square + 0.1 * jnp.mean(xs**2, axis=(0, 1))
            var.value = new
        return xs / jnp.sqrt(square + 1e-5)


class Cell(nn.Module):
    units: int

    @nn.compact
    def __call__(self, h, x):
        init = nn.initializers.lecun_normal()
        w = self.param("w", init, (x.shape[-1], self.units))
        u = self.param("u", init, (self.units, self.units))
        b = self.param("b", nn.initializers.zeros, (self.units,))
        h = jnp.tanh(x @ w + h @ u + b)
        return h, h


# endregion


# region model
class Model(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, xs, training):
        xs = Scale(name="scale")(xs, training)
        xs = nn.Dense(16, name="encoder")(xs)
        scan = nn.scan(
            Cell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        h, _ = scan(16, name="cell")(jnp.zeros((len(xs), 16)), xs)
        return nn.Dense(self.classes, name="head")(h)


# endregion

# region create
model = Model(10)


def create(seed):
    key = jax.random.key(seed)
    return model.init(key, jnp.ones((1, 5, 8)), training=True)


# endregion


# region step
def predict(variables, xs):
    return model.apply(variables, xs, training=False)


# endregion
