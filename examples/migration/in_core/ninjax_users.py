"""The recurrent classifier in the core, of parts of one's own, of Haiku and of Linen, with its training."""

# region imports
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax

import bridges as br

Linear = br.FromHaiku(hk.Linear)
Dense = br.FromFlax(nn.Dense)
Adam = br.FromOptax(optax.adam)
# endregion


# region layers
class Scale(br.Module):
    """Divides by a running mean of the squares."""

    def __call__(self, xs, training):
        shape = xs.shape[-1:]
        square = self.get("square", jnp.ones, shape, kind=br.BatchStat)
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(xs**2, axis=(0, 1))
            self.put("square", new)
        return xs / jnp.sqrt(square + 1e-5)


class Cell(br.Module):
    units: int = 16

    def __call__(self, h, x):
        w = self.get("w", self.weights, x.shape[-1])
        u = self.get("u", self.weights, self.units)
        b = self.get("b", jnp.zeros, self.units)
        h = jnp.tanh(x @ w + h @ u + b)
        return h, h

    def weights(self, size):
        init = jax.nn.initializers.lecun_normal()
        return init(br.rng(), (size, self.units))


# endregion


# region model
class Model(br.Module):
    classes: int = 10

    def __init__(self):
        self.scale = Scale()
        self.encoder = Linear(16)
        self.cell = Cell(units=16)

    def __call__(self, xs, training):
        xs = self.encoder(self.scale(xs, training))
        h = jnp.zeros((len(xs), 16))
        h, _ = br.scan(self.cell, h, xs.swapaxes(0, 1))
        return self.get("head", Dense, self.classes)(h)


# endregion


# region trainer
class Trainer(br.Module):
    def __init__(self):
        self.model = Model(classes=10)
        self.opt = Adam(1e-2)

    def loss(self, xs, labels):
        logits = self.model(xs, training=True)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return ce(logits, labels).mean()

    def gradients(self, xs, labels):
        grad = br.grad(self.loss, self.model)
        _, _, grads = grad(xs, labels)
        return grads

    def train(self, xs, labels):
        metrics = self.opt(self.model, self.loss, xs, labels)
        return metrics["loss"]


# endregion

# region create
trainer = Trainer()


def create(seed):
    batch = jnp.ones((1, 5, 8)), jnp.zeros(1, int)
    return br.init(trainer.train)({}, *batch, seed=seed)


# endregion


# region step
train_step = br.jit(trainer.train)


def predict(state, xs):
    run = br.pure(trainer.model)
    _, logits = run(state, xs, training=False)
    return logits


# endregion
