"""One scan over many equal layers, in NNX."""

# region block
import jax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, features, rngs):
        self.linear = nnx.Linear(features, features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        x = self.dropout(x)
        return jax.nn.relu(x)


# endregion


# region stack
class MLP(nnx.Module):
    def __init__(self, features, num_layers, rngs):
        @nnx.split_rngs(splits=num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs):
            return Block(features, rngs)

        self.blocks = create(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return run(x, self.blocks)


# endregion


# region create
model = MLP(16, num_layers=5, rngs=nnx.Rngs(0))
# endregion


# region call
@nnx.jit
def predict(model, x):
    return nnx.view(model, deterministic=True)(x)


@nnx.jit
def predict_with_dropout(model, x):
    return nnx.view(model, deterministic=False)(x)


# endregion
