"""A recurrent classifier in Ninjax, of parts of one's own, of Haiku and of Linen, with its training."""

# region imports
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import ninjax as nj
import optax

Linear = nj.FromHaiku(hk.Linear)
Dense = nj.FromFlax(nn.Dense)
Adam = nj.FromOptax(optax.adam)
# endregion


# region layers
class Scale(nj.Module):
    """Divides by a running mean of the squares."""

    def __call__(self, xs, training):
        square = self.value("square", jnp.ones, xs.shape[-1:])
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(xs**2, axis=(0, 1))
            self.write("square", new)
        return xs / jnp.sqrt(square + 1e-5)


class Cell(nj.Module):
    units: int = 16

    def __call__(self, h, x):
        w = self.value("w", self.weights, x.shape[-1])
        u = self.value("u", self.weights, self.units)
        b = self.value("b", jnp.zeros, self.units)
        h = jnp.tanh(x @ w + h @ u + b)
        return h, h

    def weights(self, size):
        init = jax.nn.initializers.lecun_normal()
        return init(nj.seed(), (size, self.units))


# endregion


# region model
class Model(nj.Module):
    classes: int = 10

    def __init__(self):
        self.scale = Scale(name="scale")
        self.encoder = Linear(16, name="encoder")
        self.cell = Cell(units=16, name="cell")

    def __call__(self, xs, training):
        xs = self.encoder(self.scale(xs, training))
        h = jnp.zeros((len(xs), 16))
        h, _ = nj.scan(self.cell, h, xs.swapaxes(0, 1))
        return self.sub("head", Dense, self.classes)(h)


# endregion


# region trainer
class Trainer(nj.Module):
    def __init__(self):
        self.model = Model(classes=10, name="model")
        self.opt = Adam(1e-2, name="opt")

    def loss(self, xs, labels):
        logits = self.model(xs, training=True)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return ce(logits, labels).mean()

    def gradients(self, xs, labels):
        keys = [f"{self.model.path}/{k}" for k in ("encoder", "cell", "head")]
        _, _, grads = nj.grad(self.loss, keys)(xs, labels)
        return grads

    def train(self, xs, labels):
        keys = [f"{self.model.path}/{k}" for k in ("encoder", "cell", "head")]
        loss, _, _ = self.opt(self.loss, keys, xs, labels)
        return loss


# endregion

# region create
trainer = Trainer(name="trainer")


def create(seed):
    batch = jnp.ones((1, 5, 8)), jnp.zeros(1, int)
    return nj.init(trainer.train)({}, *batch, seed=seed)


# endregion


# region step
train_step = jax.jit(nj.pure(trainer.train))


def predict(state, xs):
    run = nj.pure(trainer.model)
    _, logits = run(state, xs, training=False, seed=0)
    return logits


# endregion
