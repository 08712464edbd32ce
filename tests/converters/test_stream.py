"""A step with several targets runs once where they are asked for together, and nothing is kept for long."""

import gc
import weakref

import numpy as np
import pytest

from converters import _stream
from converters._ledger import Ledger, checksums
from converters._stream import Stream
from converters.formats import LazyLeaf


class Reads:
    """A lazy leaf that counts how often it is read, and knows whether its array is still alive."""

    def __init__(self, array):
        self.count, self.alive = 0, []
        self.leaf = LazyLeaf(array.shape, array.dtype, lambda: self.read(array))

    def read(self, array):
        self.count += 1
        made = array.copy()
        self.alive.append(weakref.ref(made))
        return made


def halves(arrays):
    return np.split(arrays[0], 2)


OUT = LazyLeaf((2, 3), np.float64, None)


def test_once_for_all_targets_together():
    source = Reads(np.arange(12.0).reshape(4, 3))
    a, b = Stream().step(halves, [source.leaf], [OUT, OUT])
    np.testing.assert_array_equal(np.concatenate([a.read(), b.read()]), np.arange(12.0).reshape(4, 3))
    assert source.count == 1
    gc.collect()
    assert source.alive[0]() is None  # nothing is kept when the last target was read
    np.testing.assert_array_equal(b.read(), a.read() + 6)  # whatever the order, and as often as one likes
    np.testing.assert_array_equal(b.read(), a.read() + 6)


@pytest.mark.parametrize(("kept", "count"), [(1 << 20, 2), (0, 4)])
def test_steps_in_turns(kept, count, monkeypatch):
    """Small outputs of several steps wait for one another; large ones are computed anew."""
    monkeypatch.setattr(_stream, "_KEPT", kept)
    stream = Stream()
    sources = [Reads(np.full((4, 3), i + 0.5)) for i in range(2)]
    leaves = [stream.step(halves, [source.leaf], [OUT, OUT]) for source in sources]
    for target in (0, 1):
        for i, pair in enumerate(leaves):
            assert (pair[target].read() == i + 0.5).all()
    assert sum(source.count for source in sources) == count


def test_a_summed_array_is_let_go_before_the_next_is_read():
    seen = []

    def read(i):
        gc.collect()
        seen.append([ref() is None for ref in refs])
        made = np.full(1000, i)
        refs.append(weakref.ref(made))
        return made

    refs: list = []
    with Ledger() as ledger:
        for i in range(5):
            ledger.pulled(str(i), LazyLeaf((1000,), np.int64, lambda i=i: read(i))).read()
        pulled, _ = ledger.sums()
    assert seen == [[True] * i for i in range(5)]
    assert pulled == {str(i): checksums(np.full(1000, i)) for i in range(5)}


def test_checksums_are_of_elements_whatever_the_layout():
    array = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    wanted = checksums(array, strong=True)
    assert checksums(array.transpose(2, 0, 1).transpose(1, 2, 0), strong=True) == wanted
    assert checksums(np.asfortranarray(array), strong=True) == wanted
    assert checksums(array.astype(">f4"), strong=True) == wanted
    assert checksums(array.transpose()) != checksums(array)
    assert checksums(np.array(-0.0)) != checksums(np.array(0.0))
    assert "sha256" not in checksums(array)
