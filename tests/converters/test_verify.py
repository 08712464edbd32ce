"""`converters.verify`: what is compared, in which forms models and variables may come, and what counts as proof."""

import functools
import json

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import converters
from bridges import Module, State, get, haiku_adapter, linen_adapter, nnx_adapter
from bridges._infer._random import randomised
from bridges.core._errors import BridgeError, StructureError
from bridges.param_mapping import Mapping, conventions
from converters._side import named
from tests.converters import models as m
from tests.converters import nets

QUICK = ("float32",)


def joined(*names):
    """A plan that takes each of these arrays to one of the same name."""
    like = {name: np.ones((3, 3) if name == "w" else 3, np.float32) for name in names}
    return Mapping.of(rules=[{"src": name, "dst": name} for name in names]).plan(like, like)


W = {"w": np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)}
XS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def linear(v, x):
    return x @ v["w"]


@functools.cache
def trained():
    """A network with BatchNorm, in evaluation and in training, with a step of the optimizer."""
    return converters.verify(
        m.cnn,
        m.CNN(),
        m.IMAGES,
        frameworks=("haiku", "linen"),
        plan=plan_of_cnn(),
        train=(functools.partial(m.cnn, train=True), m.CNN(train=True)),
        optimizer=optax.adamw(1e-2),
        dtypes=("float64", "float32"),
    )


@functools.cache
def plan_of_cnn():
    src = haiku_adapter.spec(functools.partial(m.cnn, train=True), m.IMAGES)
    return conventions("haiku", "linen").plan(src, linen_adapter.spec(m.CNN(), m.IMAGES))


def test_evaluation_training_and_a_step():
    report = trained()
    assert report.ok and report.first is None, str(report)
    assert report.verdict == "equal in evaluation, training goes on otherwise"
    assert {(c.mode, c.what) for c in report.checks} >= {
        ("eval", "output"), ("eval", "gradient"), ("eval", "input gradient"), ("train", "output"), ("train", "gradient"),
        ("train", "state"), ("step", "parameter"),
    }  # fmt: skip
    states = [c for c in report.checks if c.what == "state" and c.dtype == "float64"]
    assert [c.path for c in states] == ["batch_stats/norm/mean", "batch_stats/norm/var"]
    assert all(c.status == "as planned" and "bias correction" in c.note for c in states)
    steps = [c.path for c in report.checks if c.what == "parameter"]
    assert len(steps) == 7 and all(path.startswith("params/") for path in steps)


def test_a_wrong_step_is_caught():
    """The target freezes its kernel in training only: outputs agree there and in evaluation."""
    plan = joined("w")

    def frozen(v, x):
        return x @ jax.lax.stop_gradient(v["w"]), None

    report = converters.verify(
        linear, linear, XS, src=W, plan=plan, train=(lambda v, x: (linear(v, x), None), frozen), optimizer=optax.sgd(0.1),
        dtypes=QUICK,
    )  # fmt: skip
    wrong = {(c.mode, c.what) for c in report.problems}
    assert wrong == {("train", "gradient"), ("step", "parameter")}


def test_state_that_moves_otherwise_is_caught():
    def run(v, x, decay):
        return linear(v, x), {"b": decay * v["b"] + (1 - decay) * x.mean(0)}

    b = {"b": np.ones(3, np.float32)}
    plan = joined("w", "b")
    good, bad = (functools.partial(run, decay=d) for d in (0.9, 0.99))
    call = functools.partial(converters.verify, linear, linear, XS, src=W | b, plan=plan, dtypes=QUICK)
    assert call(train=(good, good)).ok
    report = call(train=(good, bad))
    assert [(c.mode, c.what, c.path) for c in report.problems] == [("train", "state", "b")]


# Forms -------------------------------------------------------------------------------------------------------------------


def test_native_trees_go_to_native_functions():
    old = hk.without_apply_rng(hk.transform(m.mlp))
    params = haiku_adapter.unflatten(State(randomised(haiku_adapter.spec(m.mlp, m.X).entries)))[0]
    new = m.MLP()
    like = linen_adapter.spec(new, m.X)
    plan = conventions("haiku", "linen").plan(haiku_adapter.spec(m.mlp, m.X), like)
    report = converters.verify(old.apply, new.apply, m.X, src=params, dst=like.native, plan=plan, dtypes=QUICK)
    assert report.ok, str(report)
    variables = linen_adapter.unflatten(plan.forward(haiku_adapter.flatten(params)), like.native)
    report = converters.verify(old.apply, new.apply, m.X, src=params, dst=variables, plan=plan, dtypes=QUICK)
    assert report.ok and report.plan_verdict == "exact"
    report = converters.verify(old, new, m.X, src=params, dst=variables, dtypes=QUICK)  # models, and no plan
    assert report.ok and any(c.what == "gradient" for c in report.checks)


