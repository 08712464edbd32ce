"""A training run that is saved and goes on, in NNX: Orbax."""

# region define
import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.out = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, key=None):
        x = nnx.relu(self.hidden(x))
        x = self.norm(x)
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return self.out(x)


# endregion


# region create
tx = optax.adam(1e-2)


def create(seed):
    rng, key = jax.random.split(jax.random.PRNGKey(seed))
    model = Model(nnx.Rngs(key))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param), rng


# endregion


# region step
@nnx.jit
def train_step(model, optimizer, rng, x, labels):
    rng, key = jax.random.split(rng)

    def loss_fn(model):
        logits = model(x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return rng, loss


# endregion


# region save
def tree(model, optimizer, rng):
    state = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    return state | {"rng": rng}


def save(path, model, optimizer, rng):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree(model, optimizer, rng))


# endregion


# region load
def load(path):
    model, optimizer, rng = create(0)
    like = tree(model, optimizer, rng)
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path.absolute(), like)
    nnx.update(model, found["model"])
    nnx.update(optimizer, found["optimizer"])
    return model, optimizer, found["rng"]


# endregion
