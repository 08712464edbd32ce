"""Memory: a conversion holds about the largest leaf, at most twice, whatever the file's size.

Measured in a process of its own, above what it has when all code is loaded: the highest resident size, which counts the
pages of mapped files as well, and a limit on what it may allocate.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import converters
from bridges.core._flat import flatten

SIDE = 2048
RUN = """
import pathlib, resource, sys
import converters
from bridges.param_mapping import Mapping

source, target, text, size = sys.argv[1:]

def convert(source, target):
    if source.name.startswith("back"):
        return converters.convert_back(source, target)
    return converters.convert(source, target, mapping=Mapping.loads(text) if text else None, to="flat" if text else None)

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

source, target = pathlib.Path(source), pathlib.Path(target)
convert(source.parent / "small" / source.name, source.parent / "small" / target.name)  # loads all code, starts threads
before, data = status("VmRSS"), status("VmData")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # sets the highest resident size back
bound = data + 2 * int(size)
if target.suffix and source.suffix:  # TensorStore starts threads when it likes
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
convert(source, target)
print((status("VmHWM") - before) / int(size))
"""

SPLIT = """
[[rules]]
src = "params/{m:path}/qkv"
dst = ["params/{m:path}/q", "params/{m:path}/k"]
ops = [{ op = "split", axis = 1, sizes = [1024, 1024] }]
"""
TRANSPOSE = """
[[rules]]
src = "params/{m:path}/qkv"
dst = "params/{m:path}/kernel"
ops = ["transpose"]
"""
JOIN = """
[[rules]]
src = ["params/{m:path}/q", "params/{m:path}/k"]
dst = "params/{m:path}/qkv"
ops = [{ op = "concat", axis = 1 }]
"""


def tree(count, rows, joined=True):
    array = np.random.default_rng(0).random((rows, SIDE // 2), np.float32)
    whole = {"qkv": np.concatenate([array, array], 1)} if joined else {"q": array, "k": array + 1}
    return {"params": {f"layer_{i}": {**whole, "b": np.ones(3)} for i in range(count)}}


# Source, target, rule, leaves, their rows, and how many times the largest leaf may be resident.
CASES = {
    "split to pickle": ("a.msgpack", "b.pkl", SPLIT, 12, 1024, 1.6),
    "transposed": ("a.pkl", "b.npz", TRANSPOSE, 12, 1024, 1.6),
    # A source that is mapped, and the array that is made of it: TensorStore takes none that is not in one piece.
    "transposed to orbax": ("a.npz", "b", TRANSPOSE, 6, 4096, 2.2),
    # All sources of one target, which are mapped, and the target.
    "joined": ("a.npz", "b.safetensors", JOIN, 12, 1024, 2.3),
}
REST = '\n[[rules]]\nsrc = "params/{m:path}/b"\ndst = "params/{m:path}/b"\n'


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured and limited as Linux has it")
@pytest.mark.parametrize("name", CASES)
def test_at_most_twice_the_largest_leaf(name, tmp_path):
    source, target, text, leaves, rows, bound = CASES[name]
    (tmp_path / "small").mkdir()
    for folder, count, size in ((tmp_path, leaves, rows), (tmp_path / "small", 2, 4)):
        converters.save(folder / source, tree(count, size, text != JOIN))
    largest = max(x.nbytes for x in flatten(tree(1, rows)).values())
    assert leaves * largest >= 3 * 2 * largest
    root = pathlib.Path(converters.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    command = [
        sys.executable,
        "-c",
        RUN,
        str(tmp_path / source),
        str(tmp_path / target),
        text and text + REST,
        str(largest),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.3 < float(done.stdout) < bound
