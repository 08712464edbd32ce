from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack as library
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import State
from converters import CheckpointError
from converters.formats import LazyLeaf, _msgpack, msgpack
from converters.formats._source import Source
from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED, assert_same, same
from tests.converters.formats.faults import damaged, outcome
from tests.converters.formats.trees import trees

PLAIN = (
    st.integers(-(2**63), 2**64 - 1)
    | st.booleans()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), ml_dtypes.bfloat16(2)])
)


class Pair(NamedTuple):
    left: Any
    right: Any


@flax.struct.dataclass
class Record:
    value: Any
    name: str = flax.struct.field(pytree_node=False, default="static")


def write(path, tree):
    assert msgpack.problems(tree) == []
    msgpack.write(path, tree, {"no": "place"})
    return path


def flax_state():
    """A training state with every kind of structure that Flax knows."""
    model = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.normal(), ("in", "out")))
    params = model.init(jax.random.PRNGKey(0), jnp.ones((1, 2)))["params"]
    tx = optax.chain(optax.clip(1.0), optax.masked(optax.adamw(1e-3), {"kernel": True, "bias": False}))
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_comes_back_and_flax_reads_it(table, tmp_path):
    tree = {"group": dict(table)}
    path = write(tmp_path / "file", tree)
    assert msgpack.recognises(path)
    assert_same(msgpack.read(path).load(), tree)
    assert_same(serialization.msgpack_restore(path.read_bytes()), tree)


@settings(max_examples=60)
@given(tree=trees(plain=PLAIN))
def test_every_tree_comes_back(tree, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("msgpack") / "file", tree)
    assert msgpack.recognises(path)
    found = msgpack.read(path).load()
    assert_same(found, tree)
    assert_same(serialization.msgpack_restore(path.read_bytes()), tree)
    kinds = [[type(leaf) for leaf in jax.tree.leaves(x) if not isinstance(leaf, np.ndarray)] for x in (found, tree)]
    assert kinds[0] == kinds[1]  # a Python number stays one


@pytest.mark.parametrize(
    "tree",
    [
        {"a": np.arange(3.0), "b": {"c": np.ones((2, 2), np.float16), "d": 5}},
        [np.ones(1), (2, 3.5), Pair(1, np.float32(2))],
        {"x": Record(np.ones(2)), "y": flax.core.freeze({"k": {"w": np.ones(1)}})},
        {0: np.ones(1), 1: np.zeros(1), 10: np.zeros(2)},
        np.arange(4),
        {},
        None,
        3 + 4j,
    ],
    ids=str,
)
def test_the_bytes_are_flax_s_own(tree, tmp_path):
    state = serialization.to_state_dict(tree)
    path = write(tmp_path / "file", tree)
    assert_same(serialization.msgpack_restore(path.read_bytes()), state)
    assert path.read_bytes() == serialization.to_bytes(tree)  # whose keys are sorted
    assert_same(msgpack.read(path).load(), state)


def test_a_training_state_goes_both_ways(tmp_path):
    state = flax_state()
    target = jax.tree.map(jnp.zeros_like, state)
    path = write(tmp_path / "file", state)
    assert_same(serialization.from_bytes(target, path.read_bytes()), state)
    (tmp_path / "theirs").write_bytes(serialization.to_bytes(state))
    found = msgpack.read(tmp_path / "theirs")
    assert_same(found.load(), jax.tree.map(np.asarray, serialization.to_state_dict(state)))
    again = write(tmp_path / "again", found.tree)
    assert_same(serialization.from_bytes(target, again.read_bytes()), state)