def test_nnx_and_its_random_state():
    mapping = Mapping.of(modules={"linear": "a", "linear_1": "b", "linear_2": "head", "layer_norm": "norm"})
    plan = mapping | conventions("haiku", "nnx")
    report = converters.verify(m.mlp, m.NNXMLP, m.X, frameworks=("haiku", None), plan=plan, dtypes=QUICK)
    assert report.ok, str(report)


def test_a_module_of_the_core():
    class Net(Module):
        def __call__(self, x):
            return x @ get("w", jnp.ones, (3, 3))

    path = "net/w"
    report = converters.verify(
        linear,
        Net(),
        XS,
        src=W,
        plan=Mapping.of(rules=[{"src": "w", "dst": path}]).plan(W, {path: W["w"]}),
        dtypes=QUICK,
    )
    assert report.ok, str(report)


def test_without_a_plan_outputs_are_compared():
    report = converters.verify(linear, linear, XS, src=W, dst=W, dtypes=QUICK)
    assert report.ok and {c.what for c in report.checks} == {"output", "input gradient"}
    assert any("no plan" in note for note in report.notes)


def test_structured_inputs_and_flags():
    def run(v, batch, flag):
        assert flag is True
        return {"logits": batch["x"] @ v["w"], "ids": batch["ids"]}

    batch = {"x": XS, "ids": np.arange(5)}
    report = converters.verify(run, run, batch, True, src=W, plan=joined("w"), dtypes=QUICK)
    assert report.ok
    assert {c.path for c in report.checks if c.what == "output"} == {"logits", "ids"}
    assert [c.path for c in report.checks if c.what == "input gradient"] == ["0/x"]


def test_a_loss_of_the_user():
    report = converters.verify(
        linear,
        lambda v, x: linear(v, x) + 1e-3,
        XS,
        src=W,
        plan=joined("w"),
        dtypes=QUICK,
        loss=lambda y: jnp.mean(y**2),
    )
    assert {c.what for c in report.problems} == {"output", "gradient", "input gradient"}


def test_what_does_not_fit_together_is_said():
    with pytest.raises(BridgeError, match="pass src="):
        converters.verify(linear, linear, XS)
    with pytest.raises(BridgeError, match="plan=, or dst="):
        converters.verify(linear, linear, XS, src=W)
    with pytest.raises(StructureError, match="'v'"):
        converters.verify(linear, linear, XS, src={"v": W["w"]}, plan=joined("w"))
    with pytest.raises(BridgeError, match="'torch' is no framework"):
        converters.verify(linear, linear, XS, src=W, frameworks=("torch", None))


# What cannot be passed over --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,problem",
    [
        (lambda y: jnp.where(y > 0, jnp.nan, y), "NaN or infinite"),
        (lambda y: y.T, "the shape is"),
        (lambda y: y.astype(jnp.float16), "the dtype is"),
        (lambda y: (y, y), "only the target has it"),
        (lambda y: y[:, :0], "the shape is"),
    ],
    ids=["nan", "shape", "dtype", "structure", "empty"],
)
def test_outputs_that_cannot_be_compared(change, problem):
    report = converters.verify(linear, lambda v, x: change(linear(v, x)), XS, src=W, plan=joined("w"), dtypes=QUICK)
    assert not report.ok and any(problem in c.note for c in report.problems), str(report)


def test_nan_at_both_ends_is_no_agreement():
    run = lambda v, x: linear(v, x) / 0.0 * 0.0  # noqa: E731
    assert not converters.verify(run, run, XS, src=W, plan=joined("w"), dtypes=QUICK).ok


def test_a_constant_output_proves_nothing():
    run = lambda v, x: 0 * linear(v, x)  # noqa: E731
    report = converters.verify(run, run, XS, src=W, plan=joined("w"), dtypes=QUICK)
    assert report.verdict == "not proven" and not report.ok
    assert {c.what for c in report.problems} == {"output", "gradient"}


def test_a_variable_that_nothing_depends_on_is_named():
    report = converters.verify(
        linear, linear, XS, src=W | {"b": np.ones(3, np.float32)}, plan=joined("w", "b"), dtypes=QUICK
    )
    assert report.ok and report.unproven == {"b": "unused: neither model reads it"}


def test_a_variable_that_only_one_reads_is_a_problem():
    b = {"b": np.ones(3, np.float32)}
    run = lambda v, x: linear(v, x) + 0 * v["b"]  # noqa: E731
    report = converters.verify(linear, run, XS, src=W | b, plan=joined("w", "b"), dtypes=QUICK)
    assert not report.ok and "only the target reads it" in report.unproven["b"]


def test_rows_of_a_table_that_no_token_reads_are_counted():
    run = lambda v, x: v["w"][x]  # noqa: E731
    report = converters.verify(run, run, np.array([0, 0, 2]), src=W, plan=joined("w"), dtypes=QUICK)
    (check,) = [c for c in report.checks if c.what == "gradient"]
    assert report.ok and check.note == "67 % of its elements have a gradient"


