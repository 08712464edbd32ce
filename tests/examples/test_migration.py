"""Every migration guide is run, proves what it says, and notices a weight that went wrong."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import re

import numpy as np
import pytest

from bridges.param_mapping import Plan

GUIDES = pathlib.Path(__file__).parents[2] / "examples" / "migration"
TOPICS = sorted(file.stem for file in GUIDES.glob("*.py") if not file.stem.startswith("_"))
COLUMNS = sorted(folder.name.removeprefix("in_") for folder in GUIDES.glob("in_*") if folder.is_dir())
WRITE = "BRIDGES_WRITE_DOCS"


class Found(Exception):
    """A comparison that fails."""


@pytest.fixture(scope="module")
def runner(lightly_compiled):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GUIDES)  # as for `python examples/migration`
        spec = importlib.util.spec_from_file_location("migration_main", GUIDES / "__main__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("topic", TOPICS)
def test_everything_is_equal(runner, topic, monkeypatch):
    proof = runner.run(topic)
    assert proof.failures == []
    assert proof.summary()["parameters"] > 0
    columns = {column for column in COLUMNS if (GUIDES / f"in_{column}" / f"{topic}.py").exists()}
    assert set(proof.ends) == columns or not columns, "every column of the guide is one that weights were moved to"

    file = GUIDES / "structures" / f"{topic}.json"
    made = json.dumps(proof.structures, indent=1) + "\n"
    if os.environ.get(WRITE):
        file.write_text(made, "utf-8")
    assert file.read_text("utf-8") == made, f"the structures are others: {WRITE}=1 pytest {__file__}, and read the diff"

    forward, equal = Plan.forward, runner.Proof.equal

    def spoiled(self, state):
        out = forward(self, state)
        path = max(out, key=lambda path: (out[path].dtype.kind == "f", np.size(out[path])))
        out[path] = -out[path]
        return out

    def stops(self, what, *args, **kwargs):
        equal(self, what, *args, **kwargs)
        if what != "the way back" and self.failures:
            raise Found(self.failures)

    monkeypatch.setattr(Plan, "forward", spoiled)
    monkeypatch.setattr(runner.Proof, "equal", stops)
    with pytest.raises(Found):  # a weight that changes its sign on the way
        runner.run(topic)


@pytest.mark.parametrize("file", sorted(GUIDES.rglob("*.py")), ids=lambda file: file.relative_to(GUIDES).as_posix())
def test_regions_are_closed_and_named_once(file):
    marks = re.findall(r"^ *# (region \w+|endregion)$", file.read_text("utf-8"), re.MULTILINE)
    assert len(marks) % 2 == 0 and all(mark == "endregion" for mark in marks[1::2]), marks
    assert len(set(marks[::2])) == len(marks[::2]), marks


def test_what_proves_nothing_is_a_failure(runner):
    proofs = importlib.import_module("_proof")
    assert proofs.Proof("empty").failures
    ones = np.ones(3, np.float32)
    for wanted, found in [(ones, ones + 1e-5), (ones, ones[:2]), (0 * ones, 0 * ones), (ones, ones * np.nan), ([], [])]:
        assert proofs.difference(wanted, found) > proofs.TOLERANCE
    assert proofs.difference(ones, ones) == 0
    (faint, zero), tiny = proofs.clear({"a": ones, "b": 1e-7 * ones}).values(), {"a": ones, "b": 1e-5 * ones}
    assert (faint == ones).all() and not zero.any() and proofs.clear(tiny)["b"].any()
    proof = proofs.Proof("names")
    proof.equal("entries", {"a": ones}, {"b": ones}, column="linen")
    assert proof.failures


def test_the_table(runner, capsys, monkeypatch):
    proofs = importlib.import_module("_proof")

    def fake(topic):
        proof = proofs.Proof(topic)
        proof.equal("output", np.ones(3), np.ones(3) + (topic == TOPICS[-1]), column="linen")
        return proof

    monkeypatch.setattr(runner, "run", fake)
    assert runner.main(["--json", TOPICS[0]]) == int(len(TOPICS) == 1)
    assert json.loads(capsys.readouterr().out)[0]["topic"] == TOPICS[0]
    assert runner.main([]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == "topic columns run parameters moved max difference equal".split()
    assert f"{TOPICS[-1]}: linen: output differs by 1.0e+00" in said.err
