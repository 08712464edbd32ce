"""A recurrent world model: Haiku with a Linear a gate, a core module with gates fused and an offset in the update gate"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import bridges as br

OBSERVATION, ACTION, DETER, HIDDEN = 8, 4, 8, 8


def source():
    def forward(observations, actions, deter):
        project, norm = hk.Linear(HIDDEN, name="img_in"), hk.LayerNorm(-1, True, True, eps=1e-3, name="img_in_norm")
        gates = {name: hk.Linear(DETER, name=name) for name in ("reset", "cand", "update")}

        def cell(deter, inputs):
            x = jax.nn.silu(norm(project(jnp.concatenate(inputs, -1))))
            x = jnp.concatenate([deter, x], -1)
            reset = jax.nn.sigmoid(gates["reset"](x))
            cand = jnp.tanh(reset * gates["cand"](x))
            update = jax.nn.sigmoid(gates["update"](x) - 1)
            deter = update * cand + (1 - update) * deter
            return deter, deter

        if hk.running_init():
            cell(deter, (observations[0], actions[0]))
            last = deter, jnp.zeros((*observations.shape[:2], DETER))
        else:
            last = hk.scan(cell, deter, (observations, actions))
        reward = hk.nets.MLP([HIDDEN, 1], activation=jax.nn.silu, name="reward")(last[1])
        return last[0], jnp.squeeze(reward, -1), hk.Linear(OBSERVATION, name="decoder")(last[1])

    return forward


class Linear(br.Module):
    units: int
    norm: bool = False

    def __call__(self, x):
        x = x @ self.get("kernel", lambda: jax.random.normal(br.rng(), (x.shape[-1], self.units)))
        x = x + self.get("bias", jnp.zeros, (self.units,))
        if not self.norm:
            return x
        mean = x.mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3)
        return jax.nn.silu(
            x * self.get("scale", jnp.ones, (self.units,)) + self.get("offset", jnp.zeros, (self.units,))
        )


class WorldModel(br.Module):
    def __init__(self):
        self.rew_out, self.dec = Linear(units=1), Linear(units=OBSERVATION)
        self.rew_hidden, self.gru = Linear(units=HIDDEN), Linear(units=3 * DETER)
        self.inp = Linear(units=HIDDEN, norm=True)

    def step(self, deter, inputs):
        x = jnp.concatenate([deter, self.inp(jnp.concatenate(inputs, -1))], -1)
        reset, cand, update = jnp.split(self.gru(x), 3, -1)
        cand = jnp.tanh(jax.nn.sigmoid(reset) * cand)
        update = jax.nn.sigmoid(update)
        return (new := update * cand + (1 - update) * deter), new

    def __call__(self, observations, actions, deter):
        last, deters = br.scan(self.step, deter, (observations, actions))
        return last, self.rew_out(jax.nn.silu(self.rew_hidden(deters))).squeeze(-1), self.dec(deters)


def target():
    return WorldModel()


def inputs():
    rng = np.random.default_rng(0)
    shapes = (5, 2, OBSERVATION), (5, 2, ACTION), (2, DETER)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def truth(s):
    made = {
        "world_model/inp/scale": s["params/img_in_norm/scale"],
        "world_model/inp/offset": s["params/img_in_norm/offset"],
    }
    names = {"inp": "img_in", "rew_hidden": "reward/~/linear_0", "rew_out": "reward/~/linear_1", "dec": "decoder"}
    for leaf, name in (("kernel", "w"), ("bias", "b")):
        for new, old in names.items():
            made[f"world_model/{new}/{leaf}"] = s[f"params/{old}/{name}"]
        reset, cand, update = (s[f"params/{gate}/{name}"] for gate in ("reset", "cand", "update"))
        made[f"world_model/gru/{leaf}"] = jnp.concatenate([reset, cand, update - (name == "b")], -1)
    return made
