"""A small causal transformer, in Haiku."""

# region block
import haiku as hk
import jax
import jax.numpy as jnp


def layer_norm():
    return hk.LayerNorm(-1, create_scale=True, create_offset=True)


class Block(hk.Module):
    def __init__(self, heads, name=None):
        super().__init__(name=name)
        self.heads = heads

    def __call__(self, x, mask):
        features = x.shape[-1]
        attention = hk.MultiHeadAttention(
            num_heads=self.heads,
            key_size=features // self.heads,
            model_size=features,
            w_init=hk.initializers.VarianceScaling(0.1),
        )
        y = layer_norm()(x)
        x = x + attention(y, y, y, mask)
        y = layer_norm()(x)
        y = hk.Linear(2 * features)(y)
        y = jax.nn.gelu(y)
        return x + hk.Linear(features)(y)


# endregion


# region model
class Transformer(hk.Module):
    def __init__(self, vocab, features, heads, length, name=None):
        super().__init__(name=name)
        self.vocab = vocab
        self.features = features
        self.heads = heads
        self.length = length

    def __call__(self, tokens):
        t = tokens.shape[-1]
        embed = hk.Embed(self.vocab, self.features, name="embed")
        position = hk.Embed(self.length, self.features, name="position")
        x = embed(tokens) + position(jnp.arange(t))
        mask = jnp.tril(jnp.ones((1, 1, t, t), bool))
        x = Block(self.heads)(x, mask)
        x = layer_norm()(x)
        return hk.Linear(self.vocab, name="logits")(x)


# endregion


# region create
def forward(tokens):
    return Transformer(24, 12, heads=2, length=6)(tokens)


model = hk.without_apply_rng(hk.transform(forward))
sample = jnp.zeros((2, 6), jnp.int32)
params = jax.jit(model.init)(jax.random.key(0), sample)
# endregion

# region look
attention = "transformer/block/multi_head_attention"
assert params[attention + "/query"]["w"].shape == (12, 12)
assert params[attention + "/query"]["b"].shape == (12,)
assert params[attention + "/linear"]["w"].shape == (12, 12)
# endregion


# region call
def predict(params, tokens):
    return model.apply(params, tokens)


# endregion


# region fused
class FusedAttention(hk.Module):
    def __init__(self, heads, name=None):
        super().__init__(name=name)
        self.heads = heads

    def split(self, qkv):  # [.., T, 3 * H * K]: all of q, of k, of v
        return [part.reshape(*part.shape[:-1], self.heads, -1) for part in jnp.split(qkv, 3, axis=-1)]

    def __call__(self, x, mask):
        features = x.shape[-1]
        qkv = hk.Linear(3 * features, name="qkv")(x)
        q, k, v = self.split(qkv)
        logits = jnp.einsum("...thd,...Thd->...htT", q, k)
        logits = logits / jnp.sqrt(q.shape[-1])
        logits = jnp.where(mask, logits, -1e30)
        weights = jax.nn.softmax(logits)
        y = jnp.einsum("...htT,...Thd->...thd", weights, v)
        y = y.reshape(x.shape)
        return hk.Linear(features, name="proj")(y)


class FusedByHead(FusedAttention):
    def split(self, qkv):  # [.., T, H * 3 * K]: q, k, v of each head
        qkv = qkv.reshape(*qkv.shape[:-1], self.heads, -1)
        return jnp.split(qkv, 3, axis=-1)


# endregion
