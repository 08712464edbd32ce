"""Ops are found again from what they do to numbered elements; the rule then works both ways, in the mapping language."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bridges._infer._decode import decode, groups
from bridges._infer._digits import digits, rearranged
from bridges._infer._found import VALUES, Evidence, Origin
from bridges._infer._pieces import Undecodable
from bridges.mapping._mapping import Mapping
from bridges.mapping._op import Abstract
from bridges.mapping._ops import op_from_dict
from bridges.mapping._resolve import resolve

settings = hypothesis.settings(max_examples=60, deadline=None)


def numbered(shapes):
    ends = np.cumsum([0, *map(math.prod, shapes.values())])
    return {path: np.arange(a, b).reshape(s) for (path, s), a, b in zip(shapes.items(), ends, ends[1:], strict=False)}


def origins(shapes, arrays, scale=1.0, shift=0.0):
    """Returns origins of arrays of numbered elements."""
    ends = np.cumsum([0, *map(math.prod, shapes.values())])
    found = {}
    for n, codes in enumerate(arrays):
        leaf = np.searchsorted(ends, codes, "right") - 1
        full = [np.full(codes.shape, x) for x in (scale, shift)]
        found[f"t{n}"] = Origin(leaf, codes - ends[leaf], *full, Evidence(VALUES))
    return found


def decoded(shapes, arrays, **values):
    """Returns the joints, after checking that the mapping of them gives exactly these elements, and goes back."""
    found = origins(shapes, arrays, **values)
    names = list(shapes)
    joints = [decode([names[i] for i in s], shapes, {p: found[p] for p in t}, names) for s, t in groups(found)]
    rules = [{"src": list(j.sources), "dst": list(j.targets), "ops": list(j.ops)} for j in joints]
    mapping = Mapping.loads(Mapping.of(rules=rules).dumps())
    src = {path: x.astype(np.float64) for path, x in numbered(shapes).items()}
    dst = {f"t{n}": x.astype(np.float64) for n, x in enumerate(arrays)}
    plan = mapping.plan(src, dst)
    new = plan.forward(src)
    for path, origin in found.items():
        np.testing.assert_array_equal(new[path], origin.value(list(src.values())))
    back = plan.inverse(new)
    assert all(np.array_equal(back[path], x) for path, x in src.items())
    return joints


def texts(joint):
    return [str(op) for op in joint.ops]


def done(ops, arrays):
    """Returns what ops make of arrays; those that leave no size open."""
    for op in map(op_from_dict, ops):
        outs = op.infer([Abstract(x.shape, x.dtype) for x in arrays])
        arrays = op.apply(arrays, outs)
    return arrays


@st.composite
def shapes_of_rank(draw, least=1, most=4, size=4):
    return tuple(draw(st.lists(st.integers(1, size), min_size=least, max_size=most)))


@st.composite
def each(draw, shape):
    """Ops on one array of a shape."""
    ops, rank = [], len(shape)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["transpose", "reshape", "flip", "expand"]))
        if kind == "transpose":
            axes = draw(st.permutations(range(rank)))
            ops.append({"op": "transpose", "axes": list(axes)})
            shape = tuple(shape[a] for a in axes)
        elif kind == "reshape":
            left, new = math.prod(shape), []
            while left > 1 and len(new) < 4:
                new.append(draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
                left //= new[-1]
            shape = (*new, left)
            ops.append({"op": "reshape", "shape": list(shape)})
        elif kind == "flip" and rank:
            ops.append({"op": "flip", "axis": draw(st.integers(0, rank - 1))})
        else:
            at = draw(st.integers(0, rank))
            ops.append({"op": "expand", "axis": at})
            shape = (*shape[:at], 1, *shape[at:])
        rank = len(shape)
    return ops


@settings
@hypothesis.given(st.data())
def test_any_rearrangement_of_one_leaf_is_found(data):
    shape = data.draw(shapes_of_rank())
    (out,) = done(data.draw(each(shape)), [np.arange(math.prod(shape)).reshape(shape)])
    decoded({"s": shape}, [out])


@settings
@hypothesis.given(st.data())
def test_one_leaf_to_parts_and_parts_to_one(data):
    shape = data.draw(shapes_of_rank(2, 3, 6).filter(lambda s: max(s) > 1))
    axis = data.draw(st.sampled_from([n for n, size in enumerate(shape) if size > 1]))
    cuts = sorted(data.draw(st.sets(st.integers(1, shape[axis] - 1), min_size=1, max_size=3)))
    whole = np.arange(math.prod(shape)).reshape(shape)
    parts = data.draw(st.permutations(np.split(whole, cuts, axis)))
    ops = [{"op": "flip", "axis": axis}, {"op": "transpose"}][: data.draw(st.integers(0, 2))]  # serve any sizes
    decoded({"s": shape}, done(ops, list(parts)))
    decoded({f"s{n}": part.shape for n, part in enumerate(parts)}, [_joined(parts, axis)])


def _joined(parts, axis):
    arrays = numbered({n: part.shape for n, part in enumerate(parts)})
    return np.concatenate(list(arrays.values()), axis)


@settings
@hypothesis.given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 1), st.permutations(range(3)), st.booleans())
def test_layers_and_fused_parts_stacked_in_any_way(layers, width, axis, order, turned):
    """(layer, part) on one end as leaves of any of the two, fused or stacked at the other."""
    shapes = {f"{name}_{n}": (width, width + 1) for n in range(layers) for name in "qkv"}
    grid = np.array(list(numbered(shapes).values())).reshape(layers, 3, width, width + 1)
    grid = grid[:, list(order)]
    grid = grid.swapaxes(-1, -2) if turned else grid
    fused = [np.concatenate(list(row), -1) for row in grid]
    assert decoded(shapes, fused)
    (joint,) = decoded(shapes, [np.stack(fused, axis)])
    assert any("stack" in text for text in texts(joint))
    decoded(shapes, [np.stack([row[k] for row in grid]) for k in range(3)])
    whole = np.arange(layers * width * 3 * width).reshape(layers, width, 3 * width)  # and back: one stack to everything
    decoded({"s": whole.shape}, [part for row in whole for part in np.split(row, 3, 1)])


@settings
@hypothesis.given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.booleans())
def test_grouped_queries_interleaved_and_apart(groups, queries, size, rows, joined):
    w = np.arange(rows * groups * (queries + 2) * size).reshape(rows, groups, queries + 2, size)
    ends = [w[:, :, :queries], w[:, :, queries], w[:, :, queries + 1]]
    parts = [x.reshape(rows, -1) for x in ends]
    shape = {"w": (rows, groups * (queries + 2) * size)}
    decoded(shape, [np.concatenate(parts, 1)] if joined else parts)


PLAIN = {
    "transpose": ({"a": (3, 4)}, lambda a: [a.T], ["transpose(axes=[1, 0])"]),
    "a torch kernel": ({"a": (8, 4, 3, 3)}, lambda a: [a.transpose(2, 3, 1, 0)], ["transpose(axes=[2, 3, 1, 0])"]),
    "a transposed convolution": (
        {"a": (3, 3, 4, 8)},
        lambda a: [a[::-1, ::-1].swapaxes(2, 3)],
        ["flip(axis=[0, 1])", "transpose(axes=[0, 1, 3, 2])"],
    ),
    "a norm's scale": ({"a": (1, 1, 5)}, lambda a: [a.ravel()], ["reshape"]),
    "fused": ({"q": (4, 6), "k": (4, 3), "v": (4, 3)}, lambda *x: [np.concatenate(x, 1)], ["concat(axis=1)"]),
    "fused by heads": (
        {"q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3)},
        lambda *x: [np.stack(x, 2).reshape(4, -1)],
        ["concat(axis=2)", "reshape"],
    ),
    "gates": (
        {"w": (5, 12)},
        lambda w: [part for rows in (w[:2], w[2:]) for part in np.split(rows, 4, 1)],
        ["split(axis=0)", "split(axis=1, parts=4, equal)"],
    ),
    "layers": ({f"l{n}": (3, 2) for n in range(12)}, lambda *x: [np.stack(x)], ["stack"]),
    "layers along axis 1": (
        {f"l{n}": (3, 2) for n in range(3)},
        lambda *x: [np.stack([y.T for y in x], 1)],
        ["transpose(axes=[1, 0])", "stack(axis=1)"],
    ),
    "tied": ({"e": (7, 3)}, lambda e: [e, e.T], ["copy(equal)", "transpose(axes=[1, 0], part=1)"]),
    "shared by layers": ({"e": (3, 2)}, lambda e: [np.stack([e] * 4)], ["reshape", "repeat(times=4, axis=0)"]),
    "heads that share keys": ({"k": (8, 2, 3)}, lambda k: [k.repeat(2, 1)], ["repeat(axis=1)"]),
    "flattened channels first": (
        {"w": (3 * 5 * 2, 4)},
        lambda w: [w.reshape(3, 5, 2, 4).transpose(1, 2, 0, 3).reshape(-1, 4)],
        ["reshape(shape=[3, 10, 4])", "transpose(axes=[1, 0, 2])", "reshape"],
    ),
    "another order": (
        {"a": (7, 2)},
        lambda a: [a[[5, 6, 0, 1, 2, 3, 4]]],
        ["split(axis=0, sizes=[5, 2])", "reorder(order=[1, 0])", "concat(axis=0)"],
    ),
    "the same": ({"a": (2, 3)}, lambda a: [a], []),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_ops_are_those_that_a_person_would_write(name):
    shapes, make, wanted = PLAIN[name]
    (joint,) = decoded(shapes, make(*numbered(shapes).values()))
    assert texts(joint) == wanted


def test_values_are_said_for_the_parts_that_have_them():
    shapes = {"b": (8,)}
    (out,) = numbered(shapes).values()
    found = origins(shapes, [out])
    shift = np.where(np.arange(8) // 2 == 2, 1.0, 0.0)
    origin = Origin(found["t0"].source, found["t0"].element, np.ones(8), shift, found["t0"].evidence)
    joint = decode(["b"], shapes, {"t0": origin}, ["b"])
    assert texts(joint) == ["split(axis=0, sizes=[4, 2, 2])", "add(value=1.0, part=1)", "concat(axis=0)"]
    (joint,) = decoded({"a": (2, 3)}, [np.arange(6).reshape(2, 3).T], scale=0.25, shift=-1.0)
    assert texts(joint) == ["transpose(axes=[1, 0])", "scale(value=4.0, divide)", "add(value=-1.0)"]


def test_what_no_ops_say_is_refused():
    with pytest.raises(Undecodable, match="only a part of 'a' is used"):
        decoded({"a": (4,)}, [np.arange(3)])
    with pytest.raises(Undecodable, match="more places than others"):
        decoded({"a": (3,)}, [np.array([0, 1, 1, 2])])
    rng = np.random.default_rng(0)
    with pytest.raises(Undecodable):
        decoded({"a": (97, 89)}, [rng.permutation(97 * 89).reshape(97, 89)])


def test_digits_are_found_and_nothing_else_is_taken_for_them():
    assert digits(np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)) == [(4, 1), (6, 4)]
    assert digits(np.array([0, 2, 1])) is None
    assert rearranged(np.array([1, 2, 3]), (3,), (3,)) is None  # positions must begin where the source does


def test_sizes_are_left_out_where_both_ends_say_them():
    (joint,) = decoded({"w": (3, 5)}, [*np.split(np.arange(15).reshape(3, 5), [2], 1)])
    other = [Abstract(shape, np.dtype(np.float32)) for shape in ((7, 9), (7, 4), (7, 5))]
    assert resolve(joint.ops, other[:1], other[1:])  # the same ops serve leaves of other sizes
