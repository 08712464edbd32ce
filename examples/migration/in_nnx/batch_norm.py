"""Mutable state: running statistics of BatchNorm, in NNX."""

# region define
import jax
import optax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, din, features, rngs):
        self.linear = nnx.Linear(din, features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        x = self.norm(x)
        return jax.nn.relu(x)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.block = Block(64, 32, rngs)
        self.linear = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = self.block(x)
        return self.linear(x)


# endregion


# region create
def create(seed):
    return Model(nnx.Rngs(seed))


# endregion


# region look
model = create(0)
assert model.block.norm.scale.shape == (32,)
assert model.block.norm.mean.shape == (32,)
assert isinstance(model.block.norm.mean, nnx.BatchStat)
# endregion


# region call
@nnx.jit
def predict(model, x):
    return nnx.view(model, use_running_average=True)(x)


# endregion


# region step
@nnx.jit
def train_step(model, x, labels):
    def loss_fn(model):
        logits = nnx.view(model, use_running_average=False)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    grads = nnx.grad(loss_fn)(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


# endregion


# region train_state
from flax.training import train_state


class TrainState(train_state.TrainState):
    batch_stats: nnx.State


def create_train_state(model):
    model.train()  # use_running_average=False
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    kept = {"params": params, "batch_stats": batch_stats}
    return TrainState.create(apply_fn=graphdef.apply, tx=optax.sgd(0.1), **kept)


@jax.jit
def train_step_of_train_state(state, x, labels):
    def loss_fn(params):
        batch_stats = nnx.clone(state.batch_stats)  # jax.grad may not write to those
        logits, (_, new) = state.apply_fn(params, batch_stats)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), nnx.filter_state(new, nnx.BatchStat)

    grads, new = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=new)


# endregion
