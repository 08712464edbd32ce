"""Typed hyperparameters."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Literal, Optional, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br

T = TypeVar("T")


class Net(br.Module):
    size: int
    rate: float = 0.5
    act: Callable = lambda x: x * 2
    name_of_norm: str | None = None
    depth: Optional[int] = None  # noqa: UP045
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    layers: list[int] = [1]
    table: dict[str, int] = {}
    anything: Any = None
    seq: Sequence[int] = ()
    count: ClassVar[int] = 7

    def __call__(self, x):
        return self.act(x) * self.size


class Wide(Net):
    rate = 0.25
    extra: int = 1


def test_values_defaults_and_inheritance():
    net = Net(size=3)
    assert (net.size, net.rate, net.mode, net.sizes, net.count) == (3, 0.5, "a", (1, 2), 7)
    wide = Wide(size=2, extra=5)
    assert (wide.size, wide.rate, wide.extra) == (2, 0.25, 5)
    assert Net(size=1).rate == 0.5 and Wide.rate == 0.25 and Net.rate == 0.5


def test_a_function_as_a_default_is_a_value_and_not_a_method():
    assert Net(size=3).act(2) == 4
    assert br.pure(Net(size=3))({}, 2)[1] == 12

    class Tanh(Net):
        act = jnp.tanh

    class Other(Net):
        act = lambda x: x + 100  # noqa: E731

    assert Tanh(size=1).act(0.0) == 0
    assert Other(size=1).act(1) == 101


def test_a_missing_one_is_named():
    with pytest.raises(br.FieldError, match=r"Net needs the hyperparameter 'size': Net\(size=…\)"):
        Net()


def test_an_unknown_one_is_named_with_what_there_is():
    with pytest.raises(
        br.FieldError, match=r"(?s)no such arguments: .*'rat'.*Did you mean 'rate'.*Hyperparameters: size"
    ):
        Net(size=1, rat=0.1)


def test_they_are_keyword_only():
    with pytest.raises(br.FieldError, match="positional"):
        Net(3)


def test_a_missing_argument_of_init_is_named():
    class Own(br.Module):
        def __init__(self, units):
            self.units = units

    with pytest.raises(br.FieldError, match="units"):
        Own()
    assert Own(3).units == 3 and Own(units=3).units == 3


def test_a_type_error_inside_init_stays_what_it_is():
    class Own(br.Module):
        def __init__(self, units):
            len(units)

    with pytest.raises(TypeError, match="has no len"):
        Own(3)


@pytest.mark.parametrize(
    "given",
    [
        {"size": "3"}, {"size": 1.5}, {"rate": "x"}, {"rate": True}, {"mode": "c"}, {"sizes": (1, "a")}, {"sizes": [1]},
        {"layers": ["a"]}, {"table": []}, {"name_of_norm": 3}, {"depth": "x"}, {"act": 3}, {"seq": ["a"]}, {"size": None},
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused(given):
    (name,) = given
    with pytest.raises(br.FieldError, match=rf"Net\.{name} must be of type .*; got"):
        Net(**{"size": 1, **given})


@pytest.mark.parametrize(
    "given",
    [
        {"size": np.int64(3)}, {"rate": 1}, {"rate": np.float32(1)}, {"mode": "b"}, {"sizes": ()}, {"layers": []},
        {"table": {"a": 1}}, {"name_of_norm": "x"}, {"depth": 3}, {"depth": None}, {"act": jax.nn.relu}, {"seq": [1]},
        {"anything": object()}, {"act": Net},
    ],
)  # fmt: skip
def test_a_right_type_passes(given):
    Net(**{"size": 1, **given})


def test_they_are_read_only():
    net = Net(size=1)
    with pytest.raises(br.FieldError, match=r"Net\.size is a hyperparameter and read-only"):
        net.size = 2
    with pytest.raises(AttributeError):
        net.size = 2
    with pytest.raises(AttributeError):
        del net.size
    assert net.size == 1


def test_a_name_that_every_module_has_cannot_be_one():
    for reserved in ("name", "path", "get", "put"):
        with pytest.raises(br.FieldError, match=f"'{reserved}'"):
            type("Bad", (br.Module,), {"__annotations__": {reserved: str}})


def test_generic_modules_and_local_types():
    class Local:
        pass

    class Typed(br.Module, Generic[T]):
        value: T = None  # type: ignore[assignment]
        local: Local = None  # type: ignore[assignment]
        unknown: NotImported = 3  # type: ignore[name-defined] # noqa: F821

    assert Typed(value=3, local=4, unknown="x").value == 3


def test_other_forms_of_annotation():
    ns = {
        "a": int | str, "b": typing.Annotated[int, "positive"], "c": type, "d": type[int],
        "e": frozenset[int], "f": complex, "g": bool, "h": typing.Final[int], "i": jax.Array, "j": None,
    }  # fmt: skip
    cls = type("Forms", (br.Module,), {"__annotations__": ns})
    good = {
        "a": "x", "b": 1, "c": int, "d": int, "e": frozenset({1}), "f": 1, "g": True, "h": 1, "i": jnp.ones(1), "j": None,
    }  # fmt: skip
    cls(**good)
    for wrong in ({"a": 1.5}, {"b": "x"}, {"d": 3}, {"e": {1}}, {"f": "x"}, {"g": 1}, {"i": 3}):
        with pytest.raises(br.FieldError):
            cls(**{**good, **wrong})


def test_repr_shows_them():
    class Tiny(br.Module):
        a: int = 1

    assert repr(Tiny(name="x")) == "Tiny('x', a=1)"


def test_a_field_beside_arguments_of_init():
    class Mixed(br.Module):
        rate: float = 0.1

        def __init__(self, units, *, bias=True):
            self.units, self.bias, self.seen = units, bias, self.rate

    net = Mixed(3, bias=False, rate=0.5)
    assert (net.units, net.bias, net.seen) == (3, False, 0.5)


def test_multiple_inheritance_takes_the_order_of_the_classes():
    class A(br.Module):
        x: int = 1
        y: int = 1

    class B(br.Module):
        x: int = 2

    class C(A, B):
        pass

    assert C().x == 1 and C().y == 1
    assert type("D", (B, A), {})().x == 2
