"""Labels on axes follow the ops: what is carried is what XLA can do without moving data, or is said to be lost."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from bridges.mapping._axes import _through, carried, carried_back, groups
from bridges.mapping._ops import OPS
from bridges.param_mapping import Mapping


def item(ops, ins, outs):
    names = [f"a{i}" for i in range(len(ins))], [f"b{i}" for i in range(len(outs))]
    rule = {"src": names[0], "dst": names[1], "ops": ops}
    src, dst = (
        {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in zip(ns, shapes, strict=True)}
        for ns, shapes in zip(names, (ins, outs), strict=True)
    )
    (found,) = Mapping.of(rules=[rule]).plan(src, dst)
    return found


@pytest.mark.parametrize(
    ("ops", "ins", "outs", "labels", "wanted"),
    [
        (["transpose"], [(4, 6)], [(6, 4)], [("in", "out")], [("out", "in")]),
        (["swap"], [(2, 4, 6)], [(2, 6, 4)], [("a", "b", "c")], [("a", "c", "b")]),
        ([{"op": "transpose", "axes": [2, 0, 1]}], [(2, 3, 4)], [(4, 2, 3)], [("a", "b", None)], [(None, "a", "b")]),
        (["reshape"], [(8, 12)], [(8, 3, 4)], [("embed", "heads")], [("embed", "heads", None)]),
        (["reshape"], [(8, 3, 4)], [(8, 12)], [("embed", "heads", None)], [("embed", "heads")]),
        ([{"op": "expand", "axis": 1}], [(8, 4)], [(8, 1, 4)], [("a", "b")], [("a", None, "b")]),
        ([{"op": "squeeze", "axis": 1}], [(8, 1, 4)], [(8, 4)], [("a", None, "b")], [("a", "b")]),
        ([{"op": "flip", "axis": 0}, {"op": "scale", "value": 2.0}], [(8, 4)], [(8, 4)], [("a", "b")], [("a", "b")]),
        (["stack"], [(4,), (4,)], [(2, 4)], [("a",), ("a",)], [(None, "a")]),
        (["unstack"], [(2, 4)], [(4,), (4,)], [(None, "a")], [("a",), ("a",)]),
        ([{"op": "split", "axis": 1}], [(4, 6)], [(4, 2), (4, 4)], [("a", "b")], [("a", "b")] * 2),
        ([{"op": "concat", "axis": 1}], [(4, 2), (4, 4)], [(4, 6)], [("a", "b")] * 2, [("a", "b")]),
        ([{"op": "reorder", "order": [1, 0]}], [(4,), (6,)], [(6,), (4,)], [("a",), ("b",)], [("b",), ("a",)]),
        (["copy"], [(4,)], [(4,), (4,)], [("a",)], [("a",)] * 2),
        (["sum"], [(4,), (4,)], [(4,)], [("a",), ("a",)], [("a",)]),
        (["reshape"], [(1, 1)], [(1, 1, 1)], [()], [(None, None, None)]),
        ([{"op": "fold", "axes": [1]}], [(4, 2, 6)], [(2, 4, 6)], [("a", "layers", "b")], [("layers", "a", "b")]),
        ([{"op": "unfold", "axes": [2]}], [(2, 4, 6)], [(4, 6, 2)], [("layers", "a", "b")], [("a", "b", "layers")]),
        (
            [{"op": "fold", "axes": [1, 0]}, {"op": "unfold", "axes": [0, 1], "sizes": [3, 2]}],
            [(2, 3, 4)],
            [(3, 2, 4)],
            [(None, "outer", "a")],
            [("outer", None, "a")],
        ),
        ([{"op": "permute", "order": [1, 0]}], [(2, 4)], [(2, 4)], [("layers", "a")], [("layers", "a")]),
        (
            [{"op": "over", "ops": ["transpose", {"op": "split", "axis": 0, "sizes": [2, 4]}]}],
            [(3, 4, 6)],
            [(3, 2, 4), (3, 4, 4)],
            [("layers", "a", "b")],
            [("layers", "b", "a")] * 2,
        ),
    ],
)
def test_labels_go_where_their_axes_go(ops, ins, outs, labels, wanted):
    found = item(ops, ins, outs)
    way = carried(found, labels)
    assert not way.lost
    assert list(way.labels) == wanted
    back = carried_back(found, way.labels)
    full = [(*row, *(None,) * (len(shape) - len(row))) for row, shape in zip(labels, ins, strict=True)]
    assert not back.lost and list(back.labels) == full


@pytest.mark.parametrize(
    ("ops", "ins", "outs", "labels", "parts", "words"),
    [
        (["reshape"], [(8, 3, 4)], [(8, 12)], [(None, None, "kv")], 1, "merges its axis 2"),
        (["reshape"], [(8, 12)], [(8, 3, 4)], [(None, "model")], 2, "leaves 3 elements"),
        ([{"op": "split", "axis": 0}], [(8,)], [(3,), (5,)], [("model",)], 2, "has 3 elements"),
        (["stack"], [(4,), (4,)], [(2, 4)], [("a",), ("b",)], 1, "'a', 'b' of axis 0"),
        (["unstack"], [(2, 4)], [(4,), (4,)], [("layers", "a")], 1, "takes apart"),
        ([{"op": "squeeze", "axis": 0}], [(1, 4)], [(4,)], [("x", None)], 1, "merges its axis 0"),
        ([{"op": "concat", "axis": 0}], [(4,), (4,)], [(8,)], [("a",), (None,)], 1, "which concat(axis=0) joins"),
        ([{"op": "fold", "axes": [0, 1]}], [(2, 3, 4)], [(6, 4)], [(None, "b", "a")], 1, "merges its axis 1"),
        ([{"op": "over", "ops": ["reshape"]}], [(2, 3, 4)], [(2, 12)], [(None, None, "a")], 1, "merges its axis 1"),
    ],
)
def test_what_cannot_follow_is_said(ops, ins, outs, labels, parts, words):
    lost = carried(item(ops, ins, outs), labels, lambda _: parts).lost
    assert words in lost[0]


def test_of_axes_of_one_element_that_are_merged_the_first_keeps_its_label():
    way = carried(item(["reshape"], [(1, 1, 1)], [(1,)]), [(None, "x1", "x2")], lambda _: 1)
    assert way.labels == (("x1",),) and "'x2'" in way.lost[0]


@hypothesis.given(st.data())
def test_a_label_marks_the_same_elements_before_and_after_a_reshape(data):
    """A label divides an array into blocks of equal size; after the reshape it divides it into the same blocks."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    flat = [f for n in sizes for f in ([2, 2] if n == 4 else [2, 3] if n == 6 else [n])]
    other, at = [], 0
    while at < len(flat):
        count = data.draw(st.integers(1, 3))
        other.append(math.prod(flat[at : at + count]))
        at += count
    before, after = (sizes, other) if data.draw(st.booleans()) else (other, sizes)
    labels = tuple(data.draw(st.sampled_from([None, f"x{i}"])) for i in range(len(before)))
    parts = data.draw(st.sampled_from([1, 2, 3]))
    hypothesis.assume(all(n % parts == 0 for n, label in zip(before, labels, strict=True) if label))
    way = carried(item(["reshape"], [tuple(before)], [tuple(after)]), [labels], lambda _: parts)
    x = np.arange(math.prod(before))
    for axis, label in enumerate(way.labels[0]):
        if label is not None:
            old = labels.index(label)
            for a, b in zip(
                np.split(x.reshape(before), parts, old), np.split(x.reshape(after), parts, axis), strict=True
            ):
                assert set(a.ravel()) == set(b.ravel())
    assert len(way.lost) == sum(label is not None and label not in way.labels[0] for label in labels)


@hypothesis.given(st.data())
def test_groups_are_all_axes_in_order_and_equal_in_size(data):
    a = data.draw(st.lists(st.integers(1, 6), max_size=4))
    b = data.draw(st.permutations(a)) if data.draw(st.booleans()) else [math.prod(a)]
    found = groups(a, b)
    assert [i for ins, _ in found for i in ins] == [*range(len(a))]
    assert [j for _, outs in found for j in outs] == [*range(len(b))]
    for ins, outs in found:
        assert math.prod(a[i] for i in ins) == math.prod(b[j] for j in outs)


def test_every_op_has_a_rule():
    for name, op in OPS.items():
        lost = []
        x = jax.ShapeDtypeStruct((1, 1), np.float32)
        given = {"axes": (0, 1)} if name == "swap" else {"axes": (0,)} if name == "unfold" else {}
        given |= {"order": (0,)} if name in ("reorder", "permute") else {}
        _through(op(**given), [x], [x], [("a", None)], lambda _: 1, lost)
        assert not any("no rule" in text for text in lost), name
