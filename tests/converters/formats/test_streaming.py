"""A file of many leaves passes through a process that may not hold three of them."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import importlib, pathlib, resource, sys
    import numpy as np
    import jax, ml_dtypes
    from converters.formats import LazyLeaf
    format, order, directory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    module = importlib.import_module(f"converters.formats.{format}")
    LEAVES, SIZE = 24, 8 << 20

    def number(i):
        array = np.full((SIZE // 4096, 1024), i, np.float32)
        array[i, i] = -1
        return array.T if order == "transposed" else array

    shape = (1024, SIZE // 4096) if order == "transposed" else (SIZE // 4096, 1024)
    tree = {"a/b": {f"w{i}": LazyLeaf(shape, np.float32, lambda i=i: number(i)) for i in range(LEAVES)}}
    np.lib.format, number(0), module.problems(tree)  # what is loaded at first use is loaded

    def size(key):
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

    # Two leaves may be allocated; the file has 24.
    bound = size("VmData") + 2 * SIZE + (4 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    module.write(directory / "first", tree, {})
    # The pages of fewer than two may be held, mapped ones included.
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = size("VmRSS")
    checkpoint = module.read(directory / "first")
    module.write(directory / "second", checkpoint.tree, {})
    peak = (size("VmHWM") - before) / SIZE
    assert peak < 2, peak
    assert (directory / "second").stat().st_size > LEAVES * SIZE
    for i in range(0, LEAVES, 5):
        leaf = module.read(directory / "second").tree["a/b"][f"w{i}"]
        assert (leaf.read() == number(i)).all()
        leaf = None
    try:
        held = [np.ones(SIZE, np.uint8) for _ in range(4)]
    except MemoryError:
        print("and four leaves at once are too many")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own size where Linux says it")
@pytest.mark.parametrize("format, order", [("npz", "rows"), ("msgpack", "rows"), ("safetensors", "transposed")])
def test_a_file_passes_through_a_process_of_two_leaves(format, order, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), format, order, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "four leaves at once are too many" in run.stdout
