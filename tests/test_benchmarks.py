"""The benchmarks run: every contender once, at its smallest. What they measure is for `make bench`."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

import converters
from benchmarks import dispatch, dispatch_nnx, files, first, inference, memory, plots, scripts, tracing
from benchmarks.__main__ import NAMES
from benchmarks.paired import Spread, Timing, paired
from benchmarks.table import Row, Table, growth, rows


def test_a_slower_contender_has_a_greater_ratio():
    timings = paired({"one": lambda: time.sleep(0.002), "three": lambda: time.sleep(0.006)}, rounds=5, number=1)
    assert timings["one"].ratio == Spread(1.0, 1.0, 1.0)
    assert timings["three"].seconds.low >= 0.006 and timings["three"].ratio.median > timings["one"].ratio.median


def test_every_contender_of_a_case_runs():
    for call in (*dispatch.contenders(2).values(), *tracing.linen(1).values()):
        call()
    for calls in first.eager().values():
        for call in calls.values():
            call()
    for make in (dispatch_nnx.forward, dispatch_nnx.train):
        for call in dispatch_nnx.contenders(make, 1, graph=False).values():
            call()
    for call in (*tracing.haiku(1).values(), *tracing.nnx_(1).values()):
        call()
    assert [tracing.traced("bridges", depth) for depth in (1, 2, 3)] == [1, 1, 1]
    assert [tracing.traced("ninjax", depth) for depth in (1, 2, 3)] == [2, 4, 8]


def test_all_who_rename_do_the_same():
    plain = dict(memory.linen_adapter.flatten({"params": memory.tree(100)}))
    wanted = {memory.rename(path): leaf for path, leaf in plain.items()}
    for count in (10, 30):
        assert dict(memory.renaming(count).plan(plain, wanted).forward(plain)) == wanted
        peers = {name: dict(call()) for name, call in memory.renamers(count, plain, wanted).items()}
        assert peers.pop("orbax") == wanted
        for renamed in peers.values():  # transformers, where it is installed
            assert {path.replace(".", "/"): leaf for path, leaf in renamed.items()} == wanted


@pytest.mark.parametrize("target", files.NAMES.values())
def test_a_script_and_a_conversion_write_the_same(target, tmp_path):
    tree = {"params": {f"layer_{i}": {"kernel": np.full((2, 3), i, np.float32)} for i in range(2)}}
    converters.save(tmp_path / "a.npz", tree)
    by_script, converted = (tmp_path / folder / target for folder in ("script", "converted"))
    for path in (by_script, converted):
        path.parent.mkdir()
    scripts.convert(tmp_path / "a.npz", by_script)
    converters.convert(tmp_path / "a.npz", converted, mapping=files.RENAMING, to="flat")
    for path in (by_script, converted):
        found = scripts.load(path)
        assert sorted(found) == ["params/layer_0/weight", "params/layer_1/weight"]
        assert np.array_equal(found["params/layer_1/weight"], tree["params"]["layer_1"]["kernel"])


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
    assert growth(found) == ["Seconds grow from 1 to 10 layers as their number to the power of: a 0.00, b 0.00."]
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


def test_growth_is_that_of_the_two_largest_sizes():
    found = [Row(f"find, {n} leaves", "a", Spread.of([s]), size=n) for n, s in ((100, 1), (10, 0.5), (1000, 100))]
    assert growth(found) == ["find: seconds grow from 100 to 1,000 leaves as their number to the power of: a 2.00."]
    assert growth(found[:1]) == []
