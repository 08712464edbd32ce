"""Ops: each with its inverse, bit for bit, in every namespace and dtype, and its shapes known beforehand."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.core._errors import MappingError, UnsupportedError
from bridges.core._spec import abstract
from bridges.mapping._each import Add, Scale
from bridges.mapping._lists import Concat, Split
from bridges.mapping._op import signature
from bridges.mapping._ops import OPS, op_from_dict
from bridges.mapping._plan import resolve

# op as data, shapes in, shapes out
CASES = [
    ({"op": "transpose"}, [(2, 3, 4)], [(4, 3, 2)]),
    ({"op": "transpose", "axes": [1, 2, 0]}, [(2, 3, 4)], [(3, 4, 2)]),
    ({"op": "transpose", "axes": [1, 0], "part": 1}, [(2, 3), (4, 5)], [(2, 3), (5, 4)]),
    ({"op": "reshape"}, [(2, 6)], [(2, 3, 2)]),
    ({"op": "reshape", "shape": [3, -1]}, [(2, 6)], [(3, 4)]),
    ({"op": "squeeze", "axis": [0, -2]}, [(1, 3, 1, 4)], [(3, 4)]),
    ({"op": "expand", "axis": [0, -2]}, [(3, 4)], [(1, 3, 1, 4)]),
    ({"op": "flip", "axis": [0, 1]}, [(2, 3, 4)], [(2, 3, 4)]),
    ({"op": "split", "sizes": [1, 4, 2]}, [(3, 7)], [(3, 1), (3, 4), (3, 2)]),
    ({"op": "split", "axis": 0}, [(7, 3)], [(5, 3), (1, 3), (1, 3)]),
    ({"op": "concat", "axis": 0}, [(5, 3), (1, 3), (0, 3)], [(6, 3)]),
    ({"op": "concat", "parts": 2}, [(3, 1), (3, 4), (2, 5), (2, 1)], [(3, 5), (2, 6)]),
    ({"op": "stack", "axis": -1}, [(2, 3)] * 4, [(2, 3, 4)]),
    ({"op": "unstack", "axis": 1}, [(2, 3, 4)], [(2, 4)] * 3),
    ({"op": "scale", "value": -0.5}, [(2, 3)], [(2, 3)]),
    ({"op": "copy"}, [(2, 3)], [(2, 3)] * 3),
    ({"op": "swap"}, [(2, 3, 4)], [(2, 4, 3)]),
    ({"op": "swap", "axes": [0, -1]}, [(2, 3, 4), (5, 6)], [(4, 3, 2), (6, 5)]),
    ({"op": "flip", "but_last": 2}, [(2, 3, 4, 5)], [(2, 3, 4, 5)]),
    ({"op": "split", "axis": 0, "parts": 3, "equal": True}, [(6, 2), (3, 4)], [(2, 2)] * 3 + [(1, 4)] * 3),
    ({"op": "concat", "parts": 2, "equal": True}, [(3, 2), (3, 2), (1, 5), (1, 5)], [(3, 4), (1, 10)]),
    ({"op": "reorder", "order": [2, 0, 1]}, [(1,), (2,), (3,)], [(3,), (1,), (2,)]),
    ({"op": "lead"}, [(2, 3)], [(2, 3)] * 3),
    ({"op": "sum"}, [(2, 3)], [(2, 3)]),
    ({"op": "stack", "parts": 3}, [(2, 3)] * 3 + [(4,)] * 3, [(3, 2, 3), (3, 4)]),
    ({"op": "unstack"}, [(3, 2), (3, 5)], [(2,)] * 3 + [(5,)] * 3),
    ({"op": "copy", "parts": 2, "equal": True}, [(2, 3), (4,)], [(2, 3), (2, 3), (4,), (4,)]),
    ({"op": "fold"}, [(2, 3)], [(2, 3)]),
    ({"op": "fold", "axes": []}, [(2, 3)], [(1, 2, 3)]),
    ({"op": "fold", "axes": [1]}, [(2, 3, 4)], [(3, 2, 4)]),
    ({"op": "fold", "axes": [2, 0], "part": 1}, [(9,), (2, 5, 3)], [(9,), (6, 5)]),
    ({"op": "unfold", "axes": [-1]}, [(3, 2, 4)], [(2, 4, 3)]),
    ({"op": "unfold", "axes": [2, 0], "sizes": [3, 2]}, [(6, 5)], [(2, 5, 3)]),
    ({"op": "unfold", "axes": [0, 1]}, [(6, 5)], [(2, 3, 5)]),
    ({"op": "permute", "order": [2, 0, 1]}, [(3, 2)], [(3, 2)]),
    (
        {"op": "over", "ops": [{"op": "split", "axis": 0, "sizes": [1, 2]}, "reshape"]},
        [(2, 3, 4)],
        [(2, 2, 2), (2, 4, 2)],
    ),
    ({"op": "over", "ops": ["lead"]}, [(2, 3)], [(2, 3)] * 2),
    ({"op": "heads"}, [(3, 4)], [(3, 2, 2)]),
    ({"op": "heads"}, [(3, 4)], [(3, 2, 5)]),
    ({"op": "heads", "axis": 0}, [(4, 3)], [(2, 5, 3)]),
    ({"op": "merge"}, [(3, 2, 2)], [(3, 4)]),
    ({"op": "repeat", "times": 3}, [(2, 3, 4)], [(2, 9, 4)]),
]
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16, np.complex64]


def run(case, dtype, seed, namespace=np):
    given_op, shapes, results = case
    op = op_from_dict(given_op)
    rng = np.random.default_rng(seed)
    xs = [namespace.asarray(rng.normal(size=s).astype(dtype)) for s in shapes]
    ins, outs = ([jax.ShapeDtypeStruct(s, np.dtype(dtype)) for s in end] for end in (shapes, results))
    resolve([op], ins, outs)
    ys = op.apply(xs, outs)
    back = op.inverse.apply(ys, ins)
    assert signature(map(abstract, ys)) == signature(outs)
    return op, xs, ys, back


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_inverse_is_exact(case, dtype):
    op, xs, ys, back = run(case, dtype, 0)
    specs = [[abstract(x) for x in end] for end in (xs, ys)]
    if op.loss(*specs) is not None:
        assert dtype is np.complex64 and op.name == "scale"  # signed zeros
        return
    assert all(type(y) is np.ndarray for y in ys)  # nothing lands on a device
    for x, b in zip(xs, back, strict=True):
        assert x.dtype == b.dtype and x.tobytes() == np.ascontiguousarray(b).tobytes()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy_and_jax_agree_and_ops_run_under_jit(case):
    op, xs, ys, _ = run(case, np.float32, 1)
    outs = [abstract(y) for y in ys]
    traced = jax.jit(lambda xs: op.apply(xs, outs))([jnp.asarray(x) for x in xs])
    assert all(np.array_equal(a, b) for a, b in zip(ys, traced, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plain_data_form_is_exact(case):
    op = op_from_dict(case[0])
    assert op_from_dict(op.to_dict()) == op
    assert op_from_dict(op.inverse.to_dict()) == op.inverse


def test_every_op_is_a_case():
    assert {c[0]["op"] for c in CASES} | {"add", "cast", "pick", "every"} == OPS.keys()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 1), st.integers(0, 99))
def test_unequal_concat_comes_back_in_its_own_sizes(sizes, axis, seed):
    """Grouped query attention: reversing by equal chunks is wrong."""
    shapes = [(n, 3) if axis == 0 else (3, n) for n in sizes]
    total = (sum(sizes), 3) if axis == 0 else (3, sum(sizes))
    _, xs, _, back = run(({"op": "concat", "axis": axis}, shapes, [total]), np.float32, seed)
    assert all(np.array_equal(a, b) for a, b in zip(xs, back, strict=True))


def test_split_never_assumes_equal_parts():
    x = [jax.ShapeDtypeStruct((6, 2), np.dtype("float32"))]
    assert Split(axis=0).infer(x) is None
    with pytest.raises(MappingError, match="add up to 5"):
        Split(axis=0, sizes=(2, 3)).infer(x)


@given(st.floats(-4, 4, width=32), st.floats(-100, 100, width=32))
def test_add_comes_back_to_rounding_and_says_so(value, x):
    op, spec = Add(value), [jax.ShapeDtypeStruct((1,), np.dtype("float32"))]
    back = op.inverse.apply(op.apply([np.float32([x])], spec), spec)[0]
    assert abs(back[0] - np.float32(x)) <= np.spacing(np.float32(max(abs(x), abs(value), abs(x + value))))
    assert (op.loss(spec, spec) is None) == (value == 0)


@given(st.sampled_from([1.0, -1.0, 2.0, 0.5, -8.0, 3.0, 0.1]), st.floats(-100, 100, width=32, allow_subnormal=False))
def test_scale_is_exact_where_it_says_so(value, x):
    op, spec = Scale(value), [jax.ShapeDtypeStruct((1,), np.dtype("float32"))]
    start = np.float32([x])
    back = op.inverse.apply(op.apply([start], spec), spec)[0]
    if op.loss(spec, spec) is None:
        assert back.tobytes() == start.tobytes()
    else:
        assert np.allclose(back, start, rtol=3e-7)


def test_moments_follow_the_linear_part():
    assert Add(1.0).moment(1) is None
    assert Scale(-1.0).moment(1).inverse == Scale(-1.0) and Scale(-1.0).moment(2) is None
    assert Scale(4.0).moment(2) == Scale(16.0, divide=True)
    assert Concat(axis=0).moment(2) == Concat(axis=0)


def test_a_lossy_cast_says_so():
    f32, bf16 = ([jax.ShapeDtypeStruct((), np.dtype(d))] for d in (np.float32, ml_dtypes.bfloat16))
    cast = op_from_dict({"op": "cast", "dtype": "bfloat16"})
    assert cast.loss(f32, bf16) == "float32 becomes bfloat16"
    assert cast.inverse.loss(bf16, f32) is None
    assert cast.apply([np.float32(1.5)], bf16)[0].dtype == ml_dtypes.bfloat16


def test_two_open_sizes_are_an_error():
    a, b = ([jax.ShapeDtypeStruct(s, np.dtype("float32"))] for s in ((4, 6), (24,)))
    with pytest.raises(MappingError, match="are open"):
        resolve([op_from_dict("reshape"), op_from_dict("transpose"), op_from_dict("reshape")], a, b)


@pytest.mark.parametrize(
    ("op", "shape", "text"),
    [
        ({"op": "transpose", "axes": [0, 0]}, (2, 3), "permutation"),
        ({"op": "reshape", "shape": [4]}, (2, 3), "6 elements"),
        ({"op": "squeeze", "axis": 0}, (2, 3), "size 1"),
        ({"op": "flip", "axis": 2}, (2, 3), "outside"),
        ({"op": "scale", "value": 0}, (2,), "no inverse"),
        ({"op": "add", "value": float("nan")}, (2,), "finite"),
        ({"op": "cast", "dtype": "floaty"}, (2,), "not a dtype"),
        ({"op": "transpose", "part": 1}, (2,), "no part 1"),
    ],
)
def test_what_an_op_cannot_do(op, shape, text):
    with pytest.raises(MappingError, match=text):
        op_from_dict(op).infer([jax.ShapeDtypeStruct(shape, np.dtype("float32"))])


def test_names_of_ops_and_arguments_are_checked():
    with pytest.raises(MappingError, match="Did you mean 'transpose'"):
        op_from_dict({"op": "transposed"})
    with pytest.raises(MappingError, match="no argument 'axs'"):
        op_from_dict({"op": "transpose", "axs": [0]})


def test_heads_that_do_not_fit_are_refused():
    flat, split = (jax.ShapeDtypeStruct(shape, np.dtype("float32")) for shape in ((3, 8), (3, 2, 3)))
    for op, ins, outs in (("heads", flat, split), ("merge", jax.ShapeDtypeStruct((3, 2, 5), flat.dtype), flat)):
        with pytest.raises(MappingError, match="do not fit"):
            resolve([op_from_dict(op)], [ins], [outs])


def test_every_keeps_one_of_the_repeated_ones():
    x = np.arange(24.0).reshape(2, 3, 4)
    repeat = op_from_dict({"op": "repeat", "times": 2, "axis": -2})
    (twice,) = repeat.apply([x], repeat.infer([abstract(x)]))
    assert np.array_equal(twice, np.repeat(x, 2, -2))
    (back,) = repeat.inverse.apply([twice], [abstract(x)])
    assert np.array_equal(back, x)
    assert "keeps one" in repeat.inverse.loss([abstract(twice)], [abstract(x)])
    with pytest.raises(UnsupportedError, match="train apart"):
        repeat.moment(1)
