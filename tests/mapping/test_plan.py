"""Plans: peers.md "Mapping and checkpoints" line by line, every problem in one error, forward and inverse bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.core._errors import EntryShapeError, MappingError, StructureError, UnsupportedError
from bridges.core._kind import BatchStat, Param, Variable
from bridges.core._spec import Layer, Spec
from bridges.core._state import State
from bridges.param_mapping import Mapping, Plan, conventions


def arrays(seed=0, **shapes):
    """Random float32 arrays; `__` in a name is '/'."""
    rng = np.random.default_rng(seed)
    return {k.replace("__", "/"): rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def same(a, b):
    return a.keys() == b.keys() and all(
        np.asarray(a[p]).dtype == np.asarray(b[p]).dtype and np.asarray(a[p]).tobytes() == np.asarray(b[p]).tobytes()
        for p in a
    )


def problems(mapping, src, dst):
    with pytest.raises(MappingError) as caught:
        mapping.plan(src, dst)
    return str(caught.value)


# peers.md, line by line ----------------------------------------------------------------------------------------------


def test_a_name_that_only_begins_or_ends_alike_is_not_renamed():
    """Regexes that search unanchored rename `weight_scale` to `kernel_scale`."""
    src, dst = arrays(net__weight=(2,), net__weight_scale=(2,)), arrays(net__kernel=(2,), net__weight_scale=(2,))
    rules = [{"src": "net/weight", "dst": "net/kernel"}, {"src": "{m}/weight_scale", "dst": "{m}/weight_scale"}]
    plan = Mapping.of(rules=rules).plan(src, dst)
    assert {i.sources: i.targets for i in plan} == {
        ("net/weight",): ("net/kernel",),
        ("net/weight_scale",): ("net/weight_scale",),
    }


def test_rules_do_not_chain():
    """norm0 -> norm1 -> norm2 is one simultaneous renaming, and inverts."""
    src, dst = arrays(norm0=(2,), norm1=(2,)), arrays(norm1=(2,), norm2=(2,))
    plan = Mapping.of(rules=[{"src": "norm1", "dst": "norm2"}, {"src": "norm0", "dst": "norm1"}]).plan(src, dst)
    out = plan.forward(src)
    assert out["norm1"] is src["norm0"] and out["norm2"] is src["norm1"]
    assert same(dict(plan.inverse(out)), src)
    swap = Mapping.of(rules=[{"src": "norm0", "dst": "norm1"}, {"src": "norm1", "dst": "norm0"}]).plan(src, src)
    assert swap.forward(src)["norm0"] is src["norm1"]


def test_two_sources_for_one_target_are_an_error():
    rules = [{"src": "a/w", "dst": "x/k"}, {"src": "b/w", "dst": "x/k"}]
    text = problems(Mapping.of(rules=rules), arrays(a__w=(2,), b__w=(2,)), arrays(x__k=(2,)))
    assert "'x/k' is the target of 'a/w' (rule) and of 'b/w' (rule)" in text


def test_unequal_concat_reverses_by_its_own_sizes():
    """Grouped query attention: 8 query columns beside 2 key and 2 value columns."""
    src, dst = arrays(q=(4, 8), k=(4, 2), v=(4, 2)), arrays(qkv=(4, 12))
    plan = Mapping.of(rules=[{"src": ["q", "k", "v"], "dst": "qkv", "ops": [{"op": "concat", "axis": 1}]}]).plan(
        src, dst
    )
    out = plan.forward(src)
    assert np.array_equal(out["qkv"][:, 8:10], src["k"])
    assert same(dict(plan.inverse(out)), src)
    back = Mapping.of(rules=[{"src": "qkv", "dst": ["q", "k", "v"], "ops": [{"op": "split", "axis": 1}]}]).plan(
        dst, src
    )
    assert same(dict(back.forward(out)), src)


def test_an_unused_rule_is_an_error():
    text = problems(
        Mapping.of(rules=[{"src": "a", "dst": "a"}, {"src": "wait", "dst": "b"}]), arrays(a=()), arrays(a=())
    )
    assert "rule 'wait -> b' is unused" in text
    Mapping.of(rules=[{"src": "a", "dst": "a"}, {"src": "w", "dst": "b", "optional": True}]).plan(
        arrays(a=()), arrays(a=())
    )


def test_a_leaf_without_a_rule_is_an_error_at_either_end():
    text = problems(Mapping(), arrays(net__kernel=(2, 3)), arrays(net__kernal=(2, 3)))
    assert "source 'net/kernel' float32[2,3] has no rule" in text
    assert "target 'net/kernal' float32[2,3] gets nothing" in text
    assert "Did you mean 'net/kernal'?" in text


def test_nothing_is_read_while_planning():
    abstract = {"a": jax.ShapeDtypeStruct((10**9, 10**9), np.float32)}
    plan = Mapping.of(rules=[{"src": "a", "dst": "b", "ops": ["transpose"]}]).plan(abstract, {"b": abstract["a"]})
    assert len(plan) == 1


def test_escaped_segments_do_not_collide():
    src, dst = arrays(w=()), arrays(w=())
    src, dst = {"a/b/w": src["w"], "a%2Fb/w": src["w"] + 1}, {"x/w": dst["w"], "y/w": dst["w"]}
    plan = Mapping.of(rules=[{"src": "a/b/w", "dst": "x/w"}, {"src": "a%2Fb/w", "dst": "y/w"}]).plan(src, dst)
    assert plan.forward(src)["y/w"] is src["a%2Fb/w"]


# Errors --------------------------------------------------------------------------------------------------------------


def test_every_problem_is_in_one_error():
    src = {**arrays(a=(2, 3), b=(2,), lost=(1,), q=(2,), p=(4,)), "n": np.int32(1)}
    dst = {**arrays(A=(2, 3), B=(2,), n=(), new=(1,), one=(5,)), "n": np.float32(1)}
    rules = [
        {"src": "a", "dst": "A", "ops": ["transpose"]},  # misshapen
        {"src": "b", "dst": "BB"},  # no such target
        {"src": "n", "dst": "n"},  # dtype
        {"src": "typo", "dst": "B"},  # unused
        {"src": ["q", "gone"], "dst": "one", "ops": ["concat"]},  # half there
    ]
    text = problems(Mapping.of(rules=rules, drop=["p"], fill={"one": [1.0, 2.0]}), src, dst)
    for part in (
        "'a' -> 'A' (rule): float32[2,3] does not fit float32[2,3]: float32[2,3] becomes float32[3,2]",
        "'b' goes to 'BB' (rule), which the target does not have.",
        "'n' -> 'n' (rule): int32[] does not fit float32[]",
        "name the target under `cast`",
        "rule 'typo -> B' is unused",
        "also needs 'gone', which the source lacks",
        "source 'lost' float32[1] has no rule",
        "target 'B' float32[2] gets nothing",
        "target 'new' float32[1] gets nothing",
        "the constant (1.0, 2.0) cannot fill float32[5]",
    ):
        assert part in text, f"{part}\n---\n{text}"


def test_rules_of_one_part_that_differ_are_ambiguous_and_an_earlier_part_decides():
    src, dst = arrays(a__w=(2, 2)), arrays(x__w=(2, 2))
    first = Mapping.of(rules=[{"src": "a/w", "dst": "x/w", "ops": ["transpose"]}])
    second = Mapping.of(rules=[{"src": "a/w", "dst": "x/w"}])
    both = Mapping.of(rules=[{"src": "a/w", "dst": "x/w", "ops": ["transpose"]}, {"src": "a/w", "dst": "x/w"}])
    assert "'a/w' is matched by" in problems(both, src, dst)
    assert np.array_equal((first | second).plan(src, dst).forward(src)["x/w"], src["a/w"].T)
    assert np.array_equal((second | first).plan(src, dst).forward(src)["x/w"], src["a/w"])
    twice = Mapping.of(rules=[{"src": "a/w", "dst": "x/w"}, {"src": "{m}/w", "dst": "{m}/w"}])
    assert "is matched by" in problems(twice, src, dst)


def test_rules_that_agree_are_not_ambiguous():
    src, dst = arrays(a__w=(2,)), arrays(x__w=(2,))
    rules = [{"src": "a/w", "dst": "x/w"}, {"src": "a/{l}", "dst": "x/{l}"}]
    assert len(Mapping.of(rules=rules).plan(src, dst)) == 1


def test_a_rule_overridden_for_some_of_its_sources_is_an_error():
    first = Mapping.of(rules=[{"src": "q", "dst": "q"}])
    second = Mapping.of(rules=[{"src": ["q", "k"], "dst": "qk", "ops": ["concat"]}])
    assert "overridden for some" in problems(first | second, arrays(q=(1,), k=(1,)), arrays(q=(1,), qk=(2,)))


def test_a_dtype_changes_only_where_it_is_said():
    src = arrays(a=(2, 3))
    dst = {"b": jax.ShapeDtypeStruct((3, 2), ml_dtypes.bfloat16)}
    rules = [{"src": "a", "dst": "b", "ops": ["transpose"]}]
    assert "A change of dtype must be said" in problems(Mapping.of(rules=rules), src, dst)
    plan = Mapping.of(rules=rules, cast=["{m:path}"]).plan(src, dst)
    assert plan.forward(src)["b"].dtype == ml_dtypes.bfloat16
    assert plan.verdict == "not exact" and plan.reasons == ("b: float32 becomes bfloat16",)


def test_given_state_is_checked_against_the_plan():
    plan = Mapping.of(rules=[{"src": "a", "dst": "b"}]).plan(arrays(a=(2,)), arrays(b=(2,)))
    with pytest.raises(StructureError, match="missing 'a'"):
        plan.forward({})
    with pytest.raises(StructureError, match="unexpected 'z'"):
        plan.forward(arrays(a=(2,), z=()))
    with pytest.raises(EntryShapeError, match=r"'a': got float32\[3\], planned float32\[2\]"):
        plan.forward(arrays(a=(3,)))
    with pytest.raises(EntryShapeError, match="float64"):
        plan.forward({"a": np.zeros(2)})


# Drop and fill -------------------------------------------------------------------------------------------------------


def test_drop_and_fill_are_said_and_counted():
    src, dst = arrays(a=(2,), old=(3,)), arrays(a=(2,), new=(2, 2))
    rules = [{"src": "a", "dst": "a"}]
    plan = Mapping.of(rules=rules, drop=["old"], fill={"new": np.eye(2)}).plan(src, dst)
    out = plan.forward(src)
    assert np.array_equal(out["new"], np.eye(2)) and out["new"].dtype == np.float32
    assert plan.verdict == "not exact" and len(plan.reasons) == 2
    with pytest.raises(UnsupportedError, match="old was dropped"):
        plan.inverse(out)
    back = Mapping.of(rules=rules, drop=[{"src": "old", "value": 7}], fill={"new": 0}).plan(src, dst).inverse(out)
    assert np.array_equal(back["old"], np.float32([7, 7, 7]))


# Stacks --------------------------------------------------------------------------------------------------------------


def test_layers_stack_by_number_not_by_letter():
    src = {f"layer_{i}/w": np.float32([i, 0]) for i in range(12)}
    dst = arrays(scan__w=(12, 2))
    plan = Mapping.of(rules=[{"src": "layer_{i:int}/w", "dst": "scan/w", "ops": ["stack"]}]).plan(src, dst)
    out = plan.forward(src)
    assert np.array_equal(out["scan/w"][:, 0], np.arange(12))
    assert same(dict(plan.inverse(out)), src)
    unstack = Mapping.of(rules=[{"src": "scan/w", "dst": "layer_{i:int}/w", "ops": ["unstack"]}]).plan(dst, src)
    assert same(dict(unstack.forward(out)), src)


def test_a_gap_in_a_stack_is_an_error():
    src = {f"layer_{i}/w": np.float32([i]) for i in (0, 1, 3)}
    rule = {"src": "layer_{i:int}/w", "dst": "scan/w", "ops": ["stack"]}
    assert "have gaps: [0, 1, 3]" in problems(Mapping.of(rules=[rule]), src, arrays(scan__w=(3, 1)))


def test_a_fused_recurrent_kernel():
    """Two splits, one after the other, and an offset on one part: an LSTM (layers.md, section 4)."""
    inner, hidden = 3, 2
    src = arrays(lstm__w=(inner + hidden, 4 * hidden), lstm__b=(4 * hidden,))
    gates = ["ii", "ig", "if", "io"], ["hi", "hg", "hf", "ho"]
    kernels = [f"{g}/kernel" for side in gates for g in side]
    shapes = {k: (inner if k[0] == "i" else hidden, hidden) for k in kernels} | {
        f"{g}/bias": (hidden,) for g in gates[1]
    }
    dst = {k: np.zeros(s, np.float32) for k, s in shapes.items()}
    rules = [
        {"src": "lstm/w", "dst": kernels, "ops": [{"op": "split", "axis": 0, "parts": 2}, {"op": "split", "parts": 4}]},
        {
            "src": "lstm/b",
            "dst": [f"{g}/bias" for g in gates[1]],
            "ops": ["split", {"op": "add", "value": 1.0, "part": 2}],
        },
    ]
    rows = {"op": "split", "axis": 0, "sizes": [inner, hidden]}
    plan = Mapping.of(rules=[{**rules[0], "ops": [rows, {"op": "split", "parts": 4}]}, rules[1]]).plan(src, dst)
    out = plan.forward(src)
    assert np.array_equal(out["hf/kernel"], src["lstm/w"][inner:, 2 * hidden : 3 * hidden])
    assert np.array_equal(out["hf/bias"], src["lstm/b"][2 * hidden : 3 * hidden] + 1)
    assert plan.verdict == "exact to rounding"
    assert same(dict(Mapping.of(rules=rules).plan(src, dst).forward(src)), dict(out))  # sizes found from both ends


# Both ways, as properties --------------------------------------------------------------------------------------------

OPS = {
    "transpose": lambda s: ([{"op": "transpose"}], s[::-1]),
    "reshape": lambda s: ([{"op": "reshape"}], (int(np.prod(s)),)),
    "flip": lambda s: ([{"op": "flip", "axis": 0}], s),
    "expand": lambda s: ([{"op": "expand", "axis": [0, -1]}], (1, *s, 1)),
    "scale": lambda s: ([{"op": "scale", "value": -2}], s),
    "chain": lambda s: ([{"op": "flip", "axis": -1}, {"op": "transpose"}, {"op": "reshape"}], (int(np.prod(s)), 1)),
}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(OPS)),
            st.lists(st.integers(1, 4), min_size=1, max_size=3),
            st.sampled_from([np.float32, np.float64, ml_dtypes.bfloat16, np.float16]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**31),
)
def test_inverse_of_forward_is_bit_for_bit(leaves, seed):
    rng = np.random.default_rng(seed)
    src, dst, rules = {}, {}, []
    for i, (name, shape, dtype) in enumerate(leaves):
        ops, out = OPS[name](tuple(shape))
        src[f"a/{i}"] = rng.normal(size=shape).astype(dtype)
        dst[f"b/{i}"] = jax.ShapeDtypeStruct(out, np.dtype(dtype))
        rules.append({"src": f"a/{i}", "dst": f"b/{i}", "ops": ops})
    plan = Mapping.of(rules=rules).plan(src, dst)
    out = plan.forward(src)
    assert plan.verdict == "exact"
    assert all(type(x) is np.ndarray for x in out.values())
    assert same(dict(plan.inverse(out)), src)
    assert same(dict(plan.forward(plan.inverse(out))), dict(out))
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_runs_under_jit_and_grad():
    src, dst = arrays(a=(2, 3)), arrays(b=(3, 2))
    plan = Mapping.of(rules=[{"src": "a", "dst": "b", "ops": ["transpose", {"op": "add", "value": 1}]}]).plan(src, dst)

    def loss(state):
        return jnp.sum(plan.forward(state)["b"] ** 2)

    gradient = jax.jit(jax.grad(loss))({k: jnp.asarray(v) for k, v in src.items()})
    np.testing.assert_allclose(gradient["a"], 2 * (src["a"] + 1), rtol=1e-6)


def test_items_stream_one_at_a_time():
    src, dst = arrays(a=(2, 3), b=(4,)), arrays(A=(3, 2), b0=(1,), b1=(3,))
    rules = [{"src": "a", "dst": "A", "ops": ["transpose"]}, {"src": "b", "dst": ["b0", "b1"], "ops": ["split"]}]
    plan = Mapping.of(rules=rules).plan(src, dst)
    out = {}
    for item in plan:
        out.update(zip(item.targets, item.forward([src[p] for p in item.sources]), strict=True))
    assert same(out, dict(plan.forward(src)))


def test_a_rename_copies_nothing_and_kinds_are_the_targets():
    class Mine(Variable):
        pass

    src = State(arrays(a=(2,), s=(2,)))
    dst = State(arrays(b=(2,), t=(2,)), {"b": Param, "t": BatchStat})
    mapping = Mapping.of(rules=[{"src": "a", "dst": "b"}, {"src": "s", "dst": "t"}])
    plan = mapping.plan(src, dst)
    out = plan.forward(src)
    assert out["b"] is src["a"]
    assert out.kind("t") is BatchStat and out.kind("b") is Param
    assert Plan.from_json(plan.to_json()).forward(src).kind("t") is BatchStat
    mine = mapping.plan(src, State(dict(dst), {"t": Mine})).to_json()
    with pytest.raises(MappingError, match=r"kinds=\{'Mine'"):
        Plan.from_json(mine)
    assert Plan.from_json(mine, kinds={"Mine": Mine}).dst.kind("t") is Mine


def test_random_keys_can_be_carried_and_kept_as_json():
    keys = {"r": jax.random.key(0)}
    plan = Mapping.of(rules=[{"src": "r", "dst": "s"}]).plan(keys, {"s": keys["r"]})
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.forward(keys)["s"] is keys["r"]


@pytest.mark.parametrize("text", ["no json", "{}", "[]", '{"bridges_plan": 2}'])
def test_json_that_is_no_plan(text):
    with pytest.raises(MappingError):
        Plan.from_json(text)


def test_the_table_has_every_leaf_and_the_verdict():
    src, dst = arrays(a=(2, 3), b=(4,)), arrays(A=(3, 2), b0=(1,), b1=(3,))
    rules = [{"src": "a", "dst": "A", "ops": ["transpose"]}, {"src": "b", "dst": ["b0", "b1"], "ops": ["split"]}]
    table = str(Mapping.of(rules=rules).plan(src, dst)).splitlines()
    assert table[0].split() == ["source", "ops", "target", "shape"]
    assert table[2].split() == ["a", "transpose", "A", "float32", "[2,3]", "->", "[3,2]"]
    assert table[4].split() == ["b1"]
    assert table[-1] == "2 entries -> 3 entries: exact"


# Modules -------------------------------------------------------------------------------------------------------------


def test_modules_alone_keep_leaf_names():
    src, dst = arrays(params__a__w=(2,), state__a__n=(1,)), arrays(params__b__w=(2,), state__b__n=(1,))
    plan = Mapping.of(modules={"a": "b"}).plan(src, dst)
    assert plan.forward(src)["state/b/n"] is src["state/a/n"]
    assert plan.placements == (("a", "b", "given"),)


def test_an_unused_module_line_is_an_error():
    src = arrays(params__net__w=(2,))
    assert "[modules] 'nat' = 'x' is unused" in problems(Mapping.of(modules={"nat": "x"}), src, src)


def test_module_lines_that_differ_are_ambiguous():
    src, dst = arrays(params__a__w=(2,)), arrays(params__b__w=(2,))
    both = Mapping.of(modules={"a": "b", "{m}": "{m}"})
    there = arrays(params__a__w=(2,), params__b__w=(2,))
    assert "[modules] sends 'a' to 'a', 'b'" in problems(both, src, there)
    assert len(both.plan(src, dst)) == 1  # the target has no 'a' that the second line could mean
    first = Mapping.of(modules={"a": "b"}) | Mapping.of(modules={"{m}": "{m}"})
    assert len(first.plan(src, dst)) == 1


def test_an_explicit_rule_goes_before_the_layer_it_is_in():
    src, dst = arrays(params__a__w=(2, 2), params__a__b=(2,)), arrays(params__D__kernel=(2, 2), params__D__bias=(2,))
    rule = {"src": "params/a/w", "dst": "params/D/kernel", "ops": ["transpose"]}
    plan = (Mapping.of(rules=[rule]) | conventions("haiku", "linen")).plan(src, dst)
    assert np.array_equal(plan.forward(src)["params/D/kernel"], src["params/a/w"].T)


def test_what_could_be_two_layers_is_listed():
    layers = [
        {"type": t, "rules": [{"src": "params/{m:module}/w", "dst": "params/{m:module}/k", "ops": ops}]}
        for t, ops in (("A", []), ("B", ["transpose"]))
    ]
    src, dst = arrays(params__a__w=(2, 2)), arrays(params__b__k=(2, 2))
    assert "could be A or B, which are stored differently" in problems(Mapping.of(layers=layers), src, dst)
    typed = [dict(row, src=f"x.{row['type']}") for row in layers]
    spec = dataclasses.replace(Spec.of(src), layers={"a": Layer("x.B")})
    plan = Mapping.of(layers=typed).plan(spec, dst)
    assert np.array_equal(plan.forward(src)["params/b/k"], src["params/a/w"].T)


def test_a_line_is_not_for_what_lies_beyond_the_end_of_a_list():
    """Two lines for two groups of one list: each also fits numbers for which its own group has no module."""
    src = {f"params/layers/{i}/kernel": np.ones((2, 2)) for i in range(5)}
    dst = {f"params/{g}/linear_{i}/w": np.ones((2, 2)) for g, count in (("a", 2), ("b", 3)) for i in range(count)}
    lines = {"layers/{i:int}": "a/linear_{i:int}", "layers/{i+2:int}": "b/linear_{i:int}"}
    plan = (Mapping.of(modules=lines) | conventions("nnx", "haiku")).plan(src, dst)
    assert {s: d for s, d, _ in plan.placements} == {
        "layers/0": "a/linear_0", "layers/1": "a/linear_1",
        "layers/2": "b/linear_0", "layers/3": "b/linear_1", "layers/4": "b/linear_2",
    }  # fmt: skip
    with pytest.raises(MappingError, match="make one of the lines narrower"):
        more = {**dst, "params/a/linear_2/w": np.ones((2, 2))}
        (Mapping.of(modules=lines) | conventions("nnx", "haiku")).plan(src, more)


def test_many_leaves_without_a_rule_are_listed_by_module():
    def end(name, size):
        leaves = {f"params/{name}_{i}/{leaf}": np.ones((size, i + 1)) for i in range(7) for leaf in ("kernel", "bias")}
        return {**leaves, f"params/{name}_7/kernel": np.ones((size, 9))}

    with pytest.raises(MappingError) as err:
        (Mapping.of() | conventions("linen", "nnx")).plan(end("a", 2), end("b", 3))
    text = str(err.value)
    assert "source 'params/a_0' (bias float64[2,1], kernel float64[2,1]) has no rule" in text
    assert len(text.splitlines()) == 18 and "say under [modules] which is which" in text.splitlines()[-1]


def test_a_nested_tree_is_no_end_of_a_plan():
    with pytest.raises(StructureError, match=r"'linear' is a dict, not an array.*flatten\(variables\)"):
        conventions("haiku", "linen").plan(
            {"linear": {"w": np.ones((2, 3))}}, {"params/Dense_0/kernel": np.ones((2, 3))}
        )
