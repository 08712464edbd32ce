"""Every step of the case study runs from the Haiku program's checkpoint, with the same losses; and they could differ."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import pickle
import re
import shlex
import shutil
import types

import jax
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError

import bridges as br
from converters import cli

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "case_study"
PAGE = FOLDER.parents[1] / "docs" / "guides" / "case_study.md"
STEPS = 12
KEY_BIAS = "_attn/key']['b']"  # its gradient is zero in exact arithmetic: Adam divides rounding by rounding


@pytest.fixture
def study(monkeypatch, lightly_compiled):
    monkeypatch.syspath_prepend(FOLDER)  # as for `python examples/case_study`
    spec = importlib.util.spec_from_file_location("case_study_main", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(file):
    with file.open("rb") as stream:
        return pickle.load(stream)


def test_one_curve(study, tmp_path, monkeypatch, capsys):
    old = study.begin(tmp_path)
    wanted = study.resume(study.STEPS[0], old, STEPS)
    assert len(wanted[0]) == STEPS and len(wanted[1]) == 1 and len(set(wanted[0])) == STEPS
    pickled = load(tmp_path / f"left_by_{study.STEPS[0]}")
    the_page_converts(old, tmp_path, monkeypatch, capsys)
    for step in study.STEPS[1:]:
        assert study.difference(wanted, study.resume(step, old, STEPS)) <= study.TOLERANCE, step
        left = tmp_path / f"left_by_{step}"
        if left.is_dir():
            continue  # Orbax
        # What a step leaves is a checkpoint of the Haiku program: from each commit one can go back.
        left = load(left)
        assert jax.tree.structure(left) == jax.tree.structure(pickled)
        rows = zip(jax.tree_util.tree_leaves_with_path(pickled), jax.tree.leaves(left), strict=True)
        for (path, value), found in rows:
            assert value.dtype == found.dtype
            if KEY_BIAS in jax.tree_util.keystr(path) and step >= "step3":
                continue
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=f"{step} {path}")
    # Back in Haiku after four steps of the migration, which is one with the run that went on in Haiku.
    stayed, returned = (
        study.package(study.STEPS[0]).train(study.package(study.STEPS[0]).Config(), 3, tmp_path / f"left_by_{step}")[0]
        for step in (study.STEPS[0], "step4_native")
    )
    assert study.difference([stayed], [returned]) <= study.TOLERANCE
    notices_what_is_left_behind(study, "step4_native", old, wanted)


def test_the_plan_knows_the_old_models_epsilon(study, monkeypatch):
    program = study.package("step3_blocks")
    module = importlib.import_module("step3_blocks.model")
    size = program.Config().model_size
    monkeypatch.setattr(module, "layer_norm", lambda config, rngs: nnx.LayerNorm(size, rngs=rngs))
    model = nnx.eval_shape(lambda: module.LanguageModel(rngs=nnx.Rngs(0)))
    updater = types.SimpleNamespace(config=program.Config(), model=model)
    with pytest.raises(br.MappingError, match=r"epsilon 1e-06, .* has 1e-05"):
        program.checkpoint.MAPPING.plan(*program.checkpoint.specs(updater))


def test_a_stream_in_a_closure_is_of_another_trace():
    model, rngs = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Rngs(0)
    with pytest.raises(TraceContextError):
        nnx.grad(lambda model: model(jax.random.normal(rngs(), (1, 2))).sum())(model)


def the_page_converts(old, folder, monkeypatch, capsys):
    """What the page shows of a terminal is what it shows; the last step goes on from the file that it makes."""
    (block,) = re.findall(
        r"^```console\n\$ bridges ((?:.*\\\n)*.*)\n((?:.*\n)*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    (folder / "step4_native").mkdir()
    shutil.copy(FOLDER / "step4_native" / "mapping.toml", folder / "step4_native")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert cli.main(shlex.split(block[0].replace("\\\n", ""))) == 0
    said = capsys.readouterr()
    shown = re.sub(r"[0-9]+\\\.[0-9]+\\ s,", "[0-9.]+ s,", re.escape(block[1])).replace("…", ".*")
    assert re.fullmatch(shown, said.out + said.err), said
    assert old.with_suffix(".orbax").exists()


def notices_what_is_left_behind(study, step, old, wanted):
    """The comparison fails where the optimizer's state, the counts or the random stream were not moved."""
    program = study.package(step)
    config = program.Config()
    dataset = program.Dataset(config)

    def curve(forget):
        updater = program.Updater(config)
        fresh = nnx.state((updater.model, updater.optimizer, updater.rngs))
        fresh = jax.tree.map(lambda value: value, fresh)
        program.checkpoint.restore(old, updater)
        forget(updater, fresh)
        first = study.BEFORE
        return [float(updater.update(dataset.batch("train", i))) for i in range(first, first + 3)]

    def moments(updater, fresh):
        step = updater.optimizer.step[...]
        nnx.update(updater.optimizer, fresh[1])
        updater.optimizer.step[...] = step

    def counts(updater, fresh):
        nnx.update(updater.model, nnx.filter_state(fresh[0], nnx.Not(nnx.Param)))

    def stream(updater, fresh):
        updater.rngs.default.count[...] += 1

    assert study.difference([wanted[0][:3]], [curve(lambda *_: None)]) <= study.TOLERANCE
    for forget in (moments, counts, stream):
        assert study.difference([wanted[0][:3]], [curve(forget)]) > 100 * study.TOLERANCE, forget.__name__
