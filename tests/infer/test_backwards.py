"""What was found from the target to the source, turned round."""

from __future__ import annotations

import numpy as np

from bridges._infer._backwards import joined, turned
from bridges._infer._found import VALUES, Evidence, Found, Network, Origin, Unplaced
from bridges._infer._solve import one_way, solve

WHY = Evidence(VALUES, "there", "here")


def origin(source, element, scale=1.0, shift=0.0):
    source, element = np.asarray(source), np.asarray(element)
    return Origin(source, element, np.full(source.shape, scale), np.full(source.shape, shift), WHY)


def result(sources, origins, unplaced=(), unused=()):
    return Found(tuple(sources), origins, tuple(Unplaced(p, "open") for p in unplaced), tuple(unused), None, 0.0, {})


def test_a_fused_leaf_is_made_of_its_parts():
    """The source's `a` and `b` are columns of the target's `ab`, with 1 added to `b`."""
    src, dst = {"a": np.zeros((2, 1)), "b": np.zeros((2, 1))}, {"ab": np.zeros((2, 2))}
    back = result(["ab"], {"a": origin([[0], [0]], [[0], [2]]), "b": origin([[0], [0]], [[1], [3]], 2.0, 1.0)})
    found = turned(back, src, dst)["ab"]
    a, b = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])
    assert np.array_equal(found.value([a, b]), np.concatenate([a, (b - 1) / 2], 1))
    assert (found.evidence.src_place, found.evidence.dst_place) == ("here", "there")


def test_what_the_source_holds_twice_or_in_part_is_left_open():
    twice = result(["w"], {"a": origin([0, 0], [0, 1]), "b": origin([0, 0], [0, 1])})
    assert not turned(twice, {"a": np.zeros(2), "b": np.zeros(2)}, {"w": np.zeros(2)})
    part = result(["w"], {"a": origin([0], [0])})
    assert not turned(part, {"a": np.zeros(1)}, {"w": np.zeros(2)})
    constant = result(["w"], {"a": origin([-1, 0], [0, 1])})
    assert not turned(constant, {"a": np.zeros(2)}, {"w": np.zeros(2)})


def test_no_element_is_given_to_two_leaves():
    found = result(["a", "b"], {"x": origin([0, 0], [0, 1])}, unplaced=["y", "z"], unused=["b"])
    src = {"a": np.zeros(2), "b": np.zeros(2)}
    both = joined(found, {"y": origin([0, 1], [1, 0]), "z": origin([1, 1], [1, 0])}, src)
    assert sorted(both.origins) == ["x", "z"]
    assert [item.path for item in both.unplaced] == ["y"] and both.unused == ()


def test_a_fused_target_is_found_from_the_source_s_side(monkeypatch):
    """Where the search from the target fails altogether, the other way is taken, and proved on other values."""
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(4, 3))}
    src = Network(
        lambda p, i: np.tanh(1.0) * (i["x"] @ p["a"]) * (i["x"] @ p["b"]),
        {"a": np.zeros((3, 5)), "b": np.zeros((3, 5))},
        x,
    )
    dst = Network(
        lambda p, i: np.tanh(1.0) * (i["x"] @ p["a"].T) * (i["x"] @ p["b"].T),
        {"a": np.zeros((5, 3)), "b": np.zeros((5, 3))},
        x,
    )
    forward = one_way(src, dst)

    def fails_forward(one, two, **kwargs):
        if one is src:
            open_ = tuple(Unplaced(p, "open") for p in dst.variables)
            return Found(forward.sources, {}, open_, forward.sources, None, float("inf"), {})
        return one_way(one, two, **kwargs)

    monkeypatch.setattr("bridges._infer._solve.one_way", fails_forward)
    found = solve(src, dst)
    assert found.complete and found.error < 1e-12 and not found.unused
    values = [rng.normal(size=(3, 5)) for _ in range(2)]
    given = [found.origins[p].value(values) for p in ("a", "b")]
    want = (x["x"] @ values[0]) * (x["x"] @ values[1])
    assert np.allclose((x["x"] @ given[0].T) * (x["x"] @ given[1].T), want)


def test_an_open_leaf_has_the_unused_leaves_of_its_size_as_candidates():
    """The search stops at another function; of the source's leaves those of equal size are candidates."""
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(4, 3))}
    square, row = np.zeros((3, 3)), np.zeros(3)
    src = Network(
        lambda p, i: np.exp(1.0) * (i["x"] @ p["enc/kernel"]).sum(1, keepdims=True) ** 3 * p["dec/bias"],
        {"enc/kernel": square, "dec/bias": row},
        x,
    )
    dst = Network(
        lambda p, i: ((i["x"] ** 2) @ p["a/kernel"]).max(1, keepdims=True) + p["b/bias"],
        {"a/kernel": square, "b/bias": row},
        x,
    )
    found = solve(src, dst)
    assert {item.path: item.candidates for item in found.unplaced} == {
        "a/kernel": ("enc/kernel",),
        "b/bias": ("dec/bias",),
    }
