"""Damaged and hostile pickles: each is one `CheckpointError` with the file's name, a place and a reason; none does harm."""

from __future__ import annotations

import collections
import gzip
import io
import lzma
import os
import pickle
import struct
import zlib

import hypothesis
import jax
import joblib
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from bridges.core._errors import UnsupportedError
from converters import CheckpointError
from converters.formats import pickle as format

READ = (CheckpointError, UnsupportedError)


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, fn, *args):
        self.fn, self.args = fn, args

    def __reduce__(self):
        return self.fn, self.args


def refused(path, content, match):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        format.read(path).load()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 8000 and len(str(caught.value).splitlines()) < 15  # One screen.
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))
    return str(caught.value)


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
FROM_BUFFER = name("numpy.core.numeric", "_frombuffer")


def dtype(code=b"\x8c\x02f4", state=b"K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"):
    return name("numpy", "dtype") + code + b"\x89\x88\x87R(" + state + b"tb"


def array(shape=b"K\x02\x85", kind=None, raw=b"C\x08" + b"\0" * 8, fortran=b"\x89"):
    return b"\x80\x04" + ARRAY + b"(K\x01" + shape + (kind or dtype()) + fortran + raw + b"tb."


def text(string):
    return b"\x8c" + bytes([len(string)]) + string.encode()


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda bad: bad,
        lambda bad: {"params": {"w": bad}},
        lambda bad: [np.ones(2), (bad,)],
        lambda bad: collections.OrderedDict(a=bad),
        lambda bad: np.array([bad, None], object),
        lambda bad: optax.ScaleByAdamState(bad, {}, {}),
    ],
    ids=["alone", "in dictionaries", "in a list", "in an OrderedDict", "in an array", "in a NamedTuple"],
)
def test_a_pickle_that_runs_a_command_does_not(wrap, protocol, tmp_path):
    victim = tmp_path / "victim"
    content = pickle.dumps(wrap(Runs(os.system, f"touch {victim}")), protocol)
    assert b"system" in content
    refused(tmp_path / "a", content, "(posix|nt).system|array of Python objects")
    assert not victim.exists()
    pickle.loads(content)  # The pickle is real: it does run where pickle loads it.
    assert victim.exists()


