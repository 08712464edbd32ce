"""The example runs, and its training step is that of pure NNX around the same maths: instruction for instruction."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pathlib
import re

import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bridges as br
import converters
from bridges import nnx_adapter
from tests.hlo import opcodes

FILE = pathlib.Path(__file__).parents[2] / "examples" / "haiku_resnet_in_nnx.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("haiku_resnet_in_nnx", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(example, tmp_path_factory):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = example.main([str(tmp_path_factory.mktemp("run"))])
    return {**found, "printed": printed.getvalue()}


def test_the_page_shows_what_is_printed(result):
    page = (FILE.parents[1] / "docs" / "guests.md").read_text("utf-8")
    (shown,) = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert re.fullmatch(re.escape(shown).replace("…", "[0-9. ]+"), result["printed"])


def test_training_goes_on_bit_for_bit_after_a_strict_restore(result):
    assert result["after"] == result["again"]
    assert len({*result["before"], *result["after"]}) == 6
    one, other = (jax.tree.leaves(nnx.state(result[name])) for name in ("model", "restored"))
    assert all(map(np.array_equal, one, other))
    counters = [
        leaf for path, leaf in nnx.to_flat_state(nnx.state(result["model"], nnx.BatchStat)) if "counter" in path
    ]
    assert {int(counter.get_value()) for counter in counters} == {6}


class Pure(nnx.Module):
    """The same network with nothing of ours: Haiku's `apply` on Variables."""

    def __init__(self, net, params, state):
        self.net = net
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.stats = nnx.data(jax.tree.map(nnx.BatchStat, state))

    def __call__(self, images):
        params, stats = (
            jax.tree.map(lambda v: v.get_value(), tree, is_leaf=lambda v: isinstance(v, nnx.Variable))
            for tree in (self.params, self.stats)
        )
        out, new = self.net.apply(params, stats, None, images)
        jax.tree.map(
            lambda v, value: v.set_value(value), self.stats, new, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
        return out


def test_the_training_step_is_pure_nnx(example, result):
    (images, labels), *_ = example.batches(1)
    model, optimizer = example.new(images)
    params, state = br.haiku_adapter.unflatten(
        {"/".join(p[1:]): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model))}
    )
    pure = Pure(hk.transform_with_state(example.resnet), dict(params), dict(state))
    pure_optimizer = nnx.Optimizer(pure, optax.adam(1e-2), wrt=nnx.Param)
    step = example.train_step
    ours = step.lower(model, optimizer, images, labels).compile()
    native = step.lower(pure, pure_optimizer, images, labels).compile()
    assert opcodes(ours.compiled) == opcodes(native.compiled)
    losses = [
        [float(step(*each, images, labels)) for _ in range(2)] for each in ((model, optimizer), (pure, pure_optimizer))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("how", ["missing", "extra", "misshapen"])
def test_a_checkpoint_that_does_not_fit_is_an_error_with_its_path(example, result, how):
    tree = converters.load(result["folder"])
    layer = tree["model"]["variables"]["params"]["res_net"]["~"]["initial_conv"]
    path = "model/variables/params/res_net/~/initial_conv/"
    if how == "missing":
        del layer["w"]
        expected, match = br.StructureError, f"missing '{path}w'"
    elif how == "extra":
        layer["b"] = layer["w"]
        expected, match = br.StructureError, f"unexpected '{path}b"
    else:
        layer["w"]["value"] = layer["w"]["value"][:5]
        expected, match = br.EntryShapeError, rf"'{path}w': got float32\[5,7,3,4\], wanted float32\[7,7,3,4\]"
    images, _ = example.batches(1)[0]
    like = nnx.eval_shape(lambda: dict(zip(("model", "optimizer"), example.new(images), strict=True)))
    with pytest.raises(expected, match=match):
        nnx_adapter.restore(tree, nnx.state(like))
