"""Faults: killed at any moment, no space, no permission, others in the way. What was there stays, nothing half is seen."""

import errno
import hashlib
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import converters
from bridges.core._flat import flatten
from converters import _atomic
from converters._atomic import clean, replacing, replacing_all

CANNOT = converters.CheckpointError


def tree(seed, count=4, size=1000):
    rng = np.random.default_rng(seed)
    return {"params": {f"Dense_{i}": {"kernel": rng.random((size, 10), np.float32)} for i in range(count)}}


def equal(path, wanted):
    found = converters.load(path)
    return all(np.array_equal(found["params"][m]["kernel"], x["kernel"]) for m, x in wanted["params"].items())


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# -- replacing ---------------------------------------------------------------------------------------------------------


def put(path, text, folder):
    if folder:
        path.mkdir()
        (path / "inside").mkdir()
        (path / "inside" / "file").write_text(text)
    else:
        path.write_text(text)


def got(path):
    return (path / "inside" / "file").read_text() if path.is_dir() else path.read_text()


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "without"])
@pytest.mark.parametrize("new", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("old", [True, False, None], ids=["over folder", "over file", "over nothing"])
def test_replacing(exchange, new, old, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(_atomic, "_renamed", lambda a, b, flag: False)
    final = tmp_path / "x"
    if old is not None:
        put(final, "old", old)
        with pytest.raises(CANNOT, match="exists"), replacing(final):
            pytest.fail("not reached")
    with pytest.raises(KeyError), replacing(final, overwrite=True) as temporary:
        put(temporary, "new", new)
        assert old is None or got(final) == "old"
        raise KeyError
    assert got(final) == "old" if old is not None else not final.exists()
    assert not hidden(tmp_path)
    with replacing(final, overwrite=old is not None) as temporary:
        put(temporary, "new", new)
    assert got(final) == "new" and final.is_dir() == new
    assert not hidden(tmp_path)


def test_renameat2_is_used_here(tmp_path):
    """So that the exchange of directories is one step where this is tested."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir(), b.mkdir()
    (a / "x").touch()
    assert _atomic._renamed(a, b, _atomic._EXCHANGE)
    assert (b / "x").exists()
    with pytest.raises(CANNOT, match="in the meantime"):
        _atomic._renamed(a, b, _atomic._NOREPLACE)


def test_what_comes_in_the_meantime_is_left(tmp_path):
    with pytest.raises(CANNOT, match="come into being in the meantime"), replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        (tmp_path / "x").write_text("other")
    assert (tmp_path / "x").read_text() == "other" and not hidden(tmp_path)


def test_companions_never_speak_of_another_file(tmp_path):
    paths = [tmp_path / name for name in ("x", "x.residue", "x.manifest")]
    for path in paths:
        path.write_text("old")
    seen = []
    order = _atomic.os.replace

    def watched(a, b):
        seen.append((pathlib.Path(b).name, paths[2].exists()))
        order(a, b)

    with pytest.MonkeyPatch.context() as patch, replacing_all(paths, overwrite=True) as temporaries:
        patch.setattr(_atomic.os, "replace", watched)
        for temporary in (temporaries[0], temporaries[2]):
            temporary.write_text("new")
        patch.undo()
    assert [path.exists() for path in paths] == [True, False, True] and paths[2].read_text() == "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_atomic.os, "replace", watched)
        with replacing_all(paths, overwrite=True) as temporaries:
            for temporary in temporaries:
                temporary.write_text("newer")
    assert seen == [("x", False), ("x.residue", False), ("x.manifest", False)]  # the old one is gone before the first


def test_leftovers(tmp_path):
    """Of dead processes of this machine only; what one had moved aside comes back."""
    final = tmp_path / "x.npz"
    pid = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead, here = int(pid.stdout), _atomic._where()
    names = {
        f".part-{here}-{dead}-1-abcd-x.npz": False,
        f".part-{here}-{dead}-1-abcd-x.npz.orbax-checkpoint-tmp": False,
        f".part-{here}-{os.getpid()}-1-abcd-x.npz": False,  # another process that had this number
        f".part-{here}-{os.getpid()}-{_atomic._started(os.getpid())}-abcd-x.npz": True,
        f".part-{here}-{dead}-1-abcd-y.npz": True,
        f".part-00000000-{dead}-1-abcd-x.npz": True,  # another machine's
        ".part-x.npz": True,
    }
    for name in names:
        (tmp_path / name).write_text("part")
    aside = tmp_path / f".old-{here}-{dead}-1-abcd-x.npz"
    aside.write_text("old")
    clean(final)
    assert final.read_text() == "old" and not aside.exists()
    assert {name: (tmp_path / name).exists() for name in names} == names


# -- killed ------------------------------------------------------------------------------------------------------------

# Forks a process for each line that it reads, which converts until it is killed: a start of Python each would take long.
SERVER = """
import os, sys, converters
from converters import _atomic, _convert

def folder(name, out):
    with _atomic.replacing(out, overwrite=True) as temporary:
        os.mkdir(temporary)
        for i in range(20):
            with open(temporary / str(i), "x") as file:
                file.write(name * 100_000)

def file(name, out):
    converters.convert(name, out, to="flat", overwrite=True)

one = {"folder": folder, "file": file}[sys.argv[1]]
one("a.npz", "warm.safetensors")
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        while True:
            for name in ("a.npz", "b.npz"):
                one(name, sys.argv[2])
    print(pid, flush=True)
    sys.stdin.readline()
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def test_killed_at_any_moment(tmp_path):
    """What is at the target is always one of the two conversions, whole, and a manifest beside it is its own."""
    trees = {name: tree(seed, 6, 125_000) for seed, name in enumerate(("a.npz", "b.npz"))}  # 30 MB each
    for name, made in trees.items():
        converters.save(tmp_path / name, made)
    sources = {name: (tmp_path / name).read_bytes() for name in trees}
    seen = set()
    for _ in kills(tmp_path, "file", "out.safetensors", 30):
        seen.update(name.split("-")[0] for name in hidden(tmp_path))
        if not (tmp_path / "out.safetensors").exists():
            continue
        found = flatten(converters.load(tmp_path / "out.safetensors"))
        of = [n for n, made in trees.items() if all(np.array_equal(found[p], x) for p, x in flatten(made).items())]
        assert len(of) == 1 and len(found) == 6
        seen.add(of[0])
        if (tmp_path / "out.safetensors.manifest.json").exists():
            seen.add("manifest")
            said = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())["source"]
            assert said["name"] == of[0] and said["file"]["sha256"] == hashlib.sha256(sources[of[0]]).hexdigest()
    assert {name: (tmp_path / name).read_bytes() for name in trees} == sources
    assert {".part", "manifest"} <= seen, seen  # it was killed in the middle, and not always at the start
    converters.convert(tmp_path / "a.npz", tmp_path / "out.safetensors", to="flat", overwrite=True)
    assert not hidden(tmp_path)


def test_killed_while_a_folder_is_replaced(tmp_path):
    """The exchange of full directories; without Orbax, whose library allows no fork."""
    seen = set()
    for _ in kills(tmp_path, "folder", "out", 25):
        seen.update(name.split("-")[0] for name in hidden(tmp_path))
        if (tmp_path / "out").exists():
            texts = [(tmp_path / "out" / str(i)).read_text() for i in range(20)]
            assert texts in ([name * 100_000] * 20 for name in ("a.npz", "b.npz"))
            seen.add(texts[0][0])
    assert {".part", "a", "b"} <= seen, seen
    with replacing(tmp_path / "out", overwrite=True) as temporary:
        temporary.mkdir()
    assert not hidden(tmp_path)


def kills(folder, what, target, count):
    """Yields after each time that a process which converts again and again was killed."""
    rng = random.Random(0)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-W", "ignore", "-c", SERVER, what, target]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=env, text=True, **pipes) as server:
        for _ in range(count):
            print(file=server.stdin, flush=True)
            assert int(server.stdout.readline())
            time.sleep(rng.uniform(0, 0.3))
            print(file=server.stdin, flush=True)
            assert server.stdout.readline() == "dead\n"
            yield
        server.stdin.close()


# -- the system refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.npz", "out.safetensors", "out.pkl", "out.msgpack", "out"])
def test_no_space(name, tmp_path):
    """A limit on the size of files stands for a full disk: a write is cut short in the middle of an array."""
    converters.save(tmp_path / "a.npz", tree(0, 2, 30_000))
    (tmp_path / "keep").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        with pytest.raises(CANNOT, match="was not written"):
            converters.convert(tmp_path / "a.npz", tmp_path / "keep" / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "keep").iterdir())
    assert equal(tmp_path / "a.npz", tree(0, 2, 30_000))


