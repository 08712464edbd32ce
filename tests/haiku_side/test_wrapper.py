"""HaikuModule and FromHaiku: every row of the table of what peers get wrong about Haiku, and what else can be."""

from __future__ import annotations

import copy
import functools
import threading

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br
from bridges import haiku_adapter as ha
from bridges._haiku import _frame
from bridges.haiku_adapter import FromHaiku, HaikuModule
from tests.haiku_side.models import IMAGES, Autoencoder, X, below, drop, native, norm, randomise, same, transformer


def primitives(jaxpr):
    """The names of all primitives in a jaxpr, inner ones included."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from primitives(getattr(inner, "jaxpr", inner))


def draws(fn, *args):
    """Whether the jaxpr of a function has any random operation."""
    return any(n.startswith(("random_", "threefry")) for n in primitives(jax.make_jaxpr(fn)(*args).jaxpr))


def trace(net, state, *args, **kwargs):
    """Traces a call of a wrapper over a state, for its errors: nothing is computed."""
    fn = lambda state: br.pure(net)(state, *args, **kwargs)  # noqa: E731
    return jax.eval_shape(fn, dict(state))


def forbidden(*_):
    raise AssertionError("An initialiser was traced.")


# The rows of peers.md --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "f", "x"),
    [
        (lambda: HaikuModule(hk.nets.MLP, [8, 3]), lambda x: hk.nets.MLP([8, 3])(x), X),
        (lambda: HaikuModule(hk.nets.ResNet18, 4), lambda x: hk.nets.ResNet18(4)(x, True), IMAGES),
        (lambda: HaikuModule(transformer), transformer, IMAGES[0]),
    ],
    ids=["mlp", "resnet", "transformer"],
)
def test_peers_haiku_module_whose_names_hold_tilde(make, f, x):
    args = (x, True) if x is IMAGES else (x,)
    net = make()
    want = jax.eval_shape(lambda: hk.transform_with_state(f).init(0, x))
    shapes = jax.eval_shape(lambda: br.init(net)({}, *args, seed=0))
    assert [*shapes] == [*below(net.path, *want)]
    assert {p: v.shape for p, v in shapes.items()} == {p: v.shape for p, v in below(net.path, *want).items()}


@pytest.mark.parametrize("seed", [3, jax.random.PRNGKey(3), jax.random.key(3)], ids=["int", "old", "typed"])
@pytest.mark.parametrize("f", [norm, drop, transformer], ids=lambda f: f.__name__)
def test_peers_init_of_a_wrapper_gives_exactly_the_native_init_values(f, seed):
    x = IMAGES[0] if f is transformer else X
    state = br.init(HaikuModule(f))({}, x, seed=seed)
    assert same(state, below(f.__name__, *hk.transform_with_state(f).init(seed, x)))


def test_init_values_of_a_part_depend_on_its_path_only():
    class Net(br.Module):
        def __init__(self, before=False):
            self.before = HaikuModule(hk.Linear, 2) if before else None
            self.a, self.b = HaikuModule(hk.Linear, 2), HaikuModule(hk.Linear, 2)

        def __call__(self, x):
            x = self.before(x) if self.before else x
            return self.a(x), self.b(x)

    one, two = (br.init(Net(before, name="net"))({}, jnp.ones((1, 2)), seed=0) for before in (False, True))
    assert not np.allclose(one["net/a/params/linear/w"], one["net/b/params/linear/w"])
    assert same({p: two[p] for p in one}, one)


def test_peers_haiku_state_is_written_back():
    net = HaikuModule(norm)
    state = randomise(br.init(net)({}, X, seed=0))
    f = hk.transform_with_state(norm)
    for step in range(3):
        new, out = br.pure(net)(state, X + step)
        want, want_state = f.apply(*native("norm", state), None, X + step)
        assert same(out, want)
        assert same(new, below("norm", native("norm", state)[0], want_state))
        assert new.kinds == state.kinds
        state = new
    kept, out = br.pure(net)(state, X, False)
    assert same(kept, state)
    assert same(out, f.apply(*native("norm", state), None, X, False)[0])


def test_kinds_of_entries():
    state = br.init(HaikuModule(norm))({}, X, seed=0)
    params, stats = state.partition(br.Param, br.BatchStat)
    assert len(params) == 4
    assert len(stats) == 6


@pytest.mark.parametrize("with_state", [True, False])
def test_peers_multi_transform(with_state):
    def multi():
        encoder, decoder = hk.Linear(2, name="encoder"), hk.Linear(6, name="decoder")
        return lambda x: decoder(encoder(x)), {"encode": encoder, "decode": decoder}

    native_ = (hk.multi_transform_with_state if with_state else hk.multi_transform)(multi)
    net = HaikuModule(native_, name="net")
    state = br.init(net)({}, X, seed=0)  # by the template
    params = native_.init(0, X)
    assert same(state, below("net", *params) if with_state else below("net", params))
    z = br.pure(net.encode)(state, X)[1]
    assert same(z, br.pure(net)(state, X, method="encode")[1])
    want = native_.apply["encode"](*params, None, X)[0] if with_state else native_.apply["encode"](params, None, X)
    assert same(z, want)
    assert br.pure(net.decode)(state, z)[1].shape == (4, 6)
    with pytest.raises(br.FieldError, match=r"several functions.*'decode', 'encode'"):
        br.pure(net)(state, X)

    # Each method initialises what it needs.
    first = br.init(net.encode)({}, X, seed=1)
    assert [*first] == ["net/params/encoder/b", "net/params/encoder/w"]
    both = br.init(net.decode)(first, z, seed=1)
    assert same({p: both[p] for p in first}, dict(first))
    assert [*both] == [*state]
    assert same({p: v for p, v in both.items() if p not in first}, {p: v for p, v in both.items() if "decoder" in p})


def test_multi_transform_of_a_tuple_is_reached_by_index():
    native_ = hk.multi_transform(lambda: (lambda x: hk.Linear(2)(x), (lambda x: hk.Linear(2)(x), lambda x: x + 1)))
    net = HaikuModule(native_, name="net")
    state = br.init(net)({}, X, seed=0)
    assert same(br.pure(net)(state, X, method=1)[1], X + 1)
    assert br.pure(net)(state, X, method="0")[1].shape == (4, 2)


def test_peers_several_methods_of_one_class():
    net = HaikuModule(Autoencoder, 3, name="net")
    state = br.init(net)({}, X, seed=0)
    f = hk.transform(lambda x: Autoencoder(3)(x))
    assert same(state, below("net", f.init(0, X)))

    def multi():
        module = Autoencoder(3)
        return module, (module.encode, module.decode)

    many = hk.multi_transform(multi)
    params = many.init(0, X)
    assert same(state, below("net", params))
    z = br.pure(net.encode)(state, X)[1]
    assert same(z, many.apply[0](params, None, X))
    assert same(br.pure(net.decode)(state, z)[1], many.apply[1](params, None, z))
    assert same(br.pure(net)(state, X, method="encode")[1], z)


def test_peers_init_by_one_method_then_call_another():
    net = HaikuModule(Autoencoder, 3, name="net")
    encode = hk.transform(lambda x: Autoencoder(3).encode(x))
    first = br.init(net.encode)({}, X, seed=5)
    assert same(first, below("net", encode.init(5, X)))
    both = br.init(net.decode)(first, jnp.ones((4, 2)), seed=5)
    assert same({p: both[p] for p in first}, dict(first))  # nothing is made anew
    assert {*both} - {*first} == {"net/params/autoencoder/~decode/linear/b", "net/params/autoencoder/~decode/linear/w"}
    whole = br.init(net)(both, X, seed=9)
    assert same(whole, both)
    with pytest.raises(br.MissingEntryError, match="net/params/autoencoder/~decode/linear/w"):
        br.pure(net)(first, X)


def test_methods_that_initialise_one_after_the_other_draw_different_numbers():
    class Pair(hk.Module):
        def one(self, x):
            return hk.Linear(6)(x)

        def two(self, x):
            return hk.Linear(6)(x)

    net = HaikuModule(Pair, name="net")
    state = br.init(net.two)(br.init(net.one)({}, X, seed=0), X, seed=0)
    assert not np.allclose(state["net/params/pair/~one/linear/w"], state["net/params/pair/~two/linear/w"])


def test_property_and_unknown_method():
    net = HaikuModule(Autoencoder, 3, name="net")
    state = br.init(lambda: net.table)({}, seed=0)
    assert [*state] == ["net/params/autoencoder/~/embed/embeddings"]
    assert br.pure(lambda: net.table)(state)[1].shape == (5, 3)
    with pytest.raises(AttributeError, match=r"no method 'encoed'; it has 'decode', 'encode', 'table'.*Did you mean"):
        _ = net.encoed
    with pytest.raises(br.FieldError, match=r"no method 'nope'"):
        br.pure(net)(state, X, method="nope")
    assert not hasattr(net, "nope")
    copy.copy(net)


def test_the_wrappers_own_names_win():
    class Greedy(hk.Module):
        def get(self, x):
            return hk.Linear(2)(x)

    net = HaikuModule(Greedy, name="net")
    assert br.init(lambda x: net(x, method="get"))({}, X, seed=0)["net/params/greedy/~get/linear/w"].shape == (6, 2)
    assert net.get.__func__ is br.Module.get
    with pytest.raises(br.FieldError, match="cannot be called"):
        br.init(net)({}, X, seed=0)


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
@pytest.mark.parametrize("without_rng", [False, True])
def test_peers_an_already_transformed_haiku_function(transform, without_rng):
    f = lambda x: hk.Linear(3)(x)  # noqa: E731
    part = transform(f)
    part = hk.without_apply_rng(part) if without_rng else part
    net = HaikuModule(part, name="net")
    state = br.init(net)({}, X, seed=0)
    assert same(state, below("net", hk.transform(f).init(0, X)))
    fresh = HaikuModule(part, name="net")
    assert same(br.pure(fresh)(state, X)[1], hk.transform(f).apply(native("net", state)[0], None, X))
    assert not draws(lambda s, key: br.pure(HaikuModule(part, name="net"))(s, X, seed=key), state, jax.random.key(0))


def test_a_pair_of_functions_made_by_hand():
    inner = hk.transform_with_state(lambda x: hk.dropout(hk.next_rng_key(), 0.5, norm(x)))
    pair = hk.TransformedWithState(
        lambda rng, x: inner.init(rng, x), lambda params, state, rng, x: inner.apply(params, state, rng, 2 * x)
    )
    net = HaikuModule(pair, name="net")
    state = br.init(net)({}, X, seed=0)
    assert same(state, below("net", *inner.init(0, X)))
    new, out = br.pure(net)(state, X, seed=5)
    want, want_state = pair.apply(*native("net", state), jax.random.key(5), X)
    assert same(out, want)
    assert same(new, below("net", native("net", state)[0], want_state))
    with pytest.raises(br.SeedError, match="'net' draws"):
        br.pure(net)(state, X)


def test_peers_deterministic_haiku_net_without_a_seed():
    net = HaikuModule(transformer)
    x = IMAGES[0]
    state = br.init(net)({}, x, seed=0)
    assert not draws(lambda s: br.pure(net)(s, x), state)
    assert not draws(lambda s, key: br.pure(net)(s, x, seed=key), state, jax.random.key(0))  # no dead draw either
    zeros = HaikuModule(lambda: hk.get_parameter("w", [2], init=jnp.zeros), name="zeros")
    assert [*br.init(zeros)({})] == ["zeros/params/~/w"]


def test_net_that_draws_without_a_seed():
    class Net(br.Module):
        def __init__(self):
            self.drop = HaikuModule(drop)

        def __call__(self, x):
            return self.drop(x)

    with pytest.raises(br.SeedError, match=r"'net/drop' draws random numbers to initialise itself(.|\n)*seed=0"):
        br.init(Net())({}, X)
    state = br.init(Net())({}, X, seed=0)
    with pytest.raises(br.SeedError, match=r"'net/drop' draws random numbers in its call(.|\n)*seed=0") as caught:
        br.pure(Net())(state, X)
    assert "PRNGKey" in str(caught.value.__cause__)


def test_streams():
    net = HaikuModule(drop)
    state = br.init(net)({}, X, seed={"params": 0})
    assert same(state, br.init(net)({}, X, seed=0))
    want = hk.transform(drop).apply(native("drop", state)[0], jax.random.key(5), X)
    for seed in (5, {"default": 5}, {"dropout": 5}, {"params": 1, "noise": 5}):
        assert same(br.pure(net)(state, X, seed=seed)[1], want)


def test_maybe_next_rng_key_sees_a_seed_that_was_given():
    f = lambda x: x if (key := hk.maybe_next_rng_key()) is None else x + jax.random.normal(key)  # noqa: E731
    net = HaikuModule(f, name="net")
    assert same(br.pure(net)({}, X)[1], X)
    assert same(br.pure(net)({}, X, seed=1)[1], hk.transform(f).apply({}, jax.random.key(1), X))


def test_peers_fresh_wrapper_over_loaded_state_traces_no_initialiser_and_needs_no_seed():
    f = hk.transform_with_state(norm)
    state = below("net", *f.init(0, X))

    def strict(x, is_training):
        x = hk.Linear(3, w_init=forbidden, b_init=forbidden)(x)
        return hk.BatchNorm(True, True, 0.9, scale_init=forbidden, offset_init=forbidden)(x, is_training)

    for is_training in (True, False):
        net = HaikuModule(strict, name="net")
        new, out = br.pure(net)(state, X, is_training)
        want, want_state = f.apply(*native("net", state), None, X, is_training)
        assert same(out, want)
        assert same(new, below("net", native("net", state)[0], want_state))
        assert not draws(lambda s, t=is_training: br.pure(HaikuModule(strict, name="net"))(s, X, t), state)
        broken = dict(state)
        del broken["net/params/linear/w"]
        with pytest.raises(br.MissingEntryError):  # and not the AssertionError of the initialiser
            br.pure(HaikuModule(strict, name="net"))(broken, X, is_training)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_peers_missing_extra_or_misshapen_entry(is_training, warm):
    net = HaikuModule(norm, name="net")
    state = br.init(net)({}, X, seed=0) if warm else below("net", *hk.transform_with_state(norm).init(0, X))

    def run(entries):
        return trace(net if warm else HaikuModule(norm, name="net"), entries, X, is_training)

    def without(path):
        return {p: v for p, v in state.items() if p != path}

    for path in ("net/params/linear/w", "net/state/batch_norm/~/mean_ema/average"):
        with pytest.raises(br.MissingEntryError, match=rf"missing '{path}'.*float32(.|\n)*bridges.init"):
            run(without(path))
        with pytest.raises(br.EntryShapeError, match=rf"'{path}' is float32\[1,1\] and must be float32\[\d,3\]"):
            run({**state, path: jnp.ones((1, 1))})
    with pytest.raises(br.StructureError, match=r"unexpected 'net/params/linear_1/w'"):
        run({**state, "net/params/linear_1/w": jnp.ones(3)})
    with pytest.raises(br.StructureError, match=r"unexpected 'net/kernel'"):
        run({**state, "net/kernel": jnp.ones(3)})
    renamed = {**without("net/params/linear/w"), "net/params/linear/weight": state["net/params/linear/w"]}
    with pytest.raises(br.MissingEntryError, match=r"missing(.|\n)*linear/weight(.|\n)*unexpected"):
        run(renamed)
    run(state)


def test_every_problem_is_listed_at_once():
    state = below("net", hk.transform(lambda x: hk.nets.MLP([8, 3])(x)).init(0, X))
    broken = dict(state)
    del broken["net/params/mlp/~/linear_0/w"], broken["net/params/mlp/~/linear_1/w"]
    with pytest.raises(br.MissingEntryError, match=r"linear_0/w(.|\n)*linear_1/w"):
        br.pure(HaikuModule(hk.nets.MLP, [8, 3], name="net"))(broken, X)


def test_left_over_entries_of_a_class_with_several_methods_may_be_another_methods():
    net = HaikuModule(Autoencoder, 3, name="net")
    state = br.init(net)({}, X, seed=0)
    fresh = HaikuModule(Autoencoder, 3, name="net")
    br.pure(fresh.encode)(state, X)
    with pytest.raises(br.EntryShapeError, match="first/w"):
        br.pure(fresh.encode)({**state, "net/params/autoencoder/~/first/w": jnp.ones((5, 3))}, X)


def test_an_error_of_the_net_itself_comes_through():
    def bad(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        br.pure(HaikuModule(bad))({}, X)


def test_peers_wrapper_in_a_wrapper_in_a_wrapper():
    class Inner(br.Module):
        def __init__(self):
            self.mlp = HaikuModule(hk.nets.MLP, [3])

        def __call__(self, x):
            return self.mlp(x)

    class Middle(br.Module):
        def __init__(self):
            self.inner, self.bn = Inner(), HaikuModule(norm)

        def __call__(self, x):
            return self.bn(self.inner(x))

    class Net(br.Module):
        def __init__(self):
            self.middle = Middle()

        def __call__(self, x):
            return self.get("head", FromHaiku(hk.Linear), 2)(self.middle(x))

    net = Net()
    state = br.init(net)({}, X, seed=0)
    assert "net/middle/inner/mlp/params/mlp/~/linear_0/w" in state
    new, out = br.pure(net)(state, X)
    h = hk.transform(lambda x: hk.nets.MLP([3])(x)).apply(native("net/middle/inner/mlp", state)[0], None, X)
    h, _ = hk.transform_with_state(norm).apply(*native("net/middle/bn", state), None, h)
    assert same(out, hk.transform(lambda x: hk.Linear(2)(x)).apply(native("net/head", state)[0], None, h))
    assert not same(new, state)


def test_wrapper_called_inside_of_another_wrappers_haiku_code():
    inner = HaikuModule(norm, name="inner")

    def outside(x):
        x = inner(hk.Linear(6)(x))
        return hk.Linear(3)(x)

    outer = HaikuModule(outside, name="outer")
    state = br.init(outer)({}, X, seed=0)
    assert {p.split("/params/")[-1] for p in state if "/params/" in p} >= {"linear/w", "linear_1/w", "batch_norm/scale"}
    prefix = next(p for p in state if "batch_norm/scale" in p).split("/params/")[0]
    out = br.pure(outer)(state, X)[1]

    def whole(x):
        y = hk.Linear(6)(x)
        y, _ = hk.transform_with_state(norm).apply(*native(prefix, state), None, y)
        return hk.Linear(3)(y)

    assert same(
        out,
        hk.transform(whole).apply(
            native("outer", {p: v for p, v in state.items() if not p.startswith(prefix + "/")})[0], None, X
        ),
    )
    broken = {p: v for p, v in state.items() if p != prefix + "/params/batch_norm/scale"}
    with pytest.raises(br.MissingEntryError, match=prefix + "/params/batch_norm/scale"):
        br.pure(outer)(broken, X)


def test_modules_made_inside_of_haiku_code_have_their_effects_once():
    class Counter(br.Module):
        def __call__(self):
            n = self.get("n", jnp.zeros, (), jnp.int32)
            self.put("n", n + 1)
            return n

    def f(x):
        n = Counter()()
        hk.set_state("empty", ())
        return hk.Linear(2)(HaikuModule(hk.Linear, 3)(x)) + n

    net = HaikuModule(f, name="net")
    state = br.init(net)({}, X, seed=0)
    names = [
        "net/counter/n",
        *(f"net/linear/params/linear/{w}" for w in "bw"),
        *(f"net/params/linear/{w}" for w in "bw"),
    ]
    assert [*state] == names
    assert state["net/counter/n"] == 0
    assert br.pure(net)(state, X)[0]["net/counter/n"] == 1
    assert br.pure(net)({}, X, seed=0, create=True)[0]["net/counter/n"] == 1
    part = {p: v for p, v in state.items() if p != "net/params/linear/w"}
    assert br.pure(net)(part, X, seed=0, create=True)[0]["net/counter/n"] == 1
    with pytest.raises(br.StructureError, match="unexpected 'net/other/n'"):
        br.pure(net)(state | {"net/other/n": jnp.ones(())}, X)


def test_peers_two_threads_tracing_at_once():
    nets = [HaikuModule(norm, name="net"), HaikuModule(hk.nets.MLP, [8, 3], name="net")]
    states = [br.init(net)({}, X, seed=0) for net in nets]
    wants = [br.pure(net)(state, X)[1] for net, state in zip(nets, states, strict=True)]
    failures = []

    def work(i):
        try:
            for _ in range(50):
                fresh = nets[i] if i % 2 else HaikuModule(norm, name="net")
                if not same(br.pure(fresh)(states[i], X)[1], wants[i]):
                    failures.append(i)
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures


# Names -----------------------------------------------------------------------------------------------------------------


def test_names_and_ways_to_make_a_wrapper():
    Linear = FromHaiku(hk.Linear)

    class Net(br.Module):
        def __init__(self):
            self.enc = HaikuModule(hk.nets.MLP, [4])

        def __call__(self, x):
            x = self.get("h1", Linear, 5)(self.enc(x))
            x = self.get("h2", functools.partial(HaikuModule, hk.Linear), 6)(x)
            x = self.get("h3", HaikuModule, functools.partial(hk.Linear, name="inside"), 7)(x)
            return Linear(8, name="h4")(Linear(8)(x))

    state = br.init(Net())({}, X, seed=0)
    assert [p for p in state if p.endswith("w")] == [
        "net/enc/params/mlp/~/linear_0/w",
        "net/h1/params/linear/w",
        "net/h2/params/linear/w",
        "net/h3/params/inside/w",
        "net/h4/params/linear/w",
        "net/linear/params/linear/w",
    ]
    assert same(br.pure(Net())(state, X)[1], br.pure(Net())(state, X)[1])
    assert HaikuModule(hk.nets.ResNet18, 3).name == "res_net18"
    assert HaikuModule(norm).name == "norm"
    assert HaikuModule(hk.transform(norm)).name == "norm"


def test_one_instance_shared_has_one_set_of_entries():
    class Net(br.Module):
        def __init__(self):
            self.a = self.b = HaikuModule(hk.Linear, 6)

        def __call__(self, x):
            return self.b(self.a(x))

    state = br.init(Net())({}, X, seed=0)
    assert [*state] == ["net/a/params/linear/b", "net/a/params/linear/w"]


def test_wrong_constructions():
    with pytest.raises(br.FieldError, match=r"Only an hk\.Module class"):
        HaikuModule(norm, 3)
    with pytest.raises(br.UnsupportedError, match="compiled"):
        HaikuModule(jax.jit(norm))
    with pytest.raises(br.UnsupportedError, match="no Haiku model"):
        FromHaiku(3)


# Structures inside -----------------------------------------------------------------------------------------------------


def scan(x):
    bn, cell = hk.BatchNorm(True, True, 0.9), hk.Linear(6)

    def body(carry, _):
        return bn(cell(carry), True), None

    return hk.scan(body, x, None, length=3)[0]


def remat(x):
    bn = hk.BatchNorm(True, True, 0.9)
    return hk.remat(lambda x: bn(x, True))(hk.remat(hk.Linear(6))(x))


def cond(x):
    a, b = hk.Linear(6, name="a"), hk.Linear(6, name="b")
    if hk.running_init():
        return a(x) + b(x)
    return hk.cond(x.sum() > 0, a, b, x)


def lifted(x):
    init, updater = hk.lift_with_state(hk.transform_with_state(norm).init, name="lifted")
    params, state = init(hk.next_rng_key() if hk.running_init() else None, x)
    out, state = hk.transform_with_state(norm).apply(params, state, None, x)
    updater.update(state)
    return out


def ensemble(x):
    member = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
    init = hk.lift(jax.vmap(member.init, in_axes=(0, None)), name="ensemble")
    params = init(hk.next_rng_keys(3) if hk.running_init() else None, x)
    return jax.vmap(member.apply, in_axes=(0, None, None))(params, None, x)


def stack(x):
    return hk.layer_stack(3)(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), True))(x)


def tied(x):
    layer = hk.Linear(6)
    return layer(layer(x)) + hk.get_parameter("free", [6], init=jnp.ones)


def scoped(x):
    with hk.name_scope("a/b"):
        x = hk.Linear(6)(x)
    with hk.name_scope("foo", method_name="bar"):
        return hk.Linear(6)(x)


def recurrent(x):
    core = hk.LSTM(5)
    return hk.dynamic_unroll(core, x[:, None], core.initial_state(1))[0]


def carry(x):
    """Haiku state that is a tree, and an empty tree."""
    count, total = hk.get_state("carry", (), init=lambda *_: (jnp.zeros((), jnp.int32), {"total": jnp.zeros(6)}))
    hk.set_state("carry", (count + 1, {"total": total["total"] + x.sum(0)}))
    hk.set_state("empty", ())
    return hk.Linear(2)(x) + count


def mapped(x):
    return hk.vmap(hk.Linear(5), split_rng=False)(x)


@pytest.mark.parametrize(
    "f", [scan, remat, cond, lifted, ensemble, stack, tied, scoped, recurrent, carry, mapped], ids=lambda f: f.__name__
)
def test_structures_inside(f):
    transformed = hk.transform_with_state(f)
    params, state = transformed.init(0, X)
    mine = br.init(HaikuModule(f, name="net"))({}, X, seed=0)
    assert same(mine, below("net", params, state))
    mine = randomise(mine)
    params, state = ha.unflatten({p[4:]: v for p, v in mine.items()}, (params, state))
    want, want_state = jax.jit(transformed.apply)(params, state, None, X)
    loaded = br.State(dict(mine), mine.kinds)
    fresh = HaikuModule(f, name="net")
    first = jax.jit(br.pure(fresh)).trace(loaded, X)
    new, out = first.lower().compile()(loaded, X)
    assert same(out, want)
    assert same(new, below("net", params, want_state))
    if f is not carry:  # Of a tree in the state it is known only after an attempt, whose operations are dead.
        assert str(jax.make_jaxpr(br.pure(fresh))(loaded, X)) == str(first.jaxpr)
    with pytest.raises(br.StructureError, match="unexpected 'net/params/more/w'"):
        trace(HaikuModule(f, name="net"), {**loaded, "net/params/more/w": jnp.ones(())}, X)
    for path in loaded:
        with pytest.raises(br.MissingEntryError, match=f"missing '{path}'"):
            trace(HaikuModule(f, name="net"), {p: v for p, v in loaded.items() if p != path}, X)


def test_a_state_entry_made_in_apply():
    def f(x):
        if not hk.running_init():
            hk.set_state("last", x.sum())
        return hk.Linear(2)(x)

    net = HaikuModule(f, name="net")
    state = br.init(net)({}, X, seed=0)
    assert "net/state/~/last" in state
    new, _ = br.pure(net)(state, X + 1)
    assert new["net/state/~/last"] == (X + 1).sum()
    bare = {p: v for p, v in state.items() if "/state/" not in p}
    with pytest.raises(br.MissingEntryError, match="net/state/~/last"):
        br.pure(HaikuModule(f, name="net"))(bare, X)
    made, _ = br.pure(HaikuModule(f, name="net"))(bare, X, create=True)
    assert made["net/state/~/last"] == X.sum()


def test_creating_in_a_pure_call_updates_the_state_as_a_first_native_step():
    net = HaikuModule(norm, name="net")
    new, out = br.pure(net)({}, X, seed=0, create=True)
    f = hk.transform_with_state(norm)
    params, state = f.init(0, X)
    want, want_state = f.apply(params, state, None, X)
    assert same(out, want)
    assert same(new, below("net", params, want_state))
    kept, _ = br.pure(net)({}, X, seed=0, create=True, ignore=True)
    assert same(kept, below("net", params, state))


def test_init_fills_what_is_missing_and_keeps_what_is_there():
    whole = br.init(HaikuModule(norm, name="net"))({}, X, seed=0)
    part = {p: v for p, v in whole.items() if "batch_norm" not in p}
    filled = br.init(HaikuModule(norm, name="net"))(part, X, seed=1)
    assert [*filled] == [*whole]
    assert same({p: filled[p] for p in part}, part)
    assert same(filled["net/params/batch_norm/scale"], whole["net/params/batch_norm/scale"])


def test_custom_getters_and_mixed_precision_of_the_user():
    def f(x):
        with hk.custom_getter(lambda next_getter, value, context: next_getter(value.astype(jnp.bfloat16))):
            return hk.Linear(2)(x.astype(jnp.bfloat16))

    net = HaikuModule(f, name="net")
    state = br.init(net)({}, X, seed=0)
    assert same(state, below("net", hk.transform(f).init(0, X)))
    assert same(br.pure(net)(state, X)[1], hk.transform(f).apply(native("net", state)[0], None, X))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32], ids=str)
def test_dtype_of_params_and_state_follows_the_input(dtype):
    def f(x):
        x = hk.Linear(3, w_init=jnp.ones)(x)
        return hk.BatchNorm(True, True, 0.9)(x, True) if jnp.issubdtype(dtype, jnp.floating) else x

    x = X.astype(dtype)
    net = HaikuModule(f, name="net")
    state = br.init(net)({}, x, seed=0)
    params, rest = hk.transform_with_state(f).init(0, x)
    assert same(state, below("net", params, rest))
    assert state["net/params/linear/w"].dtype == dtype
    new, out = br.pure(net)(state, x)
    want, want_state = hk.transform_with_state(f).apply(params, rest, None, x)
    assert same(out, want)
    assert same(new, below("net", params, want_state))
    assert [v.dtype for v in ha.spec(f, x).entries.values()] == [v.dtype for v in ha.flatten(params, rest).values()]


def test_numpy_entries_and_inputs():
    state = {p: np.asarray(v) for p, v in br.init(HaikuModule(norm))({}, X, seed=0).items()}
    assert br.pure(HaikuModule(norm))(state, np.asarray(X))[1].shape == (4, 3)


# What is private ---------------------------------------------------------------------------------------------------------


def test_private_api_of_haiku_is_as_in_0_0_17():
    hk.transform_with_state(pins).init(None)


def pins():
    assert _frame.sequence() is None
    drawn = []
    manager, missing = _frame.private_haiku(lambda: drawn.append(1) or jax.random.key(1))
    with pytest.raises(missing, match="non-None PRNGKey"):
        hk.next_rng_key()
    with manager:
        assert _frame.sequence() is not None
        assert not drawn
        assert (
            jax.random.key_data(hk.next_rng_key()) == jax.random.key_data(next(hk.PRNGSequence(jax.random.key(1))))
        ).all()
        hk.next_rng_keys(3)
        hk.reserve_rng_keys(2)
        assert hk.scan(lambda c, _: (c + jax.random.normal(hk.next_rng_key()), None), 0.0, None, length=2)[0] != 0
    assert len(drawn) == 1
    with pytest.raises(ValueError, match=r"perhaps set an init function\?"):
        hk.get_state("none")


def test_a_call_that_does_not_train_makes_the_state_of_batch_norm():
    """Haiku itself initialises no such call."""
    with pytest.raises(ValueError, match="set an init function"):
        hk.transform_with_state(norm).init(jax.random.key(0), X, False)
    net = br.HaikuModule(norm)
    state = br.init(net)({}, X, False, seed=0)
    assert set(state) == set(br.init(net)({}, X, True, seed=0))
    assert same(state["norm/params/linear/w"], br.init(net)({}, X, True, seed=0)["norm/params/linear/w"])
    assert br.pure(net)(state, X, False)[1].shape == (4, 3)
