"""The demonstration, run short; and each of its checks is shown to fail for a mistake that it is there to find."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import pickle

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        module = importlib.import_module("digits")
        patch.setattr(module, "DECAY", 0.01)  # the bias correction is over after 4 steps, in place of 165
        yield module


@pytest.fixture(scope="module")
def switched(digits):
    """The runs in Haiku, Linen and the core from one checkpoint, the plan, a batch and some images."""
    batches, test = digits.load_data(steps=5)
    params, state = jax.jit(digits.haiku_net.init)(jax.random.key(0), batches[0][0], batches[0][2])
    trained, _ = digits.run_in_haiku((params, state, digits.OPTIMIZER.init(params))).train(batches[:4])
    checkpoint = pickle.loads(pickle.dumps(jax.device_get(trained.now)))
    plan = digits.plan_for_linen(*batches[0])
    runs = (
        digits.run_in_haiku(checkpoint),
        digits.run_in_linen(checkpoint, plan),
        digits.run_in_core(checkpoint, batches[0]),
    )
    return *runs, plan, batches[4], test[0]


def failures(checks):
    return [check.claim.removesuffix(" are off by") for check in checks if not check.holds]


def spoiled(run, entry, change=lambda x: 2 * x):
    """Returns the run with one array changed, the first whose path has `entry` in it."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(run.now)]
    leaves, treedef = jax.tree.flatten(run.now)
    chosen = next(i for i, path in enumerate(paths) if entry in path)
    leaves[chosen] = change(leaves[chosen])
    return dataclasses.replace(run, now=jax.tree.unflatten(treedef, leaves))


def test_nothing_is_lost(digits, switched):
    haiku, linen, core, plan, batch, images = switched
    checks = [check for run in (linen, core) for check in digits.check_switch(haiku, run, batch, images)]
    assert failures([*checks, digits.check_gradient(haiku, linen, plan, batch), digits.check_batch_norm(haiku)]) == []


@pytest.mark.parametrize(
    ("run", "entry", "found"),
    [
        (1, "['Dense_1']['kernel']", "Linen: weights and statistics, carried back,"),
        (1, "['var']", "Linen: logits of the test images"),
        (1, ".nu", "Linen: the same one training step later"),
        (1, ".count", "Linen: the same one training step later"),
        (2, "linear_1/w", "core: weights and statistics, carried back,"),
        (2, "var_ema/average", "core: logits of the test images"),
        (2, "/nu/", "core: the same one training step later"),
    ],
)
def test_a_spoiled_array_is_found(digits, switched, run, entry, found):
    haiku, *_, batch, images = switched
    assert found in failures(digits.check_switch(haiku, spoiled(switched[run], entry), batch, images))


@pytest.mark.parametrize("run", [1, 2], ids=["linen", "core"])
def test_the_last_bit_of_a_weight_is_found(digits, switched, run):
    haiku, *_, batch, images = switched
    wrong = spoiled(switched[run], "1", lambda w: np.nextafter(w, np.float32(np.inf)))
    assert len(failures(digits.check_switch(haiku, wrong, batch, images))) == 1


def test_images_read_otherwise_are_found(digits, switched):
    haiku, linen, *_, batch, images = switched
    wrong = spoiled(linen, "['Dense_1']['kernel']", lambda w: w[:, ::-1])
    assert any("read otherwise" in claim for claim in failures(digits.check_switch(haiku, wrong, batch, images)))


def test_a_wrong_gradient_is_found(digits, switched):
    haiku, linen, _, plan, batch, _ = switched
    assert not digits.check_gradient(haiku, spoiled(linen, "['scale']"), plan, batch).holds


def test_a_switch_that_comes_too_early_is_found(digits, switched):
    assert not digits.check_batch_norm(spoiled(switched[0], "['hidden']", lambda x: 0.9 * x)).holds


@pytest.mark.parametrize(
    ("off", "found"),
    [
        ({"Linen": 1e-5}, "Linen: loss"),
        ({"core": float("nan")}, "core: loss"),
        ({"Haiku, weights nudged": 1e-2}, "What is allowed"),
    ],
)
def test_a_curve_that_leaves_the_other_is_found(digits, off, found):
    good = {"Linen": 6e-8, "core": 0.0, "Haiku, weights nudged": 6e-8, "Linen, new optimizer": 8e-2}
    assert failures(digits.check_curves(good)) == []
    (claim,) = failures(digits.check_curves(good | off))
    assert claim.startswith(found)


def test_the_program(digits, tmp_path, capsys, monkeypatch):
    assert digits.main(tmp_path / "good", steps=8, switch=4) == 0
    assert "lost nothing" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "good").iterdir()} == {"digits-haiku.pkl", "digits.png"}

    convert = digits.run_in_linen
    monkeypatch.setattr(digits, "run_in_linen", lambda *args: spoiled(convert(*args), "['Dense_0']['bias']"))
    assert digits.main(tmp_path / "bad", steps=8, switch=4) == 1
    said = capsys.readouterr().out
    assert "NOT Linen: weights and statistics" in said and "lost nothing" not in said