def test_flax_reads_it_where_bridges_is_not_installed(tmp_path):
    write(tmp_path / "file", {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}, "step": 7})
    program = """
        import sys
        sys.modules["bridges"] = sys.modules["converters"] = None
        import numpy as np
        from flax import serialization
        content = open("file", "rb").read()
        target = {"params": {"w": np.zeros((3, 2), np.float32)}, "step": 0}
        for tree in serialization.from_bytes(target, content), serialization.msgpack_restore(content):
            assert (tree["params"]["w"] == np.arange(6.0).reshape(2, 3).T).all() and tree["step"] == 7
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True)


def test_arrays_above_the_limit_are_pieces_as_flax_has_them(tmp_path, monkeypatch):
    assert serialization.MAX_CHUNK_SIZE == msgpack.CHUNK
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    monkeypatch.setattr(msgpack, "CHUNK", 40)
    tree = {
        "exact": np.arange(10, dtype=np.float32),
        "large": {"transposed": np.arange(60.0).reshape(3, 20).T, "odd": np.arange(41, dtype=np.uint8)},
        "short": np.ones(25, ml_dtypes.bfloat16),
        "wide": np.ones((3, 1, 2), np.complex128),
    }
    theirs = serialization.to_bytes(jax.tree.map(np.array, tree))
    (tmp_path / "theirs").write_bytes(theirs)
    ours = write(tmp_path / "ours", tree).read_bytes()
    assert ours == theirs and ours.count(b"__msgpack_chunked_array__") == 4
    found = msgpack.read(tmp_path / "theirs")
    assert found.tree["large"]["transposed"].shape == (20, 3)
    assert_same(found.load(), tree)
    monkeypatch.undo()
    assert_same(msgpack.read(tmp_path / "ours").load(), tree)  # whatever size the pieces have
    assert_same(serialization.msgpack_restore(ours), tree)


def test_integer_keys_and_lists_of_the_low_level_call_are_read(tmp_path):
    tree = {0: np.ones(2), 300: [np.zeros(1), {"x": 2 + 1j}], -1: np.float32(3)}
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize(tree))
    assert msgpack.recognises(tmp_path / "file")
    assert_same(msgpack.read(tmp_path / "file").load(), tree)


def test_arrays_stay_in_the_file_until_they_are_asked_for(tmp_path):
    path = write(tmp_path / "file", {"a": np.arange(200_000.0), "b": np.ones(3), "step": 3})
    tree = msgpack.read(path).tree
    assert isinstance(tree["a"], LazyLeaf) and isinstance(tree["b"], LazyLeaf) and tree["step"] == 3
    assert same(tree["a"].read(), np.arange(200_000.0))
    assert jnp.asarray(tree["a"]).shape == (200_000,)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="shorter since it was opened"):
        tree["a"].read()


def test_what_cannot_be_held_is_named_with_its_path():
    tree = {
        "key": jax.random.key(0),
        "text": np.array("abc"),
        "fields": np.zeros(2, [("a", "f4")]),
        "big": 2**64,
        "function": max,
        "__msgpack_chunked_array__": 1,
        "half": "\ud800",
        "good": np.ones(2),
    }
    found = msgpack.problems(tree)
    assert len(found) == len(tree) - 1 and not any("'good'" in line for line in found)
    assert any(line.startswith("'big' is the integer 18446744073709551616") for line in found)
    deep: Any = 1
    for _ in range(502):
        deep = {"a": deep}
    assert "levels deep" in msgpack.problems(deep)[0]
    assert "leaf itself" in msgpack.problems(State({"a": np.ones(1), "a/b": np.ones(1)}))[0]


@settings(max_examples=200)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
        | st.integers(0, 70_000).map(lambda n: "x" * n)
        | st.integers(0, 70_000).map(bytes)
        | st.builds(library.ExtType, st.integers(0, 127), st.integers(0, 70_000).map(bytes)),
        lambda below: st.lists(below, max_size=20) | st.dictionaries(st.text(max_size=3), below, max_size=20),
        max_leaves=8,
    )
)  # fmt: skip
def test_the_table_of_heads_is_the_library_s(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "file"
    content = library.packb(value)
    path.write_bytes(content)
    head = _msgpack.Heads(Source(path)).head(0, len(content))
    unpacker = library.Unpacker()
    unpacker.feed(content)
    if isinstance(value, dict | list):
        size = unpacker.read_map_header() if isinstance(value, dict) else unpacker.read_array_header()
        assert (head.kind, head.length) == ("map" if isinstance(value, dict) else "array", size)
        assert head.body == unpacker.tell()
    else:
        unpacker.skip()
        assert head.end == unpacker.tell() == len(content)
    if isinstance(value, bytes):
        assert _msgpack.bin_head(len(value)) == content[: head.body] and head.kind == "bin"
    if isinstance(value, library.ExtType):
        assert _msgpack.ext_head(value.code, len(value.data)) == content[: head.body] and head.kind == "ext"


def ext(shape: Any, dtype: Any, content: bytes, code: int = 1) -> library.ExtType:
    return library.ExtType(code, library.packb((shape, dtype, content)))


def pack(value: Any) -> bytes:
    return library.packb(value)


@pytest.mark.parametrize(
    "content, text",
    [
        (pack({"a": ext((2,), "float32", bytes(4))}), r"'a'.* 4 bytes are said to be float32\[2\]|is damaged: at byte"),
        (pack({"a": ext((-1,), "float32", b"")}), r"the shape \[-1\] is none"),
        (pack({"a": ext((2**63, 0), "float32", b"")}), "is none"),
        (pack({"a": ext((float("nan"),), "float32", b"")}), "is none"),
        (pack({"a": ext((1,), "object", bytes(8))}), "the dtype 'object' is none of"),
        (pack({"a": ext((1,), "f4,f4", bytes(8))}), "the dtype 'f4,f4' is none of"),
        (pack({"a": ext(3, "float32", bytes(8))}), "no shape, dtype and bytes"),
        (pack({"a": ext((1,) * 65, "float32", bytes(4))}), "no shape, dtype and bytes"),
        (pack({"a": library.ExtType(1, b"")}), "inside of a value"),
        (pack({"a": library.ExtType(9, b"x")}), "ext of type 9, which Flax does not write"),
        (pack({"a": library.ExtType(2, b"x")}), "'a' is damaged"),
        (pack({"a": ext((2,), "int8", b"ab", code=3)}), "a scalar has the shape"),
        (b"\x82" + pack("a") + b"\1" + pack("a") + b"\2", "the key 'a' occurs twice"),
        (b"\x82" + pack("a") + b"\1" + pack(1) + b"\2", "texts and integers are keys of one map"),
        (b"\x81" + pack(1.5) + b"\1", "neither a text nor an integer"),
        (b"\x81\x90\1", "neither a text nor an integer"),
        (b"\xdf\xff\xff\xff\xff" + pack("a"), "kind map and length 4,294,967,295"),
        (b"\x81" + pack("a") + b"\xdd\xff\xff\xff\xff", "kind array and length 4,294,967,295"),
        (b"\x81" + pack("a") + b"\xc9\xff\xff\xff\xff\1", "kind ext and length 4,294,967,295"),
        (b"\x81" + pack("a") + b"\x91" * 100_000 + b"\1", "more than 500 levels deep"),
        (b"\x81" + pack("a") + b"\x81\xa1a" * 100_000 + b"\1", "more than 500 levels deep"),
        (b"\x81" + pack("a") + b"\xc1", "stands 0xc1"),
        (b"\x81" + pack("a"), "inside of a value"),
        (pack({"a": 1}) + b"\0", "1 bytes follow behind the end"),
        (b"\x81\xa2\xff\xff\1", "damaged"),
        (pack({"x": {"__msgpack_chunked_array__": True}}), "'x' is damaged"),
        (
            pack({"x": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}}),
            "'x' is damaged: it has no pieces",
        ),
        (
            pack(
                {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": ext((2,), "int8", b"ab")}}}
            ),
            r"'x' is damaged: 1 pieces do not make the shape \(3,\)",
        ),
        (
            pack(
                {
                    "x": {
                        "__msgpack_chunked_array__": True,
                        "shape": {"0": -1},
                        "chunks": {"0": ext((2,), "int8", b"ab")},
                    }
                }
            ),
            "do not make the shape",
        ),
        (b"", "inside of a value"),
    ],
)
def test_a_hostile_or_damaged_file_gives_one_clear_error(content, text):
    found = outcome(msgpack, content)
    assert isinstance(found, str) and re.search(text, found), found


def test_keys_with_traversal_are_names(tmp_path):
    tree = {"../../etc": {"passwd": np.ones(1)}, "/": np.ones(2), "%2F": np.ones(3)}
    assert_same(msgpack.read(write(tmp_path / "file", tree)).load(), tree)


@pytest.mark.parametrize(
    "content", [b"plain text", b'{"a": 1}', b"\x80\x04N.", b"PK\3\4", b"\x89PNG\r\n\x1a\n", b"\xc3\xa9"]
)
def test_other_files_are_not_taken_for_it(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert not msgpack.recognises(tmp_path / "file") and not msgpack.recognises(tmp_path)


VALID = [
    serialization.to_bytes({"a": {"b": np.arange(6.0), "c": np.float32(1)}, "d": 5, "e": None, "f": 1j, "g": "text"}),
    pack({"x": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": ext((2,), "int8", b"ab")}}}),
    serialization.msgpack_serialize({0: [np.ones(2), 1], 1: np.zeros((2, 2), np.int8)}),
]


@settings(max_examples=200)
@given(content=st.sampled_from(VALID).flatmap(damaged))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(content):
    outcome(msgpack, content)
