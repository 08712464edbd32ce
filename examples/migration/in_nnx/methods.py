"""Several methods, in NNX."""

# region define
import jax.numpy as jnp
from flax import nnx


class AutoEncoder(nnx.Module):
    def __init__(self, in_dim, embed_dim, output_dim, rngs):
        self.encoder = nnx.Linear(in_dim, embed_dim, rngs=rngs)
        self.decoder = nnx.Linear(embed_dim, output_dim, rngs=rngs)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


# endregion


# region create
model = AutoEncoder(64, 16, 64, rngs=nnx.Rngs(0))
# endregion

# region use
x = jnp.ones((4, 64))
z = model.encode(x)
y = model.decode(z)
assert (y == model(x)).all()
# endregion
