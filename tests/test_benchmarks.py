"""The benchmarks run: every contender once, at its smallest. What they measure is for `make bench`."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

from benchmarks import dispatch, first, inference, memory, plots, tracing
from benchmarks.__main__ import NAMES
from benchmarks.paired import Spread, Timing, paired
from benchmarks.table import Row, Table, rows


def test_a_slower_contender_has_a_greater_ratio():
    timings = paired({"one": lambda: time.sleep(0.002), "three": lambda: time.sleep(0.006)}, rounds=5, number=1)
    assert timings["one"].ratio == Spread(1.0, 1.0, 1.0)
    assert timings["three"].seconds.low >= 0.006 and timings["three"].ratio.median > timings["one"].ratio.median


def test_every_contender_of_a_case_runs():
    for call in (*dispatch.contenders(2).values(), *first.eager().values(), *tracing.linen(1).values()):
        call()
    for call in (*tracing.haiku(1).values(), *tracing.nnx_(1).values()):
        call()
    assert [tracing.traced("bridges", depth) for depth in (1, 2, 3)] == [1, 1, 1]
    assert [tracing.traced("ninjax", depth) for depth in (1, 2, 3)] == [2, 4, 8]


def test_what_is_renamed_by_hand_is_what_the_plan_renames():
    old = {f"params/{path}": leaf for path, leaf in memory.linen_adapter.flatten(memory.tree(100)).items()}
    wanted = {memory.rename(path): leaf for path, leaf in old.items()}
    for count in (10, 30):
        new = memory.renaming(count).plan(old, wanted).forward(old)
        assert dict(new) == wanted == memory.by_patterns(old)


def test_the_two_networks_of_inference_are_one():
    import haiku as hk

    fn, module = inference.models(4)
    x = np.ones((2, inference.WIDTH), np.float32)
    count = sum(leaf.size for leaf in jax.tree.leaves(hk.transform(fn).init(jax.random.key(0), x)))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(module.init(jax.random.key(0), x)))


def test_a_table_shows_its_rows_and_whether_a_bound_is_kept(tmp_path):
    timings = {name: Timing(Spread(s, s, s), Spread(s / 2, s / 2, s / 2)) for name, s in (("a", 2.0), ("b", 5.0))}
    found = [*rows("1 layers", timings, 1, {"b": 1.5}), *rows("10 layers", timings, 10, {"b": 3.0})]
    table = Table("name", "Title", "1.5 x", tuple(found), ("a note",))
    assert "| 1 layers | b | 5 s (5 s-5 s) | 2.50 (2.50-2.50) | no |" in table.markdown()
    assert "| 10 layers | b | 5 s (5 s-5 s) | 2.50 (2.50-2.50) | yes |" in table.markdown()
    assert [row["kept"] for row in table.to_dict()["rows"]] == ["", "no", "", "yes"]
    (picture,) = plots.plot(table, tmp_path)
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_named_in_the_readme(name):
    import pathlib

    import benchmarks

    readme = pathlib.Path(benchmarks.__file__).with_name("README.md").read_text("utf-8")
    assert f"`{name}.py`" in readme


def test_within_the_spread_is_said():
    row = Row("case", "b", Spread(1, 1, 1), Spread(1.6, 1.4, 1.8), bound=1.5)
    assert row.kept == "within spread"
