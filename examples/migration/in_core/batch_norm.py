"""Mutable state: running statistics of BatchNorm, in the core."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bridges as br


class Block(br.Module):
    def __init__(self, features):
        self.linear = br.FlaxModule(nn.Dense, features)
        self.norm = br.FlaxModule(nn.BatchNorm, momentum=0.9)

    def __call__(self, x, training):
        x = self.linear(x)
        x = self.norm(x, use_running_average=not training)
        return jax.nn.relu(x)


class Model(br.Module):
    def __init__(self):
        self.block = Block(32)
        self.linear = br.FlaxModule(nn.Dense, 10)

    def __call__(self, x, training):
        x = self.block(x, training)
        return self.linear(x)

    def loss(self, x, labels):
        logits = self(x, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def train(self, x, labels):
        _, params, grads = br.grad(self.loss, [self])(x, labels)
        self.put(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


# endregion


# region create
model = Model()


def create(seed):
    return br.init(model)({}, jnp.ones((1, 64)), training=False, seed=seed)


# endregion


# region look
state = create(0)
assert state["model/block/norm/params/scale"].shape == (32,)
assert state["model/block/norm/batch_stats/mean"].shape == (32,)
# endregion


# region call
def predict(state, x):
    _, logits = br.pure(model)(state, x, training=False)
    return logits


# endregion


# region step
train_step = br.jit(model.train)
# endregion
