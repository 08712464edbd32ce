"""SAC agent: a core module with Linen layers inside and twin critics side by side, Linen with the critics under `nn.vmap`"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bridges as br

OBSERVATION, ACTIONS, HIDDEN = 8, 4, 16


class Critic(br.Module):
    def __init__(self):
        self.layers = [br.LinenModule(nn.Dense, size) for size in (HIDDEN, HIDDEN, 1)]

    def __call__(self, observation, action):
        x = jnp.concatenate([observation, action], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)[..., 0]


class Agent(br.Module):
    def __init__(self):
        self.qf1, self.qf2 = Critic(), Critic()
        self.trunk = [br.LinenModule(nn.Dense, HIDDEN) for _ in range(2)]
        self.mean, self.log_std = br.LinenModule(nn.Dense, ACTIONS), br.LinenModule(nn.Dense, ACTIONS)

    def __call__(self, observation, noise):
        x = observation
        for layer in self.trunk:
            x = jax.nn.relu(layer(x))
        log_std = -5 + 3.5 * (jnp.tanh(self.log_std(x)) + 1)
        action = jnp.tanh(self.mean(x) + noise * jnp.exp(log_std))
        return action, jnp.stack([self.qf1(observation, action), self.qf2(observation, action)])


def source():
    return Agent()


class Q(nn.Module):
    @nn.compact
    def __call__(self, observation, action):
        x = nn.relu(nn.Dense(HIDDEN)(jnp.concatenate([observation, action], -1)))
        return jnp.squeeze(nn.Dense(1)(nn.relu(nn.Dense(HIDDEN)(x))), -1)


class SAC(nn.Module):
    @nn.compact
    def __call__(self, observation, noise):
        x = nn.relu(nn.Dense(HIDDEN, name="fc1")(observation))
        x = nn.relu(nn.Dense(HIDDEN, name="fc2")(x))
        mean, log_std = jnp.split(nn.Dense(2 * ACTIONS, name="head")(x), 2, -1)
        log_std = -5 + 0.5 * 7 * (1 + jnp.tanh(log_std))
        action = jnp.tanh(mean + jnp.exp(log_std) * noise)
        ensemble = nn.vmap(Q, {"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)
        return action, ensemble(name="critics")(observation, action)


def target():
    return SAC()


def inputs():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(4, size)).astype(np.float32) for size in (OBSERVATION, ACTIONS))


def truth(s):
    made = {}
    # In Linen, the last Dense of a critic is made before the one whose output it takes.
    for layer, dense in enumerate((0, 2, 1)):
        for leaf in ("kernel", "bias"):
            both = [s[f"agent/qf{n}/layers_{layer}/params/{leaf}"] for n in (1, 2)]
            made[f"params/critics/Dense_{dense}/{leaf}"] = jnp.stack(both)
    for leaf in ("kernel", "bias"):
        for i in (0, 1):
            made[f"params/fc{i + 1}/{leaf}"] = s[f"agent/trunk_{i}/params/{leaf}"]
        both = [s[f"agent/{name}/params/{leaf}"] for name in ("mean", "log_std")]
        made[f"params/head/{leaf}"] = jnp.concatenate(both, -1)
    return made