@pytest.mark.parametrize(
    "body",
    [
        name("posix", "system") + b"\x8c\x04true\x85R0N",  # Called, and dropped.
        b"}" + name("posix", "system") + b"\x8c\x04true\x85RNs",  # As a key.
        name("posix", "system") + b"\x8c\x04true\x85\x81",  # Its `__new__`.
        name("posix", "system") + b")}\x92",  # With keywords.
        name("posix", "system") + b")R}b",  # Given a state.
        name("posix", "system"),  # As a value.
        name("posix", "system") + b"q\x000h\x00\x85",  # From the memo.
        name("builtins", "getattr") + name("posix", "system") + b"\x8c\x04true\x86R)R",  # What a call gave, called.
        ARRAY
        + b"(K\x01K\x01\x85"
        + name("posix", "system")
        + b"\x8c\x04true\x85R\x89C\x08"
        + b"\0" * 8
        + b"tb",  # A dtype.
        name("numpy", "dtype") + name("posix", "system") + b"\x89\x88\x87R0N",
        name("collections", "defaultdict") + name("posix", "system") + b"\x85R",
        name("haiku._src.data_structures", "FlatMapping") + name("posix", "system") + b"\x85R",
        name("jax._src.array", "_reconstruct_array") + b"(" + name("posix", "system") + b")}}tR",
        name("optax._src.transform", "ScaleByAdamState") + b"(NN" + name("posix", "system") + b")Rt\x81",
        name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81}\x8c\x05dtype" + name("posix", "system") + b")Rsb",
        b"\x8c\x05posix\x8c\x06system\x93)R",
    ],
)
def test_a_function_is_refused_wherever_it_stands(body, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(os, "system", lambda *args: called.append(args))
    refused(tmp_path / "a", b"\x80\x04" + body + b".", r"(?s)Nothing of it was run:\n.*posix\.system")
    assert not called


def test_no_module_is_imported_because_a_file_names_it(tmp_path):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        for module in ("evil_module", "optax.evil_module", "optax._src.evil_module", "flax.evil_module"):
            refused(tmp_path / "a", b"\x80\x04" + name(module, "State") + b"N\x85\x81.", rf"{module}\.State at the top")
            assert module not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_only_namedtuples_of_optax_are_made(tmp_path):
    for attribute in ("GradientTransformation", "adam", "apply_updates", "Params", "EmptyState.__new__"):
        refused(
            tmp_path / "a",
            b"\x80\x04" + name("optax", attribute) + b"K\x01\x85\x81.",
            rf"optax\.{attribute} at the top",
        )
    refused(
        tmp_path / "a", b"\x80\x04" + name("optax", "EmptyState") + b")R.", r"optax\.EmptyState at the top"
    )  # Called.


def test_every_name_is_given_with_its_place(tmp_path):
    tree = {"a": [Runs(os.system, "true")], "b": {"c": Runs(eval, "1")}, "d": np.random.default_rng(0)}
    said = refused(tmp_path / "a", pickle.dumps(tree), "Nothing of it was run")
    for want in ("posix.system at 'a/0'", "builtins.eval at 'b/c'", "numpy.random", "dump dictionaries of arrays"):
        assert want in said


def test_names_cannot_write_to_the_terminal(tmp_path):
    clear = "\x1b[2J" + "x" * 900
    refused(tmp_path / "a", b"\x80\x04" + name("os", clear) + b")R.", r"os\.\\x1b\[2Jxxx.*…")
    key = b"X" + len(clear).to_bytes(4, "little") + clear.encode()
    refused(tmp_path / "a", b"\x80\x04}" + key + name("os", "system") + b")Rs.", r"os\.system at '\\x1b\[2Jxxx.*…")
    refused(tmp_path / "a", b"\x80\x04}(" + key + b"N" + key + b"Nu.", "stands twice")
    many = b"".join(name("os", f"f{i}" * 200) + b"(" + b"N" * 300 + b"t\x81" for i in range(50))
    refused(tmp_path / "a", b"\x80\x04(" + many + b"l.", "and 42 more")


# Size ----------------------------------------------------------------------------------------------------------------


def test_shared_parts_that_unfold_without_end_are_refused(tmp_path):
    levels = [b"0](" + (b"h" + bytes([i])) * 10 + b"e\x94" for i in range(30)]  # Each ten times the one before.
    body = b"]\x94" + b"".join(levels)
    refused(tmp_path / "a", b"\x80\x04" + body + b".", "unfold to more than")
    doubled = b"\x80\x04](NNe" + b"2\x86" * 60 + b"."
    refused(tmp_path / "a", doubled, "unfold to more than")


@pytest.mark.parametrize(
    "body",
    [
        b"]" * 100_000 + b"a" * 99_999,
        b"N" + b"\x85" * 100_000,
        b"}K\x01" * 100_000 + b"}" + b"s" * 100_000,
        b"(" * 100_000 + b"t" * 100_000,
        name("haiku._src.data_structures", "FlatMapping") * 5000 + b"}" + b"\x85R" * 5000,
        (b"c_codecs\nencode\n" * 5000) + b"C\x01a" + b"\x85R" * 5000,
        ARRAY + (b"(K\x01" + ARRAY) * 2000 + b"N" + b"tb" * 2000,
    ],
    ids=["lists", "tuples", "dictionaries", "marks", "calls", "codecs", "arrays"],
)
def test_deep_nesting_is_refused(body, tmp_path):
    refused(tmp_path / "a", b"\x80\x04" + body + b".", "nested|damaged")


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d", b"\x96", b"\x95"], ids=["bytes", "text", "bytearray", "frame"])
@pytest.mark.parametrize("size", [5000, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_beyond_the_file_are_refused(opcode, size, tmp_path):
    refused(tmp_path / "a", b"\x80\x04" + opcode + struct.pack("<Q", size) + b"abc.", f"of {size} bytes begins here")


def test_endless_integers_and_names_are_refused(tmp_path):
    refused(tmp_path / "a", b"\x80\x04\x8b\xff\xff\xff\x7f.", "an integer of 2147483647 bytes")
    refused(tmp_path / "a", b"\x80\x04c" + b"a" * 5000 + b"\nb\n.", "a name does not end")


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_a_bomb_is_refused_before_it_is_unpacked(compress, tmp_path):
    bomb = compress(pickle.dumps({"w": np.zeros(80 << 20, np.uint8)}))
    refused(tmp_path / "a", bomb, "unpacks to more than .* allow more with max_bytes")
    found = format.read(tmp_path / "a", max_bytes=1 << 30)
    assert found.tree["w"].shape == (80 << 20,)
    with pytest.raises(CheckpointError, match="more than 1000"):
        format.read(tmp_path / "a", max_bytes=1000)


def test_an_xz_header_cannot_ask_for_memory(tmp_path):
    packed = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    content = packed.compress(pickle.dumps(list(range(100)))) + packed.flush()
    assert tried(tmp_path / "a", content)
    at = content.index(b"\x21\x01\x16") + 2  # The header of the block: its filter, one byte of properties, 8 MiB.
    header = bytearray(content)
    header[at] = 40  # 4 GiB.
    size = (header[12] + 1) * 4
    header[12 + size - 4 : 12 + size] = zlib.crc32(header[12 : 12 + size - 4]).to_bytes(4, "little")
    refused(tmp_path / "a", bytes(header), "xz stream is damaged .*(?i:memory)")


# Arrays --------------------------------------------------------------------------------------------------------------


def test_the_array_that_the_next_tests_damage_is_read(tmp_path):
    (tmp_path / "a").write_bytes(array())
    np.testing.assert_array_equal(format.read(tmp_path / "a").load(), np.zeros(2, np.float32))
    np.testing.assert_array_equal(pickle.loads(array()), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "shape",
    [
        b"K\x03\x85",
        b"K\x01\x85",
        b"J\xff\xff\xff\xff\x85",
        b"J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86",
        b"G\x7f\xf8\0\0\0\0\0\0\x85",
        b"G\x40\0\0\0\0\0\0\0\x85",
        b"\x88K\x02\x86",
        b"N\x85",
        b"N",
        b"]",
        b"\x8a\x09" + (2**64 + 2).to_bytes(9, "little") + b"\x85",
        b"\x8a\x08" + (2**62).to_bytes(8, "little") + b"K\x04\x86",
        b"(" + b"K\x01" * 65 + b"K\x02t",
    ],
)
def test_shapes_that_are_none_are_refused(shape, tmp_path):
    refused(tmp_path / "a", array(shape), r"the top: .*(its shape|needs \d+ bytes)")


def test_empty_arrays_of_absurd_shapes_are_refused(tmp_path):
    huge = b"\x8a\x08" + (2**61).to_bytes(8, "little")
    refused(tmp_path / "a", array(b"K\x00" + huge + huge + b"\x87", raw=b"C\x00"), "no arrays of the shape")


@pytest.mark.parametrize(
    "code",
    [
        "O",
        "O8",
        "|O",
        "f4,f4",
        "(2,)f4",
        "V8",
        "M8[ns]",
        "S8",
        "U2",
        "f5",
        "f",
        "",
        "g",
        "2f4",
        "f" * 200,
        "float32",
        "c32",
        "i16",
        "b8",
    ],
)
def test_dtypes_that_are_no_numbers_are_refused(code, tmp_path):
    refused(tmp_path / "a", array(kind=dtype(text(code))), "the top: (its dtype|it is an array of Python objects)")


@pytest.mark.parametrize(
    "state",
    [b"", b"K\x03", b"K\x03\x8c\x01xNNN", b"K\x03\x8c\x01<" + dtype() + b"NN", b"K\x03\x8c\x01|N\x8c\x01a\x85}"],
)
def test_states_of_dtypes_that_are_none_are_refused(state, tmp_path):
    refused(tmp_path / "a", array(kind=dtype(state=state)), "the top: (its dtype|it is an array of records)")


@pytest.mark.parametrize(
    "content",
    [
        array(raw=b"](NNe"),
        array(raw=b"N"),
        array(raw=b"K\x08"),
        array(kind=b"N"),
        array(kind=name("numpy", "float32")),
        array(kind=dtype(name("numpy", "ndarray"))),
        array(kind=dtype(name("ml_dtypes", "finfo"))),
        array(kind=dtype(name("ml_dtypes", "bfloat16.mro"))),
        b"\x80\x04" + ARRAY + b".",
        b"\x80\x04" + ARRAY + b"Nb.",
        b"\x80\x04" + ARRAY + b"}b.",
        b"\x80\x04" + name("numpy.core.multiarray", "_reconstruct") + b")R.",
        array()[:-1].replace(name("numpy", "ndarray"), name("numpy", "matrix")) + b".",
        array()[:-1] + b"(NNe.",
        array()[:-1] + b"Nb.",
        b"\x80\x04" + FROM_BUFFER + b"(C\x04abcd" + dtype() + b"K\x01\x85\x8c\x01QtR.",
        b"\x80\x04" + FROM_BUFFER + b"(C\x04abcd" + dtype() + b"K\x01\x85\x8c\x01KK\x01\x85tR.",
        b"\x80\x04" + name("numpy.core.multiarray", "scalar") + dtype() + b"C\x03abc\x86R.",
        b"\x80\x04" + dtype() + b".",
        b"\x80\x04" + name("_codecs", "encode") + b"\x8c\x02\xc4\x80\x8c\x06latin1\x86R.",
        b"\x80\x04" + name("_codecs", "encode") + b"\x8c\x01a\x8c\x03rot\x86R.",
        b"\x80\x04" + name("builtins", "complex") + b"\x8c\x011\x85R.",
        b"\x80\x04" + name("jax._src.prng", "PRNGKeyArray") + b")\x81}b.",
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_refused(content, tmp_path):
    refused(tmp_path / "a", content, r"the top: |is given to what can have none|numpy\.(matrix|float32) \(byte")


def test_large_arrays_of_damaged_text_are_refused(tmp_path):
    content = pickle.dumps({"w": np.full(9000, 200, np.uint8)}, 2)
    at = content.index("È".encode() * 10)
    for wrong in (b"\xff\xff", b"\xc4\x80", b"ab"):  # No UTF-8; no byte; too many bytes.
        refused(
            tmp_path / "a",
            content[: at + 400] + wrong + content[at + 402 :],
            "'w': (its bytes|it does not have the 9000)",
        )


def test_joblib_s_damaged_arrays_are_refused(tmp_path):
    file = io.BytesIO()
    joblib.dump({"w": np.ones(4, np.float32)}, file)
    content = file.getvalue()
    at = content.index(b"\x8c\x05shape\x94K\x04") + 8
    refused(tmp_path / "a", content[:at] + b"K\xff" + content[at + 2 :], "a string of 1020 bytes begins here")
    file = io.BytesIO()
    joblib.dump({"w": np.array([None])}, file)
    refused(tmp_path / "a", file.getvalue(), "array of Python objects|no opcode|damaged")
    beside = name("joblib.numpy_pickle", "NDArrayWrapper") + b")\x81}\x8c\x08filename\x8c\x0b/etc/passwdsb"
    refused(tmp_path / "a", b"\x80\x04" + beside + b".", "in files beside this one")


# Structure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"}(\x8c\x01aN\x8c\x01aNu", "the key 'a' stands twice"),
        (b"}(K\x01N\x88Nu", "the key True stands twice"),
        (name("collections", "OrderedDict") + b")R(\x8c\x01aN\x8c\x01aNu", "the key 'a' stands twice"),
        (b"}(K\x01N\x8c\x01aNu", "of several kinds"),
        (b"}]Ns", "neither a text nor a number"),
        (b"}G\x7f\xf8\0\0\0\0\0\0Ns", "neither a text nor a number"),
        (b"}NNs", "neither a text nor a number"),
        (b"]q\x00h\x00a", "contains itself"),
        (b"}q\x00\x8c\x01ah\x00s", "contains itself"),
        (b"](N]q\x00h\x00ae", "'1/0': the pickle contains itself"),
        (b"\x8f(]\x90", "a set of other things"),
        (b"Pid\n", "PERSID: a persistent id.*PyTorch"),
        (b"NQ", "BINPERSID"),
        (b"\x82\x01", "EXT1: an extension code"),
        (b"\x97", "NEXT_BUFFER: an out-of-band buffer"),
        (b"I1\n", "INT belongs to the text protocols.*protocol=4"),
        (b"\xff", "is no opcode"),
        (b"h\x07", "not stored before"),
        (b"0", "a mark that was not set"),
        (b"s", "more than there is on the stack"),
        (b"Na", "more than there is on the stack"),
        (b"NNa", "appended to what is no list"),
        (b")Na", "appended to what is no list"),
        (b"]NNs", "set in what is no dictionary"),
        (b"}(Nu", "key lacks its value"),
        (b"NN", "not reduced to one object"),
        (b"(N", "not reduced to one object"),
        (b"", "not reduced to one object"),
        (b"NN\x93", "a name is no text"),
        (b"NNb", "a state is given to what can have none"),
        (b"\x8c\x01\xff", "a text is not UTF-8"),
        (b"N)R", "what is called here is no name"),
        (b"\x80\x09N", "a protocol above 5"),
        (b"N.N", "2 bytes of other bytes follow"),
        (b"N.\x80\x04N", "bytes of another pickle follow.*dump one tuple"),
    ],
)
def test_damaged_structure_is_refused(body, match, tmp_path):
    refused(tmp_path / "a", b"\x80\x04" + body + b".", match)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x04", b"(lp0\n.", b"PK\x03\x04", b"\x80\x01N.", b"\x80\x06N."]
)
def test_what_is_no_pickle_is_refused(content, tmp_path):
    refused(tmp_path / "a", content, "no pickle of the protocols 2 to 5|the file ends")


def test_absent_files_and_directories_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=str(path)):
            format.read(path)


# Fuzzing -------------------------------------------------------------------------------------------------------------


def valid():
    tree = {
        "params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "k": jax.random.key(0), "n": 3, "c": 1 + 2j},
        "opt": (optax.ScaleByAdamState(np.int32(2), {"w": jax.numpy.ones(2)}, collections.OrderedDict(a=None)),),
    }
    file = io.BytesIO()
    joblib.dump({"w": np.ones((2, 2)), "b": [b"x", "y", 2.5]}, file)
    return [pickle.dumps(tree, protocol) for protocol in (2, 4, 5)] + [
        file.getvalue(),
        gzip.compress(pickle.dumps(tree)),
    ]


VALID = valid()


def tried(path, content):
    """Returns whether a file was read; anything but a tree of known things and the errors for users is raised."""
    path.write_bytes(content)
    format.recognises(path)
    try:
        tree = format.read(path).load()
    except READ as err:
        assert str(path) in str(err)
        return False
    jax.tree.map(lambda leaf: np.asarray(leaf) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf,
                 [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")])  # fmt: skip
    return True


@pytest.mark.parametrize("content", VALID)
def test_every_file_that_is_cut_is_refused(content, tmp_path):
    assert tried(tmp_path / "a", content)
    read = [size for size in range(0, len(content), 3) if tried(tmp_path / "a", content[:size])]
    assert not read


@hypothesis.settings(
    max_examples=250, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)
)
def test_flipped_bits_give_an_error_or_a_tree(tmp_path, content, flips):
    damaged = bytearray(content)
    for place, bits in flips:
        damaged[place % len(damaged)] ^= bits
    tried(tmp_path / "a", bytes(damaged))


_NAMES = [
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("jax._src.array", "_reconstruct_array"),
    ("jax._src.prng", "PRNGKeyArray"),
    ("jax._src.literals", "TypedNdArray"),
    ("haiku._src.data_structures", "FlatMapping"),
    ("haiku._src.data_structures", "FrozenList"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("builtins", "list"),
    ("builtins", "complex"),
    ("builtins", "bytearray"),
    ("_codecs", "encode"),
    ("ml_dtypes", "bfloat16"),
    ("optax", "EmptyState"),
    ("optax._src.transform", "ScaleByAdamState"),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("flax.training.train_state", "TrainState"),
    ("os", "system"),
]
_PIECES = st.one_of(
    st.sampled_from(
        [bytes([i]) for i in b"(012NNJ])}taeuslddRRRbbb\x81\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x94"]
    ),
    st.sampled_from([name(*pair) for pair in _NAMES]),
    st.sampled_from(
        [dtype(), ARRAY, array()[2:-1], text("a"), text("shape"), text("latin1"), b"C\x04abcd", b"K\x02\x85"]
    ),
    st.integers(0, 8).map(lambda i: b"h" + bytes([i])),
    st.integers(0, 8).map(lambda i: b"q" + bytes([i])),
    st.integers(0, 8).map(lambda i: b"K" + bytes([i])),
    st.floats().map(lambda x: b"G" + struct.pack(">d", x)),
    st.binary(max_size=3),
)


@hypothesis.settings(
    max_examples=500, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.lists(_PIECES, max_size=30))
def test_random_opcodes_give_an_error_or_a_tree(tmp_path, pieces):
    tried(tmp_path / "a", b"\x80\x04" + b"".join(pieces) + b".")
