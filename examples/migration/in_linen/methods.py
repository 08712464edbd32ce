"""Several methods, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class AutoEncoder(nn.Module):
    embed_dim: int
    output_dim: int

    def setup(self):
        self.encoder = nn.Dense(self.embed_dim)
        self.decoder = nn.Dense(self.output_dim)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


# endregion


# region create
model = AutoEncoder(16, 64)
variables = model.init(jax.random.key(0), jnp.ones((1, 64)))
params = variables["params"]
# endregion

# region use
x = jnp.ones((4, 64))
z = model.apply({"params": params}, x, method="encode")
y = model.apply({"params": params}, z, method="decode")
assert (y == model.apply({"params": params}, x)).all()
# endregion
