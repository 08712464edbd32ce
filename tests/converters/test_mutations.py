"""A wrong mapping is never silent: right ones pass, and each mutation is caught, with the layer and the reason named.

Mostly float64 alone is run: it says whether it is the same function, and one precision is quick.
"""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import converters
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError
from bridges.param_mapping import Mapping, conventions
from tests.converters import models as m

INPUTS = {m.mlp: m.X, m.cnn: m.IMAGES, m.lstm: m.TEXT, m.attention: m.TEXT, m.decoder: m.IMAGES}
QUICK = ("float64",)


def haiku_apply(model):
    return lambda variables, x: haiku_adapter.apply(model, variables, x)[0]


def linen_apply(model):
    return lambda variables, x: linen_adapter.apply(model, variables, x)[0]


@functools.cache
def specs(model, target):
    x = INPUTS[model]
    src = haiku_adapter.spec(functools.partial(model, train=True) if model is m.cnn else model, x)
    return src, linen_adapter.spec(target, x) if isinstance(target, nn.Module) else nnx_adapter.spec(target)


@functools.cache
def right(model, target):
    """The plan of the conventions."""
    if isinstance(target, nn.Module):
        return conventions("haiku", "linen").plan(*specs(model, target))
    modules = {"linear": "a", "linear_1": "b", "linear_2": "head", "layer_norm": "norm"}
    return (Mapping.of(modules=modules) | conventions("haiku", "nnx")).plan(*specs(model, target))


def check(model, target, plan=None, run=None, **kwargs):
    """Verifies `model` against `run`, or `target` itself, over what the plan for `target` says."""
    if plan is None:
        plan = right(model, target)
    kwargs.setdefault("dtypes", QUICK)
    return converters.verify(haiku_apply(model), linen_apply(run or target), INPUTS[model], plan=plan, **kwargs)


def rewritten(model, target, *rules, **mapping):
    """A plan with some rules of the user's own, which go before the conventions."""
    return (Mapping.of(rules=list(rules), **mapping) | conventions("haiku", "linen")).plan(*specs(model, target))


def mutated(plan, change):
    """What the plan makes of random variables, with some of it changed by `change(dict)`; and the variables."""
    from bridges._infer._random import randomised

    old = randomised(plan.src, 0)
    new = dict(plan.forward(old))
    change(new)
    return {"src": old, "dst": new}


@pytest.mark.parametrize(
    "model,target",
    [(m.mlp, m.MLP()), (m.cnn, m.CNN()), (m.lstm, m.LSTM()), (m.attention, m.Attention()), (m.decoder, m.Decoder())],
    ids=["mlp", "cnn", "lstm", "attention", "decoder"],
)
def test_what_is_right_passes(model, target):
    """In float32 too, whose rounding must not fail."""
    report = check(model, target, dtypes=("float64", "float32"))
    assert report.ok and report.first is None, str(report)


# Wrong leaves ------------------------------------------------------------------------------------------------------------


def test_a_square_kernel_is_transposed():
    rule = {"src": "params/linear_1/w", "dst": "params/Dense_1/kernel", "ops": ["transpose"]}
    report = check(m.mlp, m.MLP(), rewritten(m.mlp, m.MLP(), rule))
    assert not report.ok and report.verdict == "different"
    assert (report.first.layer, report.first.src_layer) == ("Dense_1", "linear_1")
    assert report.first.reason == "'params/Dense_1/kernel' is transposed"


def test_two_layers_of_one_shape_are_exchanged():
    rules = [
        {"src": f"params/{a}/{leaf}", "dst": f"params/{b}/{name}"}
        for a, b in (("linear", "Dense_1"), ("linear_1", "Dense_0"))
        for leaf, name in (("w", "kernel"), ("b", "bias"))
    ]
    report = check(m.mlp, m.MLP(), rewritten(m.mlp, m.MLP(), *rules))
    assert report.first.layer == "Dense_0" and not report.ok
    assert "'Dense_0' and 'Dense_1' are exchanged" in report.first.reason


