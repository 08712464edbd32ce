"""Filters: what each means, and what is refused because it would mean something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br


class Calls(br.Variable):
    pass


class Lora(br.Param):
    pass


class Net(br.Module):
    def __init__(self):
        self.enc = Part()
        self.encoder = Part()


class Part(br.Module):
    pass


STATE = br.State(
    {
        "net/enc/w": jnp.ones((2, 2)),
        "net/enc/lora/a": jnp.ones(2),
        "net/encoder/w": np.ones((2, 2), np.float32),
        "net/encoder/mean": jnp.zeros(2),
        "net/n": jnp.int32(0),
        "key": jax.random.key(0),
    },
    {
        "net/enc/w": br.Param(axes=("in", "out")),
        "net/enc/lora/a": Lora,
        "net/encoder/w": br.Param,
        "net/encoder/mean": br.BatchStat,
        "net/n": Calls,
    },
)
NET = Net()


@pytest.mark.parametrize(
    "filters, paths",
    [
        (br.Param, "net/enc/lora/a net/enc/w net/encoder/w"),
        (Lora, "net/enc/lora/a"),
        (br.Param(axes=("in", "out")), "net/enc/w"),
        (br.RngState, "key"),
        (br.Variable, " ".join(STATE)),
        (..., " ".join(STATE)),
        (True, " ".join(STATE)),
        (None, ""),
        (False, ""),
        ("net/enc", "net/enc/lora/a net/enc/w"),  # whole segments: not net/encoder
        ("net/n", "net/n"),
        (NET.enc, "net/enc/lora/a net/enc/w"),
        (br.Not(NET), "key"),
        (br.All(br.Param, NET.enc), "net/enc/lora/a net/enc/w"),
        (br.All(br.Param, br.Not(Lora)), "net/enc/w net/encoder/w"),
        (br.PathContains("w"), "net/enc/w net/encoder/w"),
        (br.PathContains("enc/lora"), "net/enc/lora/a"),
        (br.PathMatches("net/enc.*/w"), "net/enc/w net/encoder/w"),
        ((br.BatchStat, Calls), "net/encoder/mean net/n"),
        ([br.BatchStat, (Calls, "key")], "key net/encoder/mean net/n"),
        (br.Not(br.Param, br.RngState), "net/encoder/mean net/n"),
        (np.ndarray, "net/encoder/w"),
        (jax.Array, "key net/enc/lora/a net/enc/w net/encoder/mean net/n"),
        (br.arrays, " ".join(STATE)),
        (lambda path, value: path.endswith("w") and value.ndim == 2, "net/enc/w net/encoder/w"),
    ],
)
def test_what_a_filter_matches(filters, paths):
    assert list(STATE.filter(filters)) == paths.split()
    chosen, rest = STATE.partition(filters, ...)
    assert list(chosen) == paths.split() and set(chosen) | set(rest) == set(STATE)
    assert jax.tree.structure(chosen.merge(rest)) == jax.tree.structure(STATE)


def test_no_filter_is_everything():
    assert STATE.filter().keys() == STATE.partition().keys() == STATE.keys()


def test_an_entry_goes_to_the_first_that_matches():
    lora, params, rest = STATE.partition(Lora, br.Param, ...)
    assert list(lora) == ["net/enc/lora/a"] and list(params) == ["net/enc/w", "net/encoder/w"] and len(rest) == 3


@pytest.mark.parametrize(
    "filters, text",
    [
        ((3,), "3 is not a filter"),
        ((nnx.Param,), r"flax.nnx.*\.Param is no kind.*bridges\.Param is one"),
        ((nnx.PathContains("w"),), r"Flax's filter.*bridges\.PathContains"),
        ((nnx.All(lambda path, value: True),), "Flax's filter"),
        ((int,), "int is no kind of entry"),
        ((lambda path: True,), r"takes \(path\), and is called with the path"),
        ((..., br.Param), r"Param'> stands behind Ellipsis"),
        ((br.BatchStat, True, "net"), "'net' stands behind True: |'net' stands behind True"),
    ],
)
def test_what_is_refused(filters, text):
    for verb in (STATE.filter, STATE.partition, STATE.copy().pop):
        with pytest.raises(br.FilterError, match=text):
            verb(*filters)


def test_a_malformed_pattern_is_a_filter_error():
    with pytest.raises(br.FilterError, match="no regular expression"):
        br.PathMatches("(")


def test_several_that_catch_the_rest_are_fine():
    params, rest, none = STATE.partition(br.Param, ..., ...)
    assert len(params) + len(rest) == len(STATE) and not none


def test_filters_are_equal_where_their_arguments_are():
    """They may be static arguments of a compiled function."""
    for make in (lambda: br.Not(br.Param), lambda: br.All("a", br.Param), lambda: br.PathContains("w")):
        assert make() == make() and hash(make()) == hash(make()) and make() != br.Not("x")
    counts = []

    @jax.jit
    def sizes(state):
        counts.append(1)
        return [leaf.size for leaf in jax.tree.leaves(state)]

    sizes(STATE.filter(br.Not(br.RngState)))
    sizes(STATE.filter(br.Not(br.RngState)))
    assert len(counts) == 1


@pytest.mark.parametrize("name, kind", [("params", "Param"), ("batch_stats", "BatchStat")])
def test_a_collection_of_flax_is_a_kind_here(name, kind):
    """NNX took `"intermediates"` for a filter; as a path it would match nothing, in silence."""
    for call in (
        lambda: STATE.filter(name),
        lambda: STATE.partition(name, ...),
        lambda: STATE.copy().pop(br.Cache, name),
    ):
        with pytest.raises(br.FilterError, match=rf"'{name}' is a path.*bridges\.{kind}\."):
            call()
    assert list(STATE.filter("cache")) == []  # nothing of that kind: an empty state says so
    native = br.State({"params/w": 1.0, "net/w": 2.0}, {"net/w": br.BatchStat})
    assert list(native.filter("params")) == ["params/w"]  # a path, as in a state of one framework
    assert list(STATE.filter(br.PathMatches("params/.*"))) == []


def test_pop_wants_to_be_told_what():
    with pytest.raises(br.FilterError, match="Nothing was named"):
        STATE.copy().pop()


class Own(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(2, 3, rngs=rngs)
        self.b = nnx.Dict(a=nnx.BatchNorm(3, rngs=rngs), c=nnx.Dropout(0.5, rngs=rngs))
        self.ab = nnx.Cache(jnp.zeros(2))


@pytest.mark.parametrize(
    "theirs, ours",
    [
        (nnx.Param, br.Param),
        (nnx.RngState, br.RngState),
        (nnx.Variable, br.Variable),
        ((nnx.BatchStat, nnx.Cache), (br.BatchStat, br.Cache)),
        (nnx.Not(nnx.Param), br.Not(br.Param)),
        (nnx.PathContains("a"), br.PathContains("a")),
        (nnx.All(nnx.Param, nnx.PathContains("a")), br.All(br.Param, br.PathContains("a"))),
        (nnx.Any(nnx.Cache, nnx.PathContains("c")), (br.Cache, br.PathContains("c"))),
        (lambda path, value: path[-1] == "bias", lambda path, value: path.endswith("/bias")),
        (..., ...),
        (None, None),
    ],
)
def test_filters_of_flax_have_counterparts_that_match_the_same(theirs, ours):
    model = Own(nnx.Rngs(0))
    wanted = {"/".join(map(str, path)) for path in nnx.to_flat_state(nnx.state(model, theirs)).paths}
    found = {path.split("/", 1)[1] for path in br.nnx_adapter.flatten(model).filter(ours)}
    assert found == wanted
