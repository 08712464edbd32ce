"""`grad` and `value_and_grad`: what they differentiate, and what survives the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Dense(br.Module):
    units: int = 2

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (x.shape[-1], self.units)))
        return jnp.tanh(x @ w + self.get("b", jnp.zeros, (self.units,)))


class Norm(br.Module):
    """As BatchNorm: writes a statistic in the forward pass."""

    def __call__(self, x):
        mean = self.get("mean", jnp.zeros, x.shape[-1:], kind=br.BatchStat)
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("mean", 0.9 * mean + 0.1 * x.mean(0))
        self.put("n", n + 1)
        return (x - x.mean(0)) * self.get("scale", jnp.ones, x.shape[-1:])


class Net(br.Module):
    def __init__(self):
        self.enc, self.norm, self.dec = Dense(), Norm(), Dense()

    def __call__(self, x):
        return self.dec(self.norm(self.enc(x)))

    def loss(self, x, y):
        return ((self(x) - y) ** 2).mean()

    def with_aux(self, x, y):
        out = self(x)
        return ((out - y) ** 2).mean(), {"out": out}


X = jax.random.normal(jax.random.key(0), (4, 3))
Y = jnp.ones((4, 2))
PARAMS = ["net/dec/b", "net/dec/w", "net/enc/b", "net/enc/w", "net/norm/scale"]


def made(net):
    return br.init(net.loss)({}, X, Y, seed=0)


def reference(net, state, paths):
    def loss(params):
        new, out = br.pure(net.loss)({**state, **params}, X, Y)
        return out, new

    return jax.value_and_grad(loss, has_aux=True)({path: state[path] for path in paths})


def targets(net):
    return {
        "module": (net, PARAMS),
        "submodule": (net.enc, ["net/enc/b", "net/enc/w"]),
        "path": ("net/enc/w", ["net/enc/w"]),
        "prefix": ("net/dec", ["net/dec/b", "net/dec/w"]),
        "list": ([net.enc, "net/dec/b"], ["net/dec/b", "net/enc/b", "net/enc/w"]),
        "nested and twice": ([net.enc, (net.enc, ["net/enc"])], ["net/enc/b", "net/enc/w"]),
        "set": ({"net/enc/w"}, ["net/enc/w"]),
    }


@pytest.mark.parametrize("name", targets(Net()))
@pytest.mark.parametrize("jitted", [False, True])
def test_gradients_with_respect_to(name, jitted):
    net = Net()
    state = made(net)
    target, paths = targets(net)[name]
    (expected, after), wanted = reference(net, state, paths)
    fn = br.pure(lambda x, y: br.grad(net.loss, target)(x, y))
    new, (loss, params, grads) = (jax.jit(fn) if jitted else fn)(state, X, Y)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert isinstance(grads, br.State) and list(grads) == list(params) == paths
    assert grads.kinds == params.kinds
    for path in paths:
        np.testing.assert_allclose(grads[path], wanted[path], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(params[path], state[path])
    assert new["net/norm/n"] == 1  # what the loss has written survives
    np.testing.assert_allclose(new["net/norm/mean"], after["net/norm/mean"], rtol=1e-6)


def test_with_respect_to_getm_and_its_keys():
    net = Net()
    state = made(net)
    for select in (lambda: net.enc.getm(), lambda: net.enc.getm().keys(), lambda: dict(net.enc.getm())):
        _, (_, _, grads) = br.pure(lambda s=select: br.grad(net.loss, s())(X, Y))(state)
        assert list(grads) == ["net/enc/b", "net/enc/w"]


def test_a_one_time_iterable_serves_every_call():
    net = Net()

    def fn():
        step = br.grad(net.loss, (path for path in ["net/enc/w"]))
        return step(X, Y)[2], step(X, Y)[2]

    _, (one, two) = br.pure(fn)(made(net))
    assert list(one) == list(two) == ["net/enc/w"]


def test_with_respect_to_arguments():
    net = Net()
    state = made(net)
    expected = jax.grad(lambda x: br.pure(net.loss)(state, x, Y)[1])(X)
    new, (_, x, grads) = br.pure(lambda: br.grad(net.loss, 0)(X, Y))(state)
    np.testing.assert_allclose(grads, expected, rtol=1e-5)
    assert x is X and new["net/norm/n"] == 1
    _, (_, both, grads) = br.pure(lambda: br.grad(net.loss, [0, 1])(X, Y))(state)
    assert len(both) == len(grads) == 2 and grads[1].shape == Y.shape
    _, (_, grads) = br.pure(lambda: br.value_and_grad(net.loss)(X, Y))(state)
    np.testing.assert_allclose(grads, expected, rtol=1e-5)


def test_aux():
    net = Net()
    state = made(net)
    _, (_, _, grads, aux) = br.pure(lambda: br.grad(net.with_aux, [net], has_aux=True)(X, Y))(state)
    assert aux["out"].shape == (4, 2) and list(grads) == PARAMS
    _, ((_, aux), grads) = br.pure(lambda: br.value_and_grad(net.with_aux, net, has_aux=True)(X, Y))(state)
    assert aux["out"].shape == (4, 2) and list(grads) == PARAMS


def test_what_does_not_exist_yet_is_created():
    net = Net()

    def train(x, y):
        _, params, grads = br.grad(net.loss, [net])(x, y)
        net.put(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return grads

    state = br.init(train)({}, X, Y, seed=0)
    assert all((state[path] == made(net)[path]).all() for path in state)
    losses = []
    step = jax.jit(br.pure(train))
    for _ in range(5):
        losses.append(br.pure(net.loss)(state, X, Y)[1])
        state, _ = step(state, X, Y)
    assert losses == sorted(losses, reverse=True) and state["net/norm/n"] == 5


def test_a_param_written_inside_the_loss_is_its_value_after_the_call():
    def loss():
        w = br.get("w", jnp.ones, ())
        br.context().write("w", w * 3)
        return w**2

    new, (_, params, grads) = br.pure(lambda: br.grad(loss, "w")())({"w": jnp.float32(2)})
    assert params["w"] == new["w"] == 6 and grads["w"] == 4


def test_targets_that_name_nothing():
    net = Net()
    state = made(net)
    with pytest.raises(br.MissingEntryError, match=r"'net/enx'.*has no entries.*Did you mean"):
        br.pure(lambda: br.grad(net.loss, ["net/enx"])(X, Y))(state)
    with pytest.raises(br.MissingEntryError, match=r"(?i)module Net.*has no entries.*initialise"):
        br.pure(lambda: br.grad(lambda: 1.0, [net])())({})
    with pytest.raises(br.MissingEntryError, match="none of them is a Param"):
        br.pure(lambda: br.grad(lambda: 1.0, "a")())(br.State({"a/b": jnp.ones(1)}, {"a/b": br.BatchStat}))
    with pytest.raises(br.MissingEntryError, match="names no state entries"):
        br.pure(lambda: br.grad(net.loss, [None])(X, Y))(state)
    with pytest.raises(br.MissingEntryError, match="nothing"):
        br.pure(lambda: br.grad(net.loss, [])(X, Y))(state)
    with pytest.raises(br.EntryShapeError, match=r"'net/norm/n' is int32\[\] and has no gradient"):
        br.pure(lambda: br.grad(net.loss, "net/norm/n")(X, Y))(state)


def test_gradients_of_gradients():
    def cube():
        return br.get("w", jnp.ones, ()) ** 3

    def slope():
        return br.value_and_grad(cube, "w")()[1]["w"]

    state = {"w": jnp.float32(2)}
    assert br.pure(lambda: br.grad(slope, "w")())(state)[1][2]["w"] == 12
    assert jax.grad(lambda s: br.pure(slope)(s)[1])(state)["w"] == 12


def test_keyword_arguments_and_integer_arguments():
    def loss(x, n, *, scale):
        return (x**n * scale * br.get("w", jnp.ones, ())).sum()

    _, (_, _, grads) = br.pure(lambda: br.grad(loss, "w")(X, 2, scale=3.0))({"w": jnp.ones(())})
    np.testing.assert_allclose(grads["w"], 3 * (X**2).sum(), rtol=1e-6)


def test_a_loss_that_is_no_scalar_is_an_error_of_jax():
    with pytest.raises(TypeError, match="scalar"):
        br.pure(lambda: br.grad(lambda: br.get("w", jnp.ones, 2), "w")())({"w": jnp.ones(2)})


def test_what_the_loss_does_not_read_is_no_target_over_a_plain_dictionary():
    class Unused(br.Module):
        def __call__(self, x):
            return x * self.get("mean", jnp.ones, (), kind=br.BatchStat)

    class Net(br.Module):
        def __init__(self):
            self.unused = Unused()

        def loss(self, x):
            return x * self.get("w", jnp.ones, ())

        def both(self, x):
            return self.unused(x) + self.loss(x)

        def step(self, x):
            return br.grad(self.loss, self)(x)

    net = Net()
    state = br.init(net.both)({}, 2.0)
    _, (_, params, _) = br.pure(net.step)(dict(state), 2.0)
    assert list(params) == ["net/w"]


class Lora(br.Param):
    pass


class Adapted(br.Module):
    def __call__(self, x):
        self.put("n", self.get("n", jnp.zeros, (), jnp.int32) + 1)
        mean = self.get("mean", jnp.ones, (), kind=br.BatchStat)
        return (x * self.get("w", jnp.ones, ()) * self.get("lora", jnp.ones, (), kind=Lora) * mean).sum()


@pytest.mark.parametrize(
    "targets, paths",
    [
        (br.Param, ["adapted/lora", "adapted/w"]),
        (Lora, ["adapted/lora"]),
        (br.Variable, ["adapted/lora", "adapted/mean", "adapted/w"]),  # what is floating
        (br.All(br.Param, br.Not(Lora)), ["adapted/w"]),
        (br.PathContains("mean"), ["adapted/mean"]),
        ([Lora, "adapted/mean"], ["adapted/lora", "adapted/mean"]),
    ],
    ids=repr,
)
def test_with_respect_to_kinds_and_filters(targets, paths):
    net, x = Adapted(), jnp.arange(3.0)
    fn = lambda x: br.grad(net, targets)(x)  # noqa: E731
    state = br.init(fn)({}, x)  # what does not exist yet is made first
    for given in (state, dict(state)):
        new, (_, params, grads) = br.pure(fn)(given, x)
        assert list(grads) == list(params) == paths and all(g == 3 for g in grads.values())
    assert new["adapted/n"] == 1


def test_a_filter_that_matches_nothing_floating():
    state = {f"adapted/{name}": jnp.ones(()) for name in ("w", "lora", "mean")} | {"adapted/n": 0}
    with pytest.raises(br.MissingEntryError, match=r"matches 0 of 4 entries"):
        br.pure(lambda: br.grad(Adapted(), br.Cache)(1.0))(state)
