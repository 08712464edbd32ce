"""A basic module with dropout, in NNX."""

# region define
import jax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, din, features, rngs):
        self.linear = nnx.Linear(din, features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        x = self.dropout(x)
        return jax.nn.relu(x)


class Model(nnx.Module):
    def __init__(self, din, dmid, dout, rngs):
        self.block = Block(din, dmid, rngs)
        self.linear = nnx.Linear(dmid, dout, rngs=rngs)

    def __call__(self, x):
        x = self.block(x)
        return self.linear(x)


# endregion


# region create
model = Model(64, 32, 10, rngs=nnx.Rngs(0))
# endregion

# region look
assert model.linear.bias.shape == (10,)
assert model.block.linear.kernel.shape == (64, 32)
# endregion


# region call
@nnx.jit
def predict(model, x):
    return nnx.view(model, deterministic=True)(x)


@nnx.jit
def predict_with_dropout(model, x):
    return nnx.view(model, deterministic=False)(x)


# endregion