# Tolerances ----------------------------------------------------------------------------------------------------------------


def test_rounding_does_not_fail_and_a_small_error_does():
    """The same sum in another order: not bit-equal, and equal; a part in a million more is not."""
    rng = np.random.default_rng(2)
    w = {"w": rng.normal(size=(3000, 3)).astype(np.float32)}
    x = rng.normal(size=(4, 3000)).astype(np.float32)
    plan = Mapping.of(rules=[{"src": "w", "dst": "w"}]).plan(w, w)

    def other(v, x, more=1.0):
        return sum(x[:, i::7] @ v["w"][i::7] for i in range(7)) * more

    call = functools.partial(converters.verify, linear, src=w, plan=plan)
    assert np.any(linear(w, x) != other(w, x))
    assert call(other, x, dtypes=("float32", "bfloat16")).ok
    assert not call(functools.partial(other, more=1 + 1e-6), x, dtypes=("float64",)).ok
    assert not call(functools.partial(other, more=1 + 1e-4), x, dtypes=("float32",)).ok


def test_a_target_in_half_precision_is_told_from_rounding():
    def half(v, x):
        return (x.astype(jnp.bfloat16) @ v["w"].astype(jnp.bfloat16)).astype(x.dtype)

    report = converters.verify(linear, half, XS, src=W, plan=joined("w"), dtypes=("float64", "float32"))
    assert not report.ok
    (note,) = [c.note for c in report.checks if c.status == "not run"]
    assert note == "the target computes in bfloat16 whatever it is given: float64 cannot tell more"


def test_a_precision_that_does_not_run_is_said():
    def only32(v, x):
        if x.dtype != np.float32:
            raise TypeError("float32 only")
        return linear(v, x)

    report = converters.verify(only32, linear, XS, src=W, plan=joined("w"))
    assert report.ok and sum("float32 only" in c.note for c in report.checks) == 2
    with pytest.raises(TypeError, match="float32 only"):
        converters.verify(only32, linear, XS, src=W, plan=joined("w"), dtypes=("bfloat16",))


# Reports -------------------------------------------------------------------------------------------------------------------


def test_the_table_is_narrow_and_the_json_is_whole():
    report = trained()
    assert max(map(len, str(report).splitlines())) <= 100
    data = json.loads(report.to_json())
    assert data["ok"] is True and len(data["checks"]) == len(report.checks) and len(data["items"]) == 11
    assert data == report.to_dict() and data["bridges_report"] == 1


def test_a_path_of_the_user_is_inert_on_the_page():
    """A name that is HTML stays text, wherever names are shown."""
    name = "</code></style><script>alert('1')</script><img src=x onerror=alert(2)>"
    like = {name: W["w"]}
    plan = Mapping.of(rules=[{"src": "{p:path}", "dst": "{p:path}"}]).plan(like, like)
    run = lambda v, x, more=0.0: x @ v[name] + more  # noqa: E731
    wrong = {name: np.ascontiguousarray(W["w"].T)}
    report = converters.verify(run, run, XS, src=like, dst=wrong, plan=plan, dtypes=QUICK)
    assert not report.ok and report.first is not None
    page = report.html(title=name)
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "http:" not in page and "https:" not in page and "src=" not in page.replace(" src=x", "")


def test_the_page_shows_both_trees_and_the_verdict():
    page = trained().html()
    for text in ("batch_stats/norm", "state/norm/~/mean_ema", "kernel", "equal in evaluation", "prefers-color-scheme"):
        assert text in page
    assert page.startswith("<!doctype html>") and page.count("<tr") == page.count("</tr>")


def test_the_name_is_the_function():
    """Also after the modules behind it were imported by themselves."""
    import converters._verify

    assert callable(converters.verify) and converters.verify is converters._verify.verify
    assert converters.Report is type(trained())


def test_a_function_that_is_a_model_is_asked_for_its_framework():
    with pytest.raises(BridgeError, match=r"source was taken for apply.*frameworks=\('…', 'linen'\)"):
        converters.verify(lambda x: hk.Linear(2)(x), nn.Dense(2), np.ones((2, 3), np.float32), src={"w": np.ones(2)})


def test_nnx_variables_as_nnx_gives_them():
    """`nnx.state(model)` and the pure dictionary, with other Variables than Params in them."""
    state = nnx.state(nets.NNX(nnx.Rngs(0)))
    wanted = nnx_adapter.flatten(state)
    assert "batch_stats/norm/mean" in wanted and "params/head/0/kernel" in wanted
    for tree in (state, nnx.to_pure_dict(state)):
        found = named(tree, wanted, "variables")
        assert found.keys() == wanted.keys() and all(found[path] is wanted[path] for path in wanted)
    with pytest.raises(StructureError, match=r"'stem/kernel/value'\. Did you mean"):
        named(state, [path for path in wanted if "stem" not in path] + ["params/stem/kernels"], "variables")
