"""The training step, and everything that it changes."""

import functools

import jax
import optax
from flax import nnx

from .config import Config
from .data import Batch
from .model import LanguageModel


def make_optimizer(config: Config) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, config.decay_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay),
    )


@functools.partial(nnx.jit, static_argnums=0)
def create(config: Config) -> tuple[LanguageModel, nnx.Optimizer]:
    model = LanguageModel(config, rngs=nnx.Rngs(config.seed))
    return model, nnx.Optimizer(model, make_optimizer(config), wrt=nnx.Param)


class Updater:
    """A model, its optimizer, and the random stream of dropout, which has given one key for each step."""

    def __init__(self, config: Config):
        self.config = config
        self.model, self.optimizer = create(config)
        self.rngs = nnx.Rngs(jax.random.key(config.seed))

    def update(self, batch: Batch) -> jax.Array:
        """Returns the loss before the step."""
        self.model.train()
        return train_step(self.model, self.optimizer, self.rngs, batch)

    def evaluate(self, batch: Batch) -> jax.Array:
        """Returns the loss without dropout."""
        self.model.eval()
        return eval_step(self.model, batch)


def loss_fn(model: LanguageModel, batch: Batch, rngs: nnx.Rngs | None = None) -> jax.Array:
    logits = model(batch.tokens, rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, rngs: nnx.Rngs, batch: Batch) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_fn)(model, batch, rngs)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def eval_step(model: LanguageModel, batch: Batch) -> jax.Array:
    return loss_fn(model, batch)
