"""The tree walker: escaping, flatten with its inverse, nest, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridges as br
from bridges.core import _flat

segments = st.text(alphabet="ab/%2F5 é~.{}", max_size=6)
keys = st.one_of(segments)
leaves = st.integers(-5, 5)
trees = st.recursive(
    leaves,
    lambda sub: st.one_of(
        st.dictionaries(keys, sub, max_size=3),
        st.dictionaries(st.integers(0, 12), sub, max_size=3),
        st.lists(sub, max_size=3),
        st.lists(sub, max_size=3).map(tuple),
        st.none(),
    ),
    max_leaves=12,
)


@given(segments)
def test_escape_inverts(segment):
    assert _flat.unescape(_flat.escape(segment)) == segment
    assert "/" not in _flat.escape(segment) and _flat.escape(segment)


@given(segments, segments)
def test_escape_never_collides(one, other):
    assert (_flat.escape(one) == _flat.escape(other)) == (one == other)


@given(st.lists(segments, min_size=1, max_size=4))
def test_split_inverts_join(parts):
    assert _flat.split(_flat.join(parts)) == tuple(parts)


@given(trees)
def test_unflatten_inverts_flatten(tree):
    flat = _flat.flatten(tree)
    assert len(flat) == len(jax.tree.leaves(tree))
    back = _flat.unflatten(flat, tree)
    assert back == tree and jax.tree.structure(back) == jax.tree.structure(tree)


@given(st.dictionaries(st.lists(segments, min_size=1, max_size=3).map(tuple), leaves, max_size=5))
def test_nest_spells_the_paths_or_refuses(entries):
    flat = {_flat.join(parts): value for parts, value in entries.items()}
    clash = any(a != b and b[: len(a)] == a for a in entries for b in entries)
    if clash:
        with pytest.raises(br.CollisionError, match="leaf"):
            _flat.nest(flat)
        return
    assert _flat.flatten(_flat.nest(flat)) == flat


def test_a_slash_in_a_key_does_not_collide_with_a_level():
    tree = {"a/b": {"w": 1}, "a": {"b": {"w": 2}}}
    flat = _flat.flatten(tree)
    assert flat == {"a/b/w": 2, "a%2Fb/w": 1}
    assert _flat.unflatten(flat, tree) == tree


def test_integer_and_string_keys_of_one_text_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Both:
        def tree_flatten_with_keys(self):
            key = jax.tree_util.DictKey
            return [(key(1), 1), (key("1"), 2)], None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls()

    with pytest.raises(br.CollisionError, match=r"(?s)'x/1'.*rename"):
        _flat.flatten({"x": Both()})


def test_keys_that_do_not_sort_are_refused():
    with pytest.raises(br.StructureError, match="sortable"):
        _flat.flatten({1: 1, "a": 2})


def test_missing_extra_and_misshapen_leaves_are_all_listed():
    like = {"a": np.zeros((2, 3)), "b": np.zeros(1)}
    with pytest.raises(br.StructureError, match=r"(?s)missing 'b'.*Did you mean 'bb'.*unexpected 'bb'.*unexpected 'c'"):
        _flat.unflatten({"a": np.zeros((2, 3)), "bb": 1, "c": 1}, like)
    with pytest.raises(br.EntryShapeError, match=r"(?s)'a': got float64\[3,2\], wanted float64\[2,3\].*'b'"):
        _flat.unflatten({"a": np.zeros((3, 2)), "b": np.zeros(2)}, like)


def test_long_lists_are_cut_with_a_count():
    with pytest.raises(br.StructureError, match="and 480 more"):
        _flat.unflatten({}, {f"k{i:03}": 1 for i in range(500)})


def test_empty_containers_come_from_the_like():
    like = {"a": (), "b": [], "c": {"d": None}, "e": 1}
    assert _flat.flatten(like) == {"e": 1}
    assert _flat.unflatten({"e": 5}, like) == {"a": (), "b": [], "c": {"d": None}, "e": 5}


def test_a_state_inside_a_tree_keeps_its_paths():
    state = br.State({"net/w": 1, "net/b%2F": 2})
    assert _flat.flatten(({"mu": state},)) == {"0/mu/net/b%2F": 2, "0/mu/net/w": 1}
    back = _flat.unflatten(_flat.flatten(({"mu": state},)), ({"mu": state},))
    assert isinstance(back[0]["mu"], br.State) and dict(back[0]["mu"]) == dict(state)


def test_leaves_are_handed_on_untouched():
    value = np.zeros(3)
    assert _flat.flatten({"a": value})["a"] is value
    assert _flat.unflatten({"a": value}, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})["a"] is value


def test_under_takes_whole_segments():
    assert _flat.under("a/b/c", "a/b") and _flat.under("a/b", "a/b") and _flat.under("a", "")
    assert not _flat.under("a/bc", "a/b") and not _flat.under("a", "a/b")
