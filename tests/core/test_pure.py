"""`pure`: the explicit form of a stateful function under every JAX transformation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Net(br.Module):
    def __call__(self, x, mode="a", *, scale=1.0):
        w = self.get("w", jnp.ones, (2,))
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("n", n + 1)
        assert mode in ("a", "b")
        return (w * x * scale).sum()

    def other(self, x):
        return self.get("v", jnp.ones, ()) * x


X = jnp.arange(2.0)


def made():
    return br.init(Net())({}, X)


def test_it_returns_state_and_output():
    state = made()
    new, out = br.pure(Net())(state, X)
    assert isinstance(new, br.State) and out == 1 and new["net/n"] == 1 and state["net/n"] == 0


def test_a_plain_dict_is_a_state():
    net = Net()
    plain = {path: np.asarray(value) for path, value in made().items()}
    assert type(br.pure(net)(plain, X)[0]) is br.State
    assert jax.jit(br.pure(net))(plain, X)[0]["net/n"] == 1
    assert br.jit(net)(plain, X)[0]["net/n"] == 1
    assert set(br.init(net)(plain, X)) == set(plain)
    assert type(plain["net/n"]) is np.ndarray and plain["net/n"] == 0


def test_python_numbers_are_entries_too():
    state, out = br.pure(Net())({"net/w": np.ones(2), "net/n": 0}, X)
    assert state["net/n"] == 1 and out == 1


def test_a_nested_dict_is_refused_with_the_remedy():
    with pytest.raises(br.StructureError, match=r"'net' is a dict.*flatten"):
        br.pure(Net())({"net": {"w": X}}, X)
    with pytest.raises(br.StructureError, match="first argument of a pure function is the state"):
        br.pure(Net())(X, X)


def test_jit_traces_once():
    count = 0

    def fn(x):
        nonlocal count
        count += 1
        return net(x)

    net, state = Net(), made()
    run = jax.jit(br.pure(fn))
    for _ in range(4):
        state, _ = run(state, X)
    assert count == 1 and state["net/n"] == 4


def test_arguments_by_name_and_number_keep_their_places_under_jit():
    state = made()
    for options in ({"static_argnames": "mode"}, {"static_argnums": 2}, {"static_argnames": ("mode",)}):
        run = jax.jit(br.pure(Net()), **options)
        assert run(state, X, "b")[1] == 1
        assert run(state, X, "b", scale=2.0)[1] == 2
    assert jax.jit(br.pure(Net()), static_argnames="mode")(state, X, mode="b")[1] == 1
    donated = jax.jit(br.pure(Net()), donate_argnums=0)
    new, _ = donated(state, X)
    assert state["net/w"].is_deleted() and not new["net/w"].is_deleted()


def test_it_is_differentiated_as_any_function():
    state = made()
    (loss, new), grads = jax.value_and_grad(lambda s, x: br.pure(Net())(s, x)[::-1], argnums=1, has_aux=True)(state, X)
    assert loss == 1 and new["net/n"] == 1
    np.testing.assert_array_equal(grads, [1, 1])
    params, rest = state.partition(br.Param, ...)
    grads = jax.grad(lambda p: br.pure(Net())(p.merge(rest), X)[1])(params)
    assert isinstance(grads, br.State)
    np.testing.assert_array_equal(grads["net/w"], X)


def test_it_is_mapped_over_states():
    states = jax.vmap(lambda seed: br.init(lambda: br.get("w", jax.random.normal, br.rng(), (2,)))({}, seed=seed))(
        jnp.arange(3)
    )
    assert states["w"].shape == (3, 2) and len(np.unique(states["w"])) == 6
    new, out = jax.vmap(br.pure(Net()), in_axes=(0, None))(jax.tree.map(lambda x: jnp.stack([x] * 3), made()), X)
    assert out.shape == (3,) and new["net/n"].shape == (3,)


def test_it_is_sharded():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    spec = jax.sharding.PartitionSpec

    def fn(x):
        n = br.get("n", jnp.zeros, ())
        br.context().write("n", n + 1)
        return jax.lax.pmean(x, "batch") + n

    run = jax.shard_map(br.pure(fn), mesh=mesh, in_specs=(spec(), spec("batch")), out_specs=(spec(), spec()))
    state, out = jax.jit(run)(br.State({"n": jnp.zeros(())}), X)
    assert state["n"] == 1
    np.testing.assert_array_equal(out, X)


def test_it_is_pmapped():
    state = jax.tree.map(lambda x: x[None], made())
    new, out = jax.pmap(br.pure(Net()), in_axes=(0, None))(state, X)
    assert out.shape == (1,) and new["net/n"][0] == 1


def test_permissions_by_keyword():
    net = Net()
    with pytest.raises(br.CreateError, match=r"'net/w' \(float32\[2\]\) does not exist and may not be created"):
        br.pure(net)({}, X)
    assert set(br.pure(net)({}, X, create=True)[0]) == {"net/w", "net/n"}
    with pytest.raises(br.PermissionsError, match=r"'net/n' may not be modified.*modify=False"):
        br.pure(net)(made(), X, modify=False)
    kept, _ = br.pure(net)(made(), X, ignore=True)
    assert kept["net/n"] == 0
    fresh, _ = br.pure(net)({}, X, create=True, ignore=True)
    assert fresh["net/n"] == 0


def test_methods_partials_lambdas_and_pure_itself():
    net = Net()
    state = br.init(net.other)(made(), 2.0)
    assert br.pure(net.other)(state, 2.0)[1] == 2
    assert br.pure(functools.partial(net.other, 3.0))(state)[1] == 3
    assert br.pure(lambda: net.other(4.0))(state)[1] == 4
    assert br.pure(br.pure(net.other))(state, 2.0)[1] == 2
    assert br.pure(br.jit(net.other))(state, 2.0)[1] == 2


def test_a_pure_function_inside_another_has_its_own_state():
    net = Net()
    inner = made()

    def fn(x):
        new, out = br.pure(net)(inner, x)
        assert "net/n" not in br.context() and new["net/n"] == 1
        return out + br.get("b", jnp.ones, ())

    assert br.pure(fn)({"b": jnp.ones(())}, X)[1] == 2


def test_flags_reach_every_module_and_are_part_of_the_program():
    def fn():
        with br.flags(depth=2):
            inner = br.flag("train", False), br.flag("depth")
        return inner, br.flag("depth", 0)

    assert br.pure(fn)({})[1] == ((False, 2), 0)
    assert br.pure(fn, flags={"train": True})({}, flags={"depth": 1})[1] == ((True, 2), 1)
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return x * (2 if br.flag("train") else 3)

    run = br.jit(step, static_argnums=())
    for _ in range(2):
        assert run({}, 1.0, flags={"train": True})[1] == 2 and run({}, 1.0)[1] == 3
    assert count == 2


def test_a_flag_that_cannot_be_hashed_is_passed_too():
    def step(x):
        return x * br.flag("sizes")[0]

    run = br.jit(step)
    for _ in range(2):
        assert run({}, 1.0, flags={"sizes": [3]})[1] == 3
        assert run({}, 1.0, flags={"sizes": [4]})[1] == 4

    def nested(x):
        return br.jit(step)(x)

    assert br.pure(nested)({}, 1.0, flags={"sizes": [5]})[1] == 5


def test_names_and_docs_are_those_of_the_function():
    def forward(x):
        """Goes forward."""

    assert br.pure(forward).__name__ == "forward" and br.pure(forward).__doc__ == "Goes forward."


def test_state_gives_everything_and_changes_nothing():
    def fn():
        br.get("w", jnp.ones, ())
        found = br.state()
        found["w"] = 0
        return br.state()

    assert br.pure(fn)({"w": jnp.ones(()), "v": jnp.ones(())})[1] == {"w": 1, "v": 1}


def test_intermediates_are_recorded_without_create_and_keep_one_structure():
    class Rec(br.Module):
        def __call__(self, x):
            self.put("seen", x * 2, kind=br.Intermediate)
            return x

    state, _ = br.pure(Rec())({}, X)
    assert state.kind("rec/seen") is br.Intermediate
    again, _ = br.pure(Rec())(state, X + 1)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    taken = again.pop(br.Intermediate)
    np.testing.assert_array_equal(taken["rec/seen"], (X + 1) * 2)
    assert len(again) == 0


def test_kinds_are_kept_through_a_step_and_declared_on_loaded_entries():
    class Calls(br.Variable):
        pass

    class Two(br.Module):
        def __call__(self):
            n = self.get("n", jnp.zeros, (), kind=Calls)
            m = self.get("m", jnp.zeros, (), kind=br.Param(axes=("x",)))
            self.put("n", n + 1)
            self.put("m", m + 1)

    state = br.init(Two())({})
    new, _ = jax.jit(br.pure(Two()))(state)
    assert new.kinds == state.kinds == {"two/n": Calls, "two/m": br.Param(axes=("x",))}
    loaded, _ = jax.jit(br.pure(Two()))({path: np.asarray(value) for path, value in state.items()})
    assert loaded.kinds == state.kinds


def test_flags_from_outside_are_given_to_the_call():
    with pytest.raises(br.ContextError, match=r"flags=\{'train': True\}"), br.flags(train=True):
        pass


def test_a_state_that_changes_during_a_call_is_the_one_that_the_call_was_given():
    state = br.State({"net/w": jnp.ones(2)}, {"net/w": br.Param})

    def grows():
        state["net/v"] = jnp.zeros(3)
        return br.context()["net/w"] * 2

    after, out = br.pure(grows)(state)
    assert list(after) == ["net/w"]
    np.testing.assert_array_equal(out, [2.0, 2.0])
    np.testing.assert_array_equal(after["net/w"], [1.0, 1.0])
