"""A training run that is saved and goes on, in the core: path -> array."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bridges as br
import converters


class Model(br.Module):
    def __init__(self):
        self.hidden = br.FlaxModule(nn.Dense, 16)
        self.norm = br.FlaxModule(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
        self.dropout = br.FlaxModule(nn.Dropout, 0.5)
        self.out = br.FlaxModule(nn.Dense, 10)

    def __call__(self, x, key=None):
        x = nn.relu(self.hidden(x))
        x = self.norm(x)
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

    def train(self, x, labels):
        rng = self.get("rng", lambda: jax.random.key_data(br.rng()), kind=br.RngState)
        rng, key = jax.random.split(rng)
        self.put("rng", rng)
        return self.opt(self.model, self.loss, key, x, labels)["loss"]


trainer = Trainer()


def create(seed):
    return br.init(trainer.train)({}, jnp.ones((1, 64)), jnp.zeros(1, int), seed=seed)


# endregion


# region step
train_step = br.jit(trainer.train)
# endregion


# region save
def save(path, state):
    converters.save(path, state)


# endregion


# region load
def load(path):
    like = jax.eval_shape(create, 0)
    return like.restore(converters.load(path))


# endregion
