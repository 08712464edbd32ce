"""The classifier with a native encoder and head; the running statistics are Haiku's."""

# region imports
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bridges as br

# endregion


# region encoder
class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, training, key=None):
        x = jax.nn.relu(self.linear(x))
        if training:
            x = self.dropout(x, rngs=key)
        return x


# endregion


# region scale
class Scale(hk.Module):
    """Divides by a running mean of the squares."""

    def __call__(self, x, training):
        shape = x.shape[-1:]
        square = hk.get_state("square", shape, init=jnp.ones)
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(x**2, axis=0)
            hk.set_state("square", new)
        return x / jnp.sqrt(square + 1e-5)


# endregion


# region head
class Head(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 16, rngs=rngs)
        self.out = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.hidden(x))
        return self.out(x)


# endregion


# region model
class Model(nnx.Module):
    def __init__(self, x, rngs):
        self.encoder = Encoder(rngs)
        self.scale = br.ToNNX(Scale, rngs=rngs)
        self.scale.lazy_init(self.encoder(x, False), True)
        self.head = Head(rngs)

    def __call__(self, x, training, key=None):
        x = self.encoder(x, training, key)
        x = self.scale(x, training)
        return self.head(x)


# endregion


# region create
def create(seed):
    model = Model(jnp.ones((1, 8)), nnx.Rngs(seed))
    tx = optax.adam(1e-2)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


# endregion


# region step
def predict(model, x):
    return model(x, training=False)


@nnx.jit
def train_step(model, optimizer, key, x, labels):
    def loss_fn(model):
        logits = model(x, training=True, key=key)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return ce(logits, labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# endregion