def test_two_leaves_are_exchanged():
    """Also where the target was made by somebody else: its values are not what the plan makes."""

    def change(new):
        a, b = "params/Dense_0/kernel", "params/Dense_1/kernel"
        new[a], new[b] = new[b], new[a]

    plan = right(m.mlp, m.MLP())
    report = check(m.mlp, m.MLP(), plan, **mutated(plan, change))
    assert report.first.layer == "Dense_0"
    assert "'params/Dense_0/kernel' and 'params/Dense_1/kernel' are exchanged" in report.first.reason
    assert [c.path for c in report.problems if c.what == "variable"] == [
        "params/Dense_0/kernel",
        "params/Dense_1/kernel",
    ]


def test_a_leaf_is_dropped_and_filled():
    drop, fill = ["params/layer_norm/offset"], {"params/LayerNorm_0/bias": 0.0}
    report = check(m.mlp, m.MLP(), rewritten(m.mlp, m.MLP(), drop=drop, fill=fill))
    assert report.first.layer == "LayerNorm_0" and not report.ok
    assert "should hold the source's 'params/layer_norm/offset'" in report.first.reason
    assert "params/layer_norm/offset" in {c.path for c in report.problems if c.what == "gradient"}


def test_scale_and_offset_are_exchanged():
    rules = [
        {"src": "params/layer_norm/scale", "dst": "params/LayerNorm_0/bias"},
        {"src": "params/layer_norm/offset", "dst": "params/LayerNorm_0/scale"},
    ]
    report = check(m.mlp, m.MLP(), rewritten(m.mlp, m.MLP(), *rules))
    assert report.first.layer == "LayerNorm_0"
    assert "'params/LayerNorm_0/bias' and 'params/LayerNorm_0/scale' are exchanged" in report.first.reason


def test_a_name_that_nobody_has_is_caught_by_the_plan():
    rule = {"src": "params/linear_1/w", "dst": "params/Dense_1/kernels"}
    with pytest.raises(MappingError, match="kernels"):
        rewritten(m.mlp, m.MLP(), rule)


def test_mean_and_variance_are_exchanged():
    rules = [
        {"src": "state/norm/~/mean_ema/average", "dst": "batch_stats/norm/var", "ops": ["reshape"]},
        {"src": "state/norm/~/var_ema/average", "dst": "batch_stats/norm/mean", "ops": ["reshape"]},
    ]
    drop = [f"state/norm/~/{name}_ema/{leaf}" for name in ("mean", "var") for leaf in ("hidden", "counter")]
    plan = rewritten(m.cnn, m.CNN(), *rules, drop=drop)
    values = {p: np.abs(x) for p, x in mutated(plan, lambda new: None)["src"].items()}
    report = check(m.cnn, m.CNN(), plan, src=values)
    assert report.first.layer == "norm" and not report.ok
    assert "'batch_stats/norm/mean' and 'batch_stats/norm/var' are exchanged" in report.first.reason


def test_a_statistic_is_taken_from_the_wrong_entry():
    """The running sum before its correction, in place of the average: equal only where nothing was corrected."""
    rule = {"src": "state/norm/~/mean_ema/hidden", "dst": "batch_stats/norm/mean", "ops": ["reshape"]}
    drop = ["state/norm/~/mean_ema/average", "state/norm/~/mean_ema/counter"]
    report = check(m.cnn, m.CNN(), rewritten(m.cnn, m.CNN(), rule, drop=drop))
    assert report.first.layer == "norm" and not report.ok
    assert "should hold the source's 'state/norm/~/mean_ema/average'" in report.first.reason


def test_gates_are_in_the_wrong_order():
    """The blocks are i, g, f, o in Haiku; read as i, f, g, o."""

    def change(new):
        cell = "params/LSTMCell_0/"
        for part, leaf in (("i", "kernel"), ("h", "kernel"), ("h", "bias")):
            a, b = f"{cell}{part}f/{leaf}", f"{cell}{part}g/{leaf}"
            new[a], new[b] = new[b], new[a]

    plan = right(m.lstm, m.LSTM())
    report = check(m.lstm, m.LSTM(), plan, dtypes=("float32",), **mutated(plan, change))
    assert (report.first.layer, report.first.src_layer) == ("LSTMCell_0", "lstm")
    assert "the gates 'f' and 'g' are exchanged" in report.first.reason


