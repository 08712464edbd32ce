"""Mappings as data: exact round trips, joining, extending, and errors that name the key."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.core._errors import MappingError
from bridges.mapping import _toml
from bridges.param_mapping import Mapping, conventions

FULL = """
cast = ["params/{m:path}"]
drop = ["params/old/{m:path}", { src = "state/n", value = 3, reason = "a counter" }]

[modules]
"net/~/linear{i:auto}" = "Dense_{i:int}"
"" = "root"

[accept]
"Dense_{i:int}" = ["epsilon", "momentum"]

[[rules]]
src = ["a/q", "a/k"]
dst = "b/qk"
ops = ["concat", { op = "transpose", axes = [1, 0] }, { op = "scale", value = -0.5 }]

[[rules]]
src = "layer_{i:int}/w"
dst = "scan/w"
ops = [{ op = "stack" }]
optional = true
src_rank = 2

[fill]
"params/new" = [1.5, 2.0]

[[layers]]
type = "Mine"
src = "haiku.Mine"
dst = ["linen.Mine"]
rules = [{ src = "params/{m:module}/w", dst = "params/{m:module}/k", ops = "transpose" }]
[layers.agree]
epsilon = { src = { name = "eps", default = 1e-5 }, dst = "epsilon", effect = "Outputs change." }
exact = { src = { value = false }, dst = { name = "exact", form = "window" } }
"""


def test_loads_is_the_inverse_of_dumps():
    mapping = Mapping.loads(FULL)
    assert Mapping.loads(mapping.dumps()) == mapping
    assert Mapping.loads(Mapping().dumps()) == Mapping()
    three = mapping | Mapping.of(modules={"x": "y"}) | mapping
    assert Mapping.loads(three.dumps()) == three
    assert len(three.parts) == 3


def test_dump_and_load(tmp_path):
    mapping = Mapping.loads(FULL) | conventions("haiku", "linen")
    mapping.dump(tmp_path / "m.toml")
    assert Mapping.load(tmp_path / "m.toml") == mapping


def test_the_inverse_of_the_inverse_is_the_mapping():
    mapping = conventions("haiku", "linen")
    assert mapping.inverse.inverse.dumps() == mapping.dumps()
    src = {"params/linear/w": np.ones((2, 3), np.float32)}
    dst = {"params/Dense_0/kernel": np.ones((2, 3), np.float32)}
    assert len(mapping.inverse.plan(dst, src)) == 1


def test_extends(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.toml").write_text('extends = ["conventions:haiku->linen"]\nmodules = { "a" = "base" }')
    (tmp_path / "m.toml").write_text('extends = ["sub/base.toml"]\nmodules = { "a" = "mine" }')
    mapping = Mapping.load(tmp_path / "m.toml")
    assert mapping == Mapping.of(modules={"a": "mine"}) | Mapping.of(modules={"a": "base"}) | conventions(
        "haiku", "linen"
    )
    src = {"params/a/w": np.ones((2, 3), np.float32)}
    assert mapping.plan(src, {"params/mine/kernel": src["params/a/w"]}).placements == (("a", "mine", "given"),)


def test_a_mapping_is_hashable_frozen_data():
    assert hash(Mapping.loads(FULL)) == hash(Mapping.loads(FULL))
    filled = Mapping.of(fill={"a": np.ones((2, 2), np.float32)})
    assert filled == Mapping.of(fill={"a": [[1.0, 1.0], [1.0, 1.0]]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modulse = {}", "no key 'modulse'. Did you mean 'modules'"),
        ("a = ", "not TOML"),
        ('modules = { "a/{m}" = "b" }', "same variables"),
        ('rules = [{ src = "a" }]', "under `rules` needs src and dst"),
        ('fill = [{ dst = "a" }]', "under `fill` needs dst, a value"),
        ('drop = [{ src = "a", dst = "b" }]', "under `drop` needs src and no dst"),
        ('rules = [{ src = "a/{i:int}", dst = "b" }]', "Say how with the op stack or concat or pick"),
        ('rules = [{ src = "a/{m}", dst = "b", ops = "stack" }]', "cannot be inverted"),
        ('rules = [{ src = "a/{i:int}", dst = "b/{i}" }]', "is a number in the source and a text"),
        ('rules = [{ src = ["a/{m}", "b"], dst = "c/{m}", ops = "concat" }]', "must have the same variables"),
        ('rules = [{ src = "a/{i:int}", dst = "b/{j:int}", ops = ["stack", "unstack"] }]', "only one end"),
        ('rules = [{ src = "a", dst = "b", ops = ["rotate"] }]', "'rotate' is not an op"),
        ('rules = [{ src = "a", dst = "b", op = "flip" }]', "no key 'op'. Did you mean 'ops'"),
        ('layers = [{ type = "X", rules = [{ src = "a", dst = "b" }] }]', "exactly one variable"),
        ("layers = [{}]", "needs a type"),
        ('extends = ["x.toml"]', "not loaded from a file"),
        ('extends = ["conventions:haiku"]', "write 'conventions:haiku->linen'"),
    ],
)
def test_what_is_malformed_is_named(text, message):
    with pytest.raises(MappingError) as caught:
        Mapping.loads(text)
    assert message in str(caught.value)


def test_an_error_in_a_file_names_the_file(tmp_path):
    (tmp_path / "bad.toml").write_text("nope = 1")
    with pytest.raises(MappingError, match=r"bad\.toml: A mapping has no key 'nope'"):
        Mapping.load(tmp_path / "bad.toml")


plain = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), plain, max_size=4), st.sampled_from([frozenset(), frozenset({"otherwise"})]))
def test_the_toml_writer_is_the_inverse_of_the_reader(table, nested):
    assert tomllib.loads(_toml.dumps(table, nested)) == table


def test_the_toml_writer_lays_out_nested_parts():
    table = {"n": 1, "otherwise": [{"modules": {"a": "b"}, "rules": [{"src": "x"}, {"src": "y"}]}, {"n": 2}]}
    assert tomllib.loads(_toml.dumps(table, frozenset({"otherwise"}))) == table
    with pytest.raises(MappingError, match="no place in TOML"):
        _toml.dumps({"a": None})


@pytest.mark.parametrize("key", ["extends", "modules", "rules", "drop", "cast", "accept", "layers", "otherwise"])
def test_what_has_another_form_is_said(key):
    for value in ("3", "'x'", "true", "[3]", "[[]]", "{a = 3}", "{a = nan}", "1979-05-27"):
        with pytest.raises(MappingError):
            Mapping.loads(f"{key} = {value}")


def test_rows_of_another_form():
    for text in (
        *("fill = 3", "[[rules]]\nsrc = 'a'\ndst = 'b'\nops = 3", "[[rules]]\nsrc = 'a'\ndst = 'b'\nops = [{op = []}]"),
        *("[[layers]]\ntype = 'X'\nrules = 3", "[[layers]]\ntype = 'X'\nagree = 3", "[[layers]]\ntype = 'X'\nsrc = 3"),
        "a = " + "[" * 5000,
    ):
        with pytest.raises(MappingError):
            Mapping.loads(text)


def test_files_that_extend_nothing_or_one_another(tmp_path):
    (tmp_path / "a.toml").write_text("extends = ['b.toml']")
    with pytest.raises(MappingError, match=r"a\.toml: extends 'b\.toml': .* cannot be read: No such file"):
        Mapping.load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("extends = ['a.toml']")
    with pytest.raises(MappingError, match="there is no end"):
        Mapping.load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(MappingError, match=r"b\.toml is not TOML, which is UTF-8"):
        Mapping.load(tmp_path / "a.toml")
