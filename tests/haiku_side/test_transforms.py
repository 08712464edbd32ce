"""Wrapped Haiku code under jit, grad, vmap, scan, while_loop, cond and checkpoint, and its compiled program."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

import bridges as br
from bridges.haiku_adapter import HaikuModule
from tests.haiku_side.models import IMAGES, X, below, drop, native, norm, randomise, same, transformer
from tests.hlo import compiled_lightly, opcodes

small_resnet = functools.partial(
    hk.nets.ResNet, [1] * 4, 3, bottleneck=False, channels_per_group=[4] * 4, use_projection=[True] * 4
)


class Net(br.Module):
    """Two wrapped parts, of which one has Haiku state."""

    def __init__(self):
        self.mlp, self.norm = HaikuModule(hk.nets.MLP, [5]), HaikuModule(norm)

    def __call__(self, x):
        return self.norm(self.mlp(x))

    def loss(self, x):
        return (self(x) ** 2).mean()


def plain(x):
    """The same as a single Haiku function."""
    return norm(hk.nets.MLP([5])(x))


def state_of(net):
    return randomise(br.init(net)({}, X, seed=0))


def as_native(state):
    """The variables of `Net` as those of `plain`."""
    pairs = [native("net/mlp", state), native("net/norm", state)]
    return {**pairs[0][0], **pairs[1][0]}, pairs[1][1]


def from_native(params, rest):
    mlp = {m: v for m, v in params.items() if m.startswith("mlp")}
    return below("net/mlp", mlp) | below("net/norm", {m: v for m, v in params.items() if m not in mlp}, rest)


plain_ = hk.transform_with_state(plain)


def test_jit():
    net = Net()
    state = br.jit(net)({}, X, seed=0)[0]
    assert [*state] == [*br.init(net)({}, X, seed=0)]
    state = state_of(net)
    new, out = br.jit(net)(state, X)
    want, want_state = jax.jit(plain_.apply)(*as_native(state), None, X)
    assert same(out, want)
    assert same(new, from_native(as_native(state)[0], want_state))


def test_grad_and_the_next_training_step():
    net = Net()
    state = state_of(net)

    def step(state, x):
        new, (loss, params, grads) = br.pure(lambda x: br.grad(net.loss, [net])(x))(state, x)
        return new, loss, params, grads

    def native_step(params, rest, x):
        def loss(params):
            out, new = plain_.apply(params, rest, None, x)
            return (out**2).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    new, loss, _, grads = jax.jit(step)(state, X)
    (want, want_state), want_grads = jax.jit(native_step)(*as_native(state), X)
    assert same(loss, want)
    assert same(dict(grads), dict(from_native(want_grads, {})))
    assert same(new, from_native(as_native(state)[0], want_state))


def test_pure_is_an_ordinary_function_for_jax():
    net = Net()
    state = state_of(net)
    params, rest = state.partition(br.Param, ...)
    grads = jax.grad(lambda params: br.pure(net.loss)(params | rest, X)[1])(params)
    want = jax.grad(lambda params: (plain_.apply(params, as_native(rest)[1], None, X)[0] ** 2).mean())(
        as_native(state)[0]
    )
    assert same(dict(grads), dict(from_native(want, {})))
    batched = jax.vmap(lambda x: br.pure(net)(state, x)[1])(jnp.stack([X, X + 1]))
    assert jnp.allclose(batched[1], br.pure(net)(state, X + 1)[1], atol=1e-5)  # batched matmuls sum in another order


def test_scan_carries_the_state():
    net = Net()
    state = state_of(net)
    xs = jnp.stack([X, X + 1, X + 2])
    new, outs = br.pure(lambda xs: br.scan(lambda carry, x: (carry, net(x)), 0, xs))(state, xs)

    def body(rest, x):
        out, rest = plain_.apply(as_native(state)[0], rest, None, x)
        return rest, out

    rest, wants = jax.lax.scan(body, as_native(state)[1], xs)
    assert same(outs[1], wants)
    assert same(new, from_native(as_native(state)[0], rest))


def test_scan_that_creates():
    net = Net()
    fn = lambda xs: br.scan(lambda carry, x: (carry, net(x)), 0, xs)  # noqa: E731
    state = br.init(fn)({}, jnp.stack([X, X + 1]), seed=0)
    assert [*state] == [*br.init(net)({}, X, seed=0)]


def test_vmap_shares_the_state():
    net = HaikuModule(hk.nets.MLP, [5], name="net")
    state = br.init(net)({}, X, seed=0)
    new, out = br.pure(lambda x: br.vmap(net)(x))(state, X)
    assert jnp.allclose(out, br.pure(net)(state, X)[1], atol=1e-6)  # one product for a matrix, or one for each row
    assert same(new, state)


def test_checkpoint():
    net = Net()
    state = state_of(net)

    def loss(x):
        return (br.checkpoint(net)(x) ** 2).mean()

    grad = lambda fn: jax.jit(lambda s: br.pure(lambda x: br.grad(fn, [net])(x))(s, X))(state)  # noqa: E731
    (new, (value, _, grads)), (want_new, (want, _, want_grads)) = grad(loss), grad(net.loss)
    assert jnp.allclose(value, want)
    assert all(jnp.allclose(grads[p], want_grads[p], atol=1e-6) for p in want_grads)
    assert all(jnp.allclose(new[p], want_new[p]) for p in want_new)
    assert "remat" in str(jax.make_jaxpr(lambda s: br.pure(loss)(s, X))(state)) or "checkpoint" in str(
        jax.make_jaxpr(lambda s: br.pure(loss)(s, X))(state)
    )


def test_cond_and_while_loop():
    net = Net()
    state = state_of(net)

    def fn(x):
        x = br.cond(x.sum() > 1e6, lambda x: net(x), lambda x: net(x + 1), x)
        return br.fori_loop(0, 2, lambda i, y: y + net(X).sum(), x)

    new, out = br.pure(fn)(state, X)
    rest = as_native(state)[1]
    want, rest = plain_.apply(as_native(state)[0], rest, None, X + 1)
    for _ in range(2):
        y, rest = plain_.apply(as_native(state)[0], rest, None, X)
        want = want + y.sum()
    assert jnp.allclose(out, want, atol=1e-5)  # compiled loop bodies fuse
    assert all(jnp.allclose(new[p], v, atol=1e-6) for p, v in from_native(as_native(state)[0], rest).items())


def test_draws_differ_between_iterations_and_agree_with_themselves():
    net = HaikuModule(drop, name="net")
    state = br.init(net)({}, X, seed=0)
    fn = lambda x: br.scan(lambda c, _: (c, net(x)), 0, None, length=3)[1]  # noqa: E731
    outs = br.pure(fn)(state, X, seed=1)[1]
    assert not (outs[0] == outs[1]).all()
    assert same(outs, br.pure(fn)(state, X, seed=1)[1])


def test_plain_jax_transformation_inside_is_refused():
    net = HaikuModule(norm, name="net")
    state = br.init(net)({}, X, seed=0)
    with pytest.raises(br.LeakError):
        br.pure(lambda x: jax.jit(net)(x))(state, X)


def test_batch_norm_across_replicas():
    f = lambda x: hk.BatchNorm(True, True, 0.9, cross_replica_axis="batch")(x, True)  # noqa: E731
    g = lambda x: hk.BatchNorm(True, True, 0.9)(x, True)  # noqa: E731
    state = br.init(HaikuModule(g, name="net"))({}, X, seed=0)
    out = jax.vmap(lambda x: br.pure(HaikuModule(f, name="net"))(state, x)[1], axis_name="batch")(X[:, None])
    assert jnp.allclose(out[:, 0], br.pure(HaikuModule(g, name="net"))(state, X)[1], atol=1e-6)


# The compiled step -------------------------------------------------------------------------------------------------------

STEPS = {
    "mlp": (functools.partial(hk.nets.MLP, [16, 3]), X, ()),
    "resnet": (small_resnet, IMAGES, (True,)),
    "transformer": (transformer, IMAGES[0], ()),
    "dropout": (lambda x: hk.dropout(hk.next_rng_key(), 0.5, norm(x)), X, ()),
}


def native_of(part):
    make = part if not (isinstance(part, functools.partial | type)) else lambda *a: part()(*a)
    return hk.transform_with_state(make)


@pytest.mark.parametrize("name", STEPS)
def test_compiled_step_is_the_native_one(name):
    part, x, args = STEPS[name]
    net = HaikuModule(part, name="net")
    transformed = native_of(part)
    params, rest = jax.eval_shape(lambda: transformed.init(0, x, *args))
    state = below("net", params, rest)
    key = jax.random.key(0) if name == "dropout" else None

    def wrapped(state, x, key):
        params, rest = state.partition(br.Param, ...)

        def loss(params):
            new, out = br.pure(net)(params | rest, x, *args, seed=key)
            return (out**2).mean(), new.filter(br.BatchStat)

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new, value

    def native_step(params, rest, x, key):
        def loss(params):
            out, new = transformed.apply(params, rest, key, x, *args)
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new, value

    mine, theirs = compiled_lightly(wrapped, state, x, key), compiled_lightly(native_step, params, rest, x, key)
    assert opcodes(mine) == opcodes(theirs)
    assert mine.cost_analysis()["flops"] == theirs.cost_analysis()["flops"]
