"""The classifier in Haiku, whole, in an NNX program."""

# region imports
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bridges as br

# endregion


# region encoder
class Encoder(hk.Module):
    def __call__(self, x, training):
        x = jax.nn.relu(hk.Linear(16)(x))
        if training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
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
class Head(hk.Module):
    def __call__(self, x):
        x = jax.nn.relu(hk.Linear(16, name="hidden")(x))
        return hk.Linear(10, name="out")(x)


# endregion


# region model
def forward(x, training):
    x = Encoder()(x, training)
    x = Scale()(x, training)
    return Head()(x)


class Model(nnx.Module):
    def __init__(self, x, rngs):
        self.net = br.ToNNX(forward, rngs=rngs)
        self.net.lazy_init(x, training=True)
        self.net.rngs = None  # a key comes with every call

    def __call__(self, x, training, key=None):
        return self.net(x, training, rngs=key)


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