def test_the_one_on_the_forget_gate_is_dropped():
    def change(new):
        new["params/LSTMCell_0/hf/bias"] = new["params/LSTMCell_0/hf/bias"] - 1

    plan = right(m.lstm, m.LSTM())
    report = check(m.lstm, m.LSTM(), plan, dtypes=("float32",), **mutated(plan, change))
    assert report.first.layer == "LSTMCell_0"
    assert report.first.reason == "'params/LSTMCell_0/hf/bias' lacks an added 1"


@pytest.mark.parametrize(
    "ops,reason",
    [
        ([], "flipped .* and transposed|transposed in its last two axes"),
        ([{"op": "flip", "but_last": 2}], "flipped along"),
    ],
)
def test_a_transposed_convolution_is_flipped_or_not_swapped(ops, reason):
    """With as many inputs as outputs all four ways fit, and three are wrong."""
    rule = {"src": "params/conv2_d_transpose/w", "dst": "params/ConvTranspose_0/kernel", "ops": ops}
    report = check(m.decoder, m.Decoder(), rewritten(m.decoder, m.Decoder(), rule))
    assert report.first.layer == "ConvTranspose_0" and not report.ok
    import re

    assert re.search(reason, report.first.reason), report.first.reason


def test_heads_are_read_in_the_wrong_order():
    def change(new):
        path = "params/attention_0/query/kernel"
        new[path] = np.swapaxes(new[path].reshape(6, 2, 3), -1, -2)

    plan = right(m.attention, m.Attention())
    report = check(m.attention, m.Attention(), plan, **mutated(plan, change))
    assert report.first.layer == "attention_0" and "query/kernel" in report.first.reason
    assert "reshaped in the wrong order" in report.first.reason


def test_query_and_value_are_exchanged():
    def change(new):
        for leaf in ("kernel", "bias"):
            a, b = (f"params/attention_1/{part}/{leaf}" for part in ("query", "value"))
            new[a], new[b] = new[b], new[a]

    plan = right(m.attention, m.Attention())
    report = check(m.attention, m.Attention(), plan, **mutated(plan, change))
    assert report.first.layer == "attention_1"
    assert "query' and " in report.first.reason and "are exchanged" in report.first.reason


def test_a_key_s_bias_is_proven_by_values():
    """Outputs do not depend on it, so it is named, and shown to be right by the key itself."""
    report = check(m.attention, m.Attention())
    paths = [f"params/attention_{i}/key/b" for i in range(2)]
    assert report.ok and [p for p in report.unproven] == paths
    assert all(how.startswith("proven by values") for how in report.unproven.values())


def test_the_biases_of_two_keys_are_exchanged():
    """The outputs are the same, and it is still caught."""
    rules = [
        {
            "src": f"params/attention_{a}/key/b",
            "dst": f"params/attention_{b}/key/bias",
            "ops": ["reshape"],
        }
        for a, b in ((0, 1), (1, 0))
    ]
    report = check(m.attention, m.Attention(), rewritten(m.attention, m.Attention(), *rules))
    assert all(c.status == "equal" for c in report.checks if c.what == "output")
    assert report.verdict == "not proven" and not report.ok
    assert [c.path for c in report.problems] == [f"params/attention_{i}/key/b" for i in range(2)]


# Wrong layers -----------------------------------------------------------------------------------------------------------


def test_an_epsilon_of_a_layer_norm():
    report = check(m.mlp, m.MLP(), run=m.MLP(epsilon=1e-6))
    assert (report.first.layer, report.first.src_layer) == ("LayerNorm_0", "layer_norm")
    assert report.first.reason == "epsilon is 1e-06 in the target, 1e-05 in the source"


def test_an_epsilon_of_a_batch_norm():
    report = check(m.cnn, m.CNN(), run=m.CNN(epsilon=1e-3))
    assert report.first.layer == "norm"
    assert report.first.reason == "epsilon is 0.001 in the target, 1e-05 in the source"


def test_an_epsilon_between_two_models_is_refused_before():
    with pytest.raises(MappingError, match="epsilon"):
        converters.verify(m.mlp, m.MLP(epsilon=1e-6), m.X, frameworks=("haiku", None))


