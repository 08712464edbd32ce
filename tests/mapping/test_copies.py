"""`copy`: one entry becomes several, and comes back from them only as long as they are one."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import converters
from bridges.core._errors import UnsupportedError
from bridges.core._flat import nest
from bridges.mapping._ops import op_from_dict
from bridges.param_mapping import Mapping, Plan
from converters._manifest import manifest_of

TEXT = """
[[rules]]
src = "params/{m:module}/table"
dst = ["params/{m:module}/embedding", "params/{m:module}/kernel"]
ops = ["copy", { op = "transpose", part = 1 }]
"""
KEEPING = TEXT.replace('"copy"', '{ op = "copy", equal = false }')
TOKENS = jnp.arange(5)


def copied(text):
    """Returns the plan that unties the table of each of two languages, and values."""
    rng = np.random.default_rng(0)
    src = {f"params/{m}/table": rng.normal(size=(5, 3)).astype(np.float32) for m in ("de", "en")}
    dst = {f"params/{m}/embedding": x for m, x in zip(("de", "en"), src.values(), strict=True)}
    dst |= {f"params/{m}/kernel": dst[f"params/{m}/embedding"].T for m in ("de", "en")}
    return Mapping.loads(text).plan(src, dst), src


@jax.jit
def step(params):
    def loss(p):
        logits = (jnp.tanh(p[f"params/{m}/embedding"][TOKENS]) @ p[f"params/{m}/kernel"] for m in ("de", "en"))
        return sum(jnp.sum((x - 1) ** 2) for x in logits)

    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))


def trained(state):
    """Returns the state after two steps, which move the two tables of a language apart."""
    return {path: np.asarray(x) for path, x in step(step(dict(state))).items()}


def test_copies_that_were_trained_apart_are_refused_all_at_once_with_what_differs_and_the_remedy():
    plan, src = copied(TEXT)
    new = plan.forward(src)
    assert plan.verdict == "exact"
    assert all(np.array_equal(plan.inverse(new)[path], x) for path, x in src.items())
    apart = trained(new)
    with pytest.raises(UnsupportedError) as caught:
        plan.inverse(apart)
    message = str(caught.value)
    for m in ("de", "en"):
        embedding, kernel = apart[f"params/{m}/embedding"], apart[f"params/{m}/kernel"].T
        number, most = (embedding != kernel).sum(), np.abs(embedding - kernel).max()
        by = f"number 1 from number 0 in {number} of 15 elements, by at most {most:.3g}"
        assert f"params/{m}/table -> params/{m}/embedding, params/{m}/kernel: these are one entry" in message
        assert f"{by}. `equal = false` at the op of a rule keeps the first" in message


def test_the_remedy_keeps_the_first_and_says_that_something_is_lost():
    plan, src = copied(KEEPING)
    apart = trained(plan.forward(src))
    back = plan.inverse(apart)
    assert all(np.array_equal(back[f"params/{m}/table"], apart[f"params/{m}/embedding"]) for m in ("de", "en"))
    backwards = Mapping.loads(KEEPING).inverse.plan(apart, src)
    assert backwards.verdict == "not exact" and "keeps the first source only" in backwards.reasons[0]


def test_the_inverse_as_data_refuses_too_and_a_pick_of_ones_own_does_not():
    plan, src = copied(TEXT)
    apart = trained(plan.forward(src))
    for mapping in (Mapping.loads(TEXT).inverse, Mapping.loads(Mapping.loads(TEXT).inverse.dumps())):
        assert '{ op = "pick", equal = true }' in mapping.dumps()
        with pytest.raises(UnsupportedError, match="params/de/embedding, params/de/kernel -> params/de/table"):
            mapping.plan(apart, src).forward(apart)
    own = Mapping.loads(TEXT).inverse.dumps().replace('{ op = "pick", equal = true }', '"pick"')
    picked = Mapping.loads(own).plan(apart, src)
    assert np.array_equal(picked.forward(apart)["params/de/table"], apart["params/de/embedding"])
    assert '{ op = "copy", equal = false }' in Mapping.loads(own).inverse.dumps()


@pytest.mark.parametrize("text", [TEXT, KEEPING], ids=["equal", "first"])
def test_what_is_written_says_whether_copies_are_equal(text):
    mapping, (plan, _) = Mapping.loads(text), copied(text)
    equal = text is TEXT
    assert f'{{ op = "copy", equal = {str(equal).lower()} }}' in mapping.dumps()
    assert Mapping.loads(mapping.dumps()) == mapping and mapping.inverse.inverse == mapping
    ops = json.loads(plan.to_json())["items"][0]["ops"]
    assert ops[0] == {"op": "copy", "equal": equal} and Plan.from_json(plan.to_json()) == plan


def test_plans_and_manifests_of_before_keep_their_meaning(tmp_path):
    """They left `equal` out where it was false."""
    plan, src = copied(KEEPING)
    apart = trained(plan.forward(src))
    before = plan.to_json().replace('"op": "copy", "equal": false', '"op": "copy"')
    assert before != plan.to_json() and Plan.from_json(before) == plan
    old, new, back = (tmp_path / f"{name}.npz" for name in ("old", "new", "back"))
    converters.save(old, src)
    converters.convert(old, new, mapping=Mapping.loads(KEEPING), to="flat")
    note = manifest_of(new)
    said = note.read_text()
    note.write_text(re.sub(r',\s*"equal": false', "", said))
    assert note.read_text() != said
    converters.save(tmp_path / "apart.npz", nest(apart))
    converters.convert_back(tmp_path / "apart.npz", back, manifest=note)
    assert np.array_equal(converters.load(back)["params/de/table"], apart["params/de/embedding"])


def test_a_trained_file_with_copies_is_not_converted_back(tmp_path):
    plan, src = copied(TEXT)
    old, new, back = (tmp_path / f"{name}.npz" for name in ("old", "new", "back"))
    converters.save(old, src)
    converters.convert(old, new, mapping=Mapping.loads(TEXT), to="flat")
    converters.convert_back(new, back)
    assert back.read_bytes() == old.read_bytes()
    converters.save(tmp_path / "apart.npz", nest(trained(plan.forward(src))))
    with pytest.raises(UnsupportedError, match=r"params/de/embedding.*one entry .* number 1 from number 0 in 15 of 15"):
        converters.convert_back(tmp_path / "apart.npz", tmp_path / "again.npz", manifest=manifest_of(new))
    assert not (tmp_path / "again.npz").exists()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "a", "b", "text"),
    [
        (np.float32, [0.0, 1.0], [-0.0, 1.0], "in 1 of 2 elements, by at most 0"),
        (np.float32, [NAN, 1.0], [1.0, 1.0], "in 1 of 2 elements, by at most 0 or NaN"),
        (np.float32, [NAN, INF], [NAN, -INF], "in 1 of 2 elements, by at most inf"),
        (np.float64, 1.0, 1.5, "in 1 of 1 elements, by at most 0.5"),
        (ml_dtypes.bfloat16, [1.0, 2.0], [1.0, 2.5], "in 1 of 2 elements, by at most 0.5"),
        (ml_dtypes.float8_e4m3fn, [1.0, 2.0], [1.0, 2.5], "in 1 of 2 elements, by at most 0.5"),
        (np.complex64, [1.0, 2j], [1.0, 5j + 4], "in 1 of 2 elements, by at most 5"),
        (np.int8, [-128, 3], [127, 3], "in 1 of 2 elements, by at most 255"),
        (np.bool_, [True, False], [True, True], "in 1 of 2 elements, by at most 1"),
    ],
)
def test_what_differs_is_counted_by_bits_and_measured_by_value(dtype, a, b, text):
    pick = op_from_dict("copy").inverse
    a, b = np.array(a, dtype), np.array(b, dtype)
    outs = [jax.ShapeDtypeStruct(a.shape, a.dtype)]
    assert pick.apply([a, a.copy()], outs)[0] is a
    with pytest.raises(UnsupportedError, match=rf"number 1 from number 0 {text}\. "):
        pick.apply([a, b], outs)


def test_groups_random_keys_and_traced_values():
    pick = op_from_dict({"op": "copy", "parts": 3}).inverse
    xs = [np.float32([i // 3]) for i in range(6)]
    outs = [jax.ShapeDtypeStruct((1,), np.float32)] * 2
    assert [float(x[0]) for x in pick.apply(xs, outs)] == [0, 1]
    xs[5] = np.float32([3])
    with pytest.raises(UnsupportedError, match="differ: number 5 from number 3 in 1 of 1 elements, by at most 2"):
        pick.apply(xs, outs)
    assert [float(x[0]) for x in jax.jit(lambda xs: pick.apply(xs, outs))(xs)] == [0, 1]  # there are no values
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    assert pick.apply([*keys[:2], keys[0]], outs[:1]) == [keys[0]]
    with pytest.raises(UnsupportedError, match="differ: number 2 from number 0 in 1 of 2 elements"):
        pick.apply(keys, outs[:1])
