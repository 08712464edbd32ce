"""What may not be done, and what the error says: the path, what was there and what came, the remedy; at trace time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Net(br.Module):
    def __call__(self, value):
        self.get("w", jnp.zeros, (2, 3))
        self.put("w", value)
        return self.get("w")


STATE = {"net/w": np.zeros((2, 3), np.float32)}


def each_way(fn):
    """The function called, and only traced."""
    return [lambda s, *a: br.pure(fn)(s, *a), lambda s, *a: jax.eval_shape(br.pure(fn), s, *a)]


@pytest.mark.parametrize("run", each_way(Net()))
def test_creating_outside_of_init(run):
    with pytest.raises(
        br.CreateError,
        match=r"'net/w' \(float32\[2,3\]\) does not exist and may not be created here.*bridges\.init.*create=True",
    ):
        run({}, jnp.zeros((2, 3)))
    with pytest.raises(br.CreateError, match="Did you mean 'net/v'"):
        run({"net/v": jnp.zeros(1)}, jnp.zeros((2, 3)))


@pytest.mark.parametrize("run", each_way(Net()))
def test_writing_another_shape(run):
    with pytest.raises(
        br.EntryShapeError,
        match=r"'net/w' is float32\[2,3\] and was written with float32\[3,2\].*that shape, or initialise",
    ):
        run(STATE, jnp.zeros((3, 2)))


@pytest.mark.parametrize("run", each_way(Net()))
def test_writing_a_dtype_that_loses_more_than_precision(run):
    with pytest.raises(
        br.EntryShapeError, match=r"'net/w' is float32\[2,3\] and was written with complex64\[2,3\].*Cast"
    ):
        run(STATE, jnp.zeros((2, 3), jnp.complex64))
    with pytest.raises(br.EntryShapeError, match=r"int32\[2,3\] and was written with float32"):
        run({"net/w": np.zeros((2, 3), np.int32)}, jnp.zeros((2, 3)))
    with pytest.raises(br.EntryShapeError, match=r"key<fry>\[\]"):
        run({"net/w": jax.random.key(0)}, jnp.uint32(3))


@pytest.mark.parametrize(
    ("existing", "written"),
    [
        ("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("bfloat16", "float16"),
        ("float32", "int32"), ("int8", "int32"), ("complex64", "float32"), ("float8_e4m3fn", "float32"), ("int32", "bool"),
    ],
)  # fmt: skip
def test_a_cast_within_a_kind_of_number_keeps_the_dtype_of_the_entry(existing, written):
    new, out = br.pure(Net())({"net/w": jnp.zeros((2, 3), existing)}, jnp.ones((2, 3), written))
    assert new["net/w"].dtype == out.dtype == existing and (out == 1).all()


def test_reading_what_is_not_there():
    class Read(br.Module):
        def __call__(self):
            return self.get("w")

    for run in each_way(Read()):
        with pytest.raises(
            br.MissingEntryError, match=r"no state entry 'read/w'.*Did you mean 'read/v'.*bridges\.init"
        ):
            run({"read/v": jnp.ones(1)})
        with pytest.raises(KeyError):
            run({})


def test_writing_what_is_not_there():
    def fn(x):
        br.context().write("v", x)

    with pytest.raises(br.CreateError, match="'v'"):
        br.pure(fn)({}, jnp.ones(1))
    assert br.pure(fn)({}, jnp.ones(1), create=True)[0]["v"] == 1


def test_modifying_where_it_is_not_allowed():
    with pytest.raises(br.PermissionsError, match=r"'net/w' may not be modified here.*modify=True"):
        br.pure(Net())(STATE, jnp.zeros((2, 3)), modify=False)
    with pytest.raises(br.PermissionsError, match="may not be modified"):
        br.pure(lambda: br.scan(lambda c, x: (Net(name="net")(jnp.ones((2, 3))), x), jnp.ones((2, 3)), jnp.ones(2)))(
            STATE, modify=False
        )
    created, _ = br.pure(lambda: br.get("a", jnp.ones, ()))({}, create=True, modify=False)
    assert created["a"] == 1


def test_permissions_hold_inside_of_lifted_functions():
    for lift in (br.jit, br.checkpoint, lambda f: lambda: br.cond(True, f, f), lambda f: lambda: br.grad(f, "x")()):
        with pytest.raises(br.CreateError, match="'w'"):
            br.pure(lambda lift=lift: lift(lambda: br.get("w", jnp.ones, ()))())({"x": jnp.ones(())})


def test_the_tree_that_a_loaded_state_lacks_is_named():
    class Net(br.Module):
        def __call__(self):
            return self.get("t", lambda: {"a": jnp.ones(1), "b": jnp.ones(2)})

    with pytest.raises(br.CreateError, match=r"'net/t/a'"):
        br.pure(Net())({})
    with pytest.raises(br.StructureError, match=r"(?s)'net/t'.*missing 'b'.*unexpected 'c'"):
        br.pure(Net())({"net/t/a": jnp.ones(1), "net/t/c": jnp.ones(1)})
    with pytest.raises(br.EntryShapeError, match=r"'b': got float32\[3\], wanted float32\[2\]"):
        br.pure(Net())({"net/t/a": jnp.ones(1), "net/t/b": jnp.ones(3)})


def test_every_error_is_a_bridge_error_and_the_built_in_one():
    pairs = [
        (br.ContextError, RuntimeError), (br.MissingEntryError, KeyError), (br.CreateError, br.PermissionsError),
        (br.EntryShapeError, ValueError), (br.LeakError, RuntimeError), (br.SeedError, ValueError),
        (br.NamingError, ValueError), (br.FieldError, TypeError), (br.FieldError, AttributeError),
        (br.CollisionError, ValueError), (br.StructureError, ValueError), (br.UnsupportedError, NotImplementedError),
    ]  # fmt: skip
    for one, other in pairs:
        assert issubclass(one, br.BridgeError) and issubclass(one, other)
    assert str(br.MissingEntryError("plain text")) == "plain text"