def test_an_epsilon_in_nnx():
    plan = right(m.mlp, m.NNXMLP)

    def run(variables, x):
        model = functools.partial(m.NNXMLP, epsilon=1e-3)
        return nnx_adapter.apply(model, variables, x)[0]

    report = converters.verify(haiku_apply(m.mlp), run, m.X, plan=plan, dtypes=QUICK)
    assert report.first.layer == "norm"
    assert report.first.reason == "epsilon is 0.001 in the target, 1e-05 in the source"


def test_padding_under_stride():
    """At an odd size it would be the same."""
    report = check(m.cnn, m.CNN(), run=m.CNN(padding=((1, 1), (1, 1))))
    assert (report.first.layer, report.first.src_layer) == ("stem", "stem")
    assert report.first.reason.startswith(
        "the padding is ((1, 1), (1, 1)) in the target, ((0, 1), (0, 1)) in the source"
    )


@pytest.mark.parametrize("activation,name", [(nn.gelu, "gelu (tanh approximation)"), (jnp.tanh, "tanh")])
def test_another_activation(activation, name):
    report = check(m.mlp, m.MLP(), run=m.MLP(activation=activation))
    assert report.first.where == "between 'Dense_0' and 'Dense_1'"
    assert report.first.reason == f"the activation is {name} in the target, relu in the source"


def test_a_missing_activation():
    report = check(m.mlp, m.MLP(), run=m.MLP(activation=lambda x: x))
    assert report.first.where == "between 'Dense_0' and 'Dense_1'"
    assert report.first.reason == "there is no activation in the target, relu in the source"


def test_statistics_of_the_batch_in_evaluation():
    def run(variables, x):
        return linen_adapter.apply(m.CNN(train=True), variables, x)[0]

    plan = right(m.cnn, m.CNN())
    report = converters.verify(haiku_apply(m.cnn), run, m.IMAGES, plan=plan, dtypes=QUICK)
    assert report.first.layer == "norm" and "training mode" in report.first.reason


def test_an_nnx_model_that_was_not_told_to_evaluate():
    """What differs first is before its BatchNorm reads a variable."""

    def old(x):
        return hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="dense")(x), is_training=False)

    class New(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(m.X.shape[-1], 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    report = converters.verify(hk.transform_with_state(old), New, m.X, dtypes=("float32",))
    assert not report.ok
    assert "does not read 'batch_stats/norm/mean'" in report.first.reason and "model.eval()" in report.first.reason


def test_a_base_of_rotary_positions():
    def rotated(v, x, base):
        q = x @ v["w"]
        frequency = base ** (-jnp.arange(3) / 3)
        angle = jnp.arange(5)[:, None] * frequency
        a, b = jnp.split(q, 2, -1)
        return (
            jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)
            @ v["o"]
        )

    rng = np.random.default_rng(0)
    v = {"w": rng.normal(size=(6, 6)).astype(np.float32), "o": rng.normal(size=(6, 6)).astype(np.float32)}
    plan = Mapping.of(rules=[{"src": p, "dst": p} for p in v]).plan(v, v)
    src, dst = (functools.partial(rotated, base=base) for base in (1e4, 5e5))
    report = converters.verify(src, dst, m.TEXT, src=v, plan=plan, dtypes=QUICK)
    assert not report.ok
    assert "500000 in the target, 10000 in the source" in report.first.reason


def test_a_stopped_gradient():
    """Equal outputs are too little."""

    def run(variables, x):
        return linen_adapter.apply(m.MLP(activation=lambda h: nn.relu(jax.lax.stop_gradient(h))), variables, x)[0]

    report = converters.verify(haiku_apply(m.mlp), run, m.X, plan=right(m.mlp, m.MLP()), dtypes=QUICK)
    assert all(c.status == "equal" for c in report.checks if c.what == "output")
    assert report.first.layer == "Dense_0" and "stop_gradient is in the target" in report.first.evidence


def test_a_difference_that_no_hypothesis_mends_has_no_reason():
    report = check(m.mlp, m.MLP(), run=m.MLP(activation=lambda x: nn.relu(x) + 0.3 * jnp.sin(5 * x)))
    assert report.first.where == "between 'Dense_0' and 'Dense_1'" and report.first.reason == "reason unknown"
