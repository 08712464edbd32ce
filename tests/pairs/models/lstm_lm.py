"""LSTM language model: Haiku with fused gates and a forget bias inside, Linen's OptimizedLSTMCell under `nn.RNN`"""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import numpy as np

VOCABULARY, DIM, LAYERS = 24, 8, 2
X64 = False  # the carry of an `nn.RNN` is in float32


def source():
    def forward(tokens):
        x = hk.Embed(VOCABULARY, DIM)(tokens)
        core = hk.DeepRNN([hk.LSTM(DIM) for _ in range(LAYERS)])
        out, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(tokens.shape[0]))
        return hk.Linear(VOCABULARY)(out.swapaxes(0, 1))

    return forward


class Decoder(nn.Module):
    def setup(self):
        self.decode = nn.Dense(VOCABULARY)
        self.upper = nn.RNN(nn.OptimizedLSTMCell(DIM))
        self.lower = nn.RNN(nn.OptimizedLSTMCell(DIM))
        self.encode = nn.Embed(VOCABULARY, DIM)

    def __call__(self, ids):
        return self.decode(self.upper(self.lower(self.encode(ids))))


def target():
    return Decoder()


def inputs():
    return (np.random.default_rng(0).integers(0, VOCABULARY, (3, 7)).astype(np.int32),)


def truth(s):
    made = {
        "params/encode/embedding": s["params/embed/embeddings"],
        "params/decode/kernel": s["params/linear/w"],
        "params/decode/bias": s["params/linear/b"],
    }
    for old, new in (("lstm", "lower"), ("lstm_1", "upper")):
        w, b = s[f"params/{old}/linear/w"], s[f"params/{old}/linear/b"]
        columns = zip("igfo", jnp.split(w, 4, 1), jnp.split(b, 4), strict=True)
        for gate, kernel, bias in columns:
            made[f"params/{new}/cell/i{gate}/kernel"] = kernel[:DIM]
            made[f"params/{new}/cell/h{gate}/kernel"] = kernel[DIM:]
            made[f"params/{new}/cell/h{gate}/bias"] = bias + (gate == "f")
    return made
