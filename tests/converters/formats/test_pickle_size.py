"""Files larger than memory, shown on a process that may not have more than twice the largest leaf."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from converters.formats import pickle as format
from tests.converters.formats.old_pickles import FIXTURES

LEAVES, SIZE = 24, 8 << 20
LIMITED = """
import pathlib, pickle, resource, sys
import numpy as np
from converters.formats import pickle as format

source, target, allowed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
small = pathlib.Path(sys.argv[4])
format.write(target.with_suffix('.small'), format.read(small).load(), {})  # All code is loaded once before the limit.
status = pathlib.Path('/proc/self/status').read_text()
now = int(next(line for line in status.splitlines() if line.startswith('VmData')).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + allowed, now + allowed))
if target.name == 'loaded':
    pickle.load(source.open('rb'))
else:
    tree = format.read(source).tree
    format.write(target, tree, {})
"""


def limited(*arguments, check=True):
    environment = {**os.environ, "PYTHONPATH": str(FIXTURES.parents[3]) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-c", LIMITED, *map(str, arguments), str(FIXTURES / "real-jax-0.4.13-haiku-p2.pkl")]
    return subprocess.run(command, check=check, env=environment, capture_output=not check, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set as Linux has it")
@pytest.mark.parametrize(("protocol", "leaves"), [(2, 8), (4, LEAVES)])
def test_files_are_read_and_written_in_less_than_twice_the_largest_leaf(protocol, leaves, tmp_path):
    array = np.random.default_rng(0).integers(0, 128, SIZE, np.uint8).view(np.float32)
    with (tmp_path / "source").open("wb") as file:
        pickler = pickle.Pickler(file, protocol)
        pickler.fast = True  # Nothing is shared, so that the one array is written many times.
        pickler.dump({f"layer_{i}": {"w": array} for i in range(leaves)})
    assert (tmp_path / "source").stat().st_size > leaves * SIZE
    limited(tmp_path / "source", tmp_path / "target", 2 * SIZE)
    found = format.read(tmp_path / "target").tree
    assert len(found) == leaves
    assert all((leaf["w"].read().view(np.uint8) == array.view(np.uint8)).all() for leaf in found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set as Linux has it")
def test_the_limit_is_one_that_pickle_load_does_not_keep(tmp_path):
    (tmp_path / "source").write_bytes(pickle.dumps({str(i): np.ones(SIZE, np.uint8) for i in range(4)}))
    done = limited(tmp_path / "source", tmp_path / "loaded", 2 * SIZE, check=False)
    assert done.returncode != 0 and "MemoryError" in done.stderr


def test_strided_leaves_are_written_in_pieces(tmp_path):
    array = np.arange(1 << 21, dtype=np.float32).reshape(4, 512, 1024)
    views = {"t": array.transpose(1, 0, 2), "s": array[:, ::2], "r": array[..., ::-1], "f": array.T}
    format.write(tmp_path / "a", views, {})
    with (tmp_path / "a").open("rb") as file:
        found = pickle.load(file)
    assert all((found[name] == views[name]).all() for name in views)
    assert found["f"].flags.f_contiguous