def test_errors_of_the_system_are_told(tmp_path):
    for code, text in ((errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")):
        with pytest.raises(CANNOT, match=text), replacing(tmp_path / "x") as temporary:
            temporary.write_text("part")
            raise OSError(code, os.strerror(code), str(temporary))
    assert not list(tmp_path.iterdir())


AS_NOBODY = """
import os, sys, converters
from converters import _convert, formats
for format in formats.FORMATS.values():
    format.module()
folder = sys.argv[1]
converters.convert(folder + "/a.npz", folder + "/warm.npz")  # what nobody may not import later
os.setgid(65534), os.setuid(65534)
try:
    converters.convert(folder + "/a.npz", folder + "/closed/out.npz")
except converters.CheckpointError as err:
    print(err)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become nobody")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    converters.save(tmp_path / "a.npz", tree(0))
    (tmp_path / "closed").mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001 and folder != pathlib.Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "a.npz").chmod(0o644)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert "was not written: permission is denied: choose a directory that you may write to" in done.stdout, done.stderr
    assert not list((tmp_path / "closed").iterdir())


def test_links(tmp_path):
    """A link is replaced as a link: what it led to stays."""
    converters.save(tmp_path / "a.npz", tree(0))
    converters.save(tmp_path / "b.npz", tree(1))
    (tmp_path / "link.npz").symlink_to("b.npz")
    converters.convert(tmp_path / "a.npz", tmp_path / "link.npz", overwrite=True)
    assert not (tmp_path / "link.npz").is_symlink() and equal(tmp_path / "link.npz", tree(0))
    assert equal(tmp_path / "b.npz", tree(1))
    # A source behind a link is a source.
    (tmp_path / "source.npz").symlink_to("b.npz")
    converters.convert(tmp_path / "source.npz", tmp_path / "c.safetensors")
    assert equal(tmp_path / "c.safetensors", tree(1))


def test_a_damaged_source_writes_nothing(tmp_path):
    converters.save(tmp_path / "a.npz", tree(0, 3, 50_000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[-1_000_000] ^= 1  # within the last array: noticed when the others are written
    (tmp_path / "a.npz").write_bytes(data)
    (tmp_path / "out.safetensors").write_text("earlier")
    with pytest.raises(CANNOT, match="damaged"):
        converters.convert(tmp_path / "a.npz", tmp_path / "out.safetensors", overwrite=True)
    assert (tmp_path / "out.safetensors").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "out.safetensors"]
