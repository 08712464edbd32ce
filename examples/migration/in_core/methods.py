"""Several methods, in the core."""

# region define
import flax.linen as nn
import jax.numpy as jnp

import bridges as br


class AutoEncoder(br.Module):
    embed_dim: int
    output_dim: int

    def __init__(self):
        self.encoder = br.FlaxModule(nn.Dense, self.embed_dim)
        self.decoder = br.FlaxModule(nn.Dense, self.output_dim)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


# endregion


# region create
model = AutoEncoder(embed_dim=16, output_dim=64)
state = br.init(model)({}, jnp.ones((1, 64)), seed=0)
# endregion

# region use
x = jnp.ones((4, 64))
_, z = br.pure(model.encode)(state, x)
_, y = br.pure(model.decode)(state, z)
assert (y == br.pure(model)(state, x)[1]).all()
# endregion
