"""Several methods, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


class AutoEncoder(hk.Module):
    def __init__(self, embed_dim, output_dim, name=None):
        super().__init__(name=name)
        self.encoder = hk.Linear(embed_dim, name="encoder")
        self.decoder = hk.Linear(output_dim, name="decoder")

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


# endregion


# region create
def forward():
    module = AutoEncoder(16, 64)
    return module.__call__, (module.__call__, module.encode, module.decode)


model = hk.without_apply_rng(hk.multi_transform(forward))
params = model.init(jax.random.key(0), jnp.ones((1, 64)))
call, encode, decode = model.apply
# endregion

# region use
x = jnp.ones((4, 64))
z = encode(params, x)
y = decode(params, z)
assert (y == call(params, x)).all()
# endregion
