"""Tied modules: one entry at both ends, or at one of them only."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bridges import State
from bridges.core._errors import MappingError, UnsupportedError
from bridges.param_mapping import Mapping, Plan, conventions
from tests.mapping.stacks import X, in_haiku, in_linen, in_nnx, randomised


class Linen(nn.Module):
    tied: bool

    @nn.compact
    def __call__(self, x):
        a = nn.MultiHeadDotProductAttention(3, name="a")
        b = a if self.tied else nn.MultiHeadDotProductAttention(3, name="b")
        return nn.Dense(2, name="head")(b(jnp.tanh(a(x))))


def haiku(x):
    attn = hk.MultiHeadAttention(3, 1, w_init=hk.initializers.RandomNormal(), name="shared")
    return hk.Linear(2, name="head")(attn(*[jnp.tanh(attn(x, x, x))] * 3))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.zz = nnx.MultiHeadAttention(3, 3, decode=False, rngs=rngs)
        self.aa = self.zz
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.aa(jnp.tanh(self.zz(x))))


TIED, APART = in_linen(Linen(True)), in_linen(Linen(False))


@pytest.mark.parametrize("make", [lambda: in_haiku(haiku), lambda: in_nnx(NNX)], ids=["haiku", "nnx"])
def test_tied_at_both_ends_is_one_entry(make):
    other = make()
    for src, dst in ((other, TIED), (TIED, other)):
        plan = conventions(src.framework, dst.framework).plan(src.spec, dst.spec)
        state = randomised(src.spec, 1)
        new = plan.forward(state)
        assert plan.verdict == "exact"
        assert all(np.array_equal(plan.inverse(new)[path], x) for path, x in state.items())
        np.testing.assert_allclose(src.run(state, X), dst.run(new, X), rtol=1e-5, atol=1e-5)
    assert "params/aa/query/kernel" in in_nnx(NNX).spec.entries  # the first name by the alphabet, not the first made


def test_tied_at_the_source_only_is_copied_and_comes_back_where_equal():
    src = in_haiku(haiku)
    with pytest.raises(MappingError, match=r"or 'shared' = \['a', 'b'\] if they are tied"):
        conventions("haiku", "linen").plan(src.spec, APART.spec)
    mapping = Mapping.loads('[modules]\nshared = ["a", "b"]\n')
    assert Mapping.loads(mapping.dumps()) == mapping and mapping.inverse.inverse == mapping
    plan = (mapping | conventions("haiku", "linen")).plan(src.spec, APART.spec)
    assert plan.verdict == "exact for evaluation only" and "train apart" in plan.reasons[0]
    assert Plan.from_json(plan.to_json()) == plan
    state = randomised(src.spec, 1)
    new = plan.forward(state)
    np.testing.assert_allclose(src.run(state, X), APART.run(new, X), rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(plan.inverse(new)[path], x) for path, x in state.items())
    new["params/b/query/kernel"] = new["params/b/query/kernel"] + 1
    with pytest.raises(UnsupportedError, match=r"params/b/query/kernel: these are one entry .* values differ"):
        plan.inverse(new)


def test_tied_at_the_target_only_takes_equal_values_only():
    dst = in_haiku(haiku)
    mapping = Mapping.of(modules={"a": "shared", "b": "shared"}) | conventions("linen", "haiku")
    plan = mapping.plan(APART.spec, dst.spec)
    state = randomised(APART.spec, 1)
    with pytest.raises(UnsupportedError, match=r"params/a/.* -> params/shared/.*values differ"):
        plan.forward(state)
    state.update({p: state[p.replace("params/b/", "params/a/")] for p in state if p.startswith("params/b/")})
    new = plan.forward(state)
    np.testing.assert_allclose(APART.run(state, X), dst.run(new, X), rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(plan.inverse(new)[path], x) for path, x in state.items())
    assert plan.verdict == "exact for evaluation only"


def test_optimizer_state_of_what_is_tied_at_one_end_is_refused_by_name():
    src = in_haiku(haiku)
    plan = (Mapping.of(modules={"shared": ["a", "b"]}) | conventions("haiku", "linen")).plan(src.spec, APART.spec)
    params = State(randomised(src.spec, 1))
    with pytest.raises(UnsupportedError, match=r"mu of params/shared/.*copies, which train apart"):
        plan.optimizer(optax.adam(1.0).init(params), params, plan.forward(params))


class Stacked(nnx.Module):
    """A stack whose copies are one at the other end."""

    def __init__(self, rngs):
        self.s = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs)))(rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


def test_one_layer_becomes_every_copy_of_a_stack():
    src = {"params/one/w": np.ones((3, 3), np.float32), "params/one/b": np.ones(3, np.float32)}
    src |= {"params/head/w": np.ones((3, 2), np.float32), "params/head/b": np.ones(2, np.float32)}
    dst = in_nnx(Stacked).spec
    plan = (Mapping.of(modules={"one": ["s/[0]", "s/[1]", "s/[2]"]}) | conventions("haiku", "nnx")).plan(src, dst)
    new = plan.forward(src)
    assert new["params/s/kernel"].shape == (3, 3, 3) and np.array_equal(
        plan.inverse(new)["params/one/w"], src["params/one/w"]
    )
