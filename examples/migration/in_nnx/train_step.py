"""A training step with dropout and Adam, in NNX."""

# region define
import jax
import optax
from flax import nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x, key=None):
        x = jax.nn.relu(self.hidden(x))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return self.out(x)


# endregion


# region create
tx = optax.adam(1e-2)


def create(seed):
    model = Model(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


# endregion


# region step
@nnx.jit
def train_step(model, optimizer, key, x, labels):
    def loss_fn(model):
        logits = model(x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# endregion


# region train_state
from flax.training.train_state import TrainState


def create_train_state(seed):
    graphdef, params = nnx.split(Model(nnx.Rngs(seed)), nnx.Param)
    return TrainState.create(apply_fn=graphdef.apply, params=params, tx=tx)


@jax.jit
def train_step_of_train_state(state, key, x, labels):
    def loss_fn(params):
        logits, _ = state.apply_fn(params)(x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


# endregion
