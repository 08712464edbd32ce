"""The table of optax's NamedTuples, held against the installed optax."""

from __future__ import annotations

import re
import sys

import jax
import numpy as np
import optax
import pytest

from bridges.core._errors import UnsupportedError
from converters.formats import _pickle_tuples as tuples


def states():
    """Returns every NamedTuple class that a module of the installed optax defines and names a state."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "optax"]
    classes = [cls for module in modules for cls in vars(module).values() if tuples.is_namedtuple(cls)]
    named = re.compile(r"\w*(State|Node|Info)|ApplyEvery|LookaheadParams")
    return {c.__name__: c for c in classes if c.__module__.startswith("optax") and named.fullmatch(c.__name__)}


def test_every_state_of_the_installed_optax_is_in_the_table_with_its_fields():
    found = states()
    assert len(found) > 40
    # Of a line search's own loop: no optimizer keeps it.
    lacking = {name for name in found if name not in tuples._OPTAX} - {"ZoomLinesearchState"}
    assert not lacking
    for name, cls in found.items():
        assert name not in tuples._OPTAX or " ".join(cls._fields) in tuples._OPTAX[name], name


def test_installed_classes_are_found_by_public_private_and_former_names():
    for module in ("optax", "optax._src.transform", "optax._src.wrappers", "optax.some_day"):
        assert tuples.known(f"{module}.ScaleByAdamState", 3) is optax.ScaleByAdamState
        assert tuples.known(f"{module}.MultiStepsState", 5) is optax.MultiStepsState
    assert tuples.known("optax.contrib._prodigy.ProdigyState", 7) is sys.modules["optax.contrib._prodigy"].ProdigyState


def test_a_class_that_has_changed_is_made_with_the_fields_it_had():
    old = tuples.known("optax._src.wrappers.MultiStepsState", 4)
    assert old is not optax.MultiStepsState
    assert old._fields == ("mini_step", "gradient_step", "inner_opt_state", "acc_grads")
    assert tuples.reference(old) == ("optax._src.wrappers", "MultiStepsState")


def test_what_optax_never_had_is_not_made():
    assert tuples.known("optax._src.transform.ScaleByAdamState", 2) is None
    assert tuples.known("optax.GradientTransformation", 3) is None
    assert tuples.known("optaxes.EmptyState", 0) is None
    assert tuples.known("my.optax.EmptyState", 0) is None


def test_made_classes_are_the_same_for_the_same_name_and_fields():
    one, two = (tuples.made("a.b.C", ("x", "y"))(np.ones(1), np.ones(2)) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.structure(one) != jax.tree.structure(tuples.made("a.C", ("x", "y"))(1, 2))


@pytest.mark.parametrize("fields", [("x", "x"), ("_x",), ("1",), ("class",), (1,), int])
def test_fields_that_are_none_are_refused(fields):
    with pytest.raises(UnsupportedError, match="namedtuples"):
        tuples.checked({"a.B": fields})
