"""A training step with dropout and Adam, in the core."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bridges as br


class Model(br.Module):
    def __init__(self):
        self.hidden = br.FlaxModule(nn.Dense, 32)
        self.dropout = br.FlaxModule(nn.Dropout, 0.5)
        self.out = br.FlaxModule(nn.Dense, 10)

    def __call__(self, x, key=None):
        x = jax.nn.relu(self.hidden(x))
        x = self.dropout(x, deterministic=key is None, rng=key)
        return self.out(x)


# endregion


# region create
class Trainer(br.Module):
    def __init__(self):
        self.model = Model()
        self.opt = br.OptaxModule(optax.adam(1e-2))

    def loss(self, key, x, labels):
        logits = self.model(x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def train(self, key, x, labels):
        return self.opt(self.model, self.loss, key, x, labels)["loss"]


trainer = Trainer()


def create(seed):
    batch = jax.random.key(0), jnp.ones((1, 64)), jnp.zeros(1, int)
    return br.init(trainer.train)({}, *batch, seed=seed)


# endregion

# region step
train_step = br.jit(trainer.train)
# endregion
