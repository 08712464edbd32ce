"""PPO agent on frames: NNX with one head for policy and value, Linen with an actor and a critic"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

SIDE, CHANNELS, HIDDEN, ACTIONS = 20, 8, 32, 6


class Agent(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([
            nnx.Conv(n_in, CHANNELS, (size, size), strides=stride, padding="VALID", rngs=rngs)
            for n_in, size, stride in ((4, 4, 2), (CHANNELS, 3, 2), (CHANNELS, 2, 1))
        ])  # fmt: skip
        self.fc = nnx.Linear(9 * CHANNELS, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, 1 + ACTIONS, rngs=rngs)

    def __call__(self, frames):
        x = frames / 255.0
        for conv in self.convs:
            x = nnx.relu(conv(x))
        out = self.head(nnx.relu(self.fc(x.reshape(x.shape[0], -1))))
        return out[:, 1:], out[:, 0]


def source():
    return lambda: Agent(nnx.Rngs(0))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.asarray(x) / 255.0
        for size, stride in ((4, 2), (3, 2), (2, 1)):
            x = nn.relu(nn.Conv(CHANNELS, (size, size), (stride, stride), "VALID")(x))
        x = x.reshape((x.shape[0], -1))
        return nn.relu(nn.Dense(HIDDEN)(x))


class ActorCritic(nn.Module):
    def setup(self):
        self.network = Network()
        self.actor, self.critic = nn.Dense(ACTIONS), nn.Dense(1)

    def __call__(self, observation):
        hidden = self.network(observation)
        return self.actor(hidden), jnp.squeeze(self.critic(hidden), -1)


def target():
    return ActorCritic()


def inputs():
    return (np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 4)).astype(np.float32),)


def truth(s):
    made = {
        "params/critic/kernel": s["params/head/kernel"][:, :1],
        "params/critic/bias": s["params/head/bias"][:1],
        "params/actor/kernel": s["params/head/kernel"][:, 1:],
        "params/actor/bias": s["params/head/bias"][1:],
    }
    names = {f"network/Conv_{i}": f"convs/{i}" for i in range(3)} | {"network/Dense_0": "fc"}
    for new, old in names.items():
        made |= {f"params/{new}/{leaf}": s[f"params/{old}/{leaf}"] for leaf in ("kernel", "bias")}
    return made
