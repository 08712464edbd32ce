"""Sharded checkpoints: converted shard by shard on eight virtual devices, and by two real processes."""

import os
import pathlib
import socket
import subprocess
import sys

PROGRAMS = pathlib.Path(__file__).parent / "programs"
ROOT = pathlib.Path(__file__).parents[2]


def start(devices, program, *args):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", PROGRAMS / program, *map(str, args)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    try:
        for process in processes:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err[-4000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def test_eight_devices(tmp_path):
    finish(start(8, "sharded_devices.py", tmp_path))


def test_xla_moves_nothing_for_what_is_carried_and_would_choose_the_same():
    finish(start(8, "sharded_compiled.py"))


def test_two_processes_each_read_and_write_their_shards(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    finish(*[start(2, "sharded_process.py", tmp_path, port, rank) for rank in range(2)])
