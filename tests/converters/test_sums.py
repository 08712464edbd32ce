"""One sum of a large array stands for all others: the source's own, that of the source's file, the target archive's."""

import hashlib
import json
import os
import random
import zipfile
import zlib

import numpy as np
import pytest

import converters
from converters._ledger import SMALL, File, checksums_of_file
from converters.formats import _crc, npz
from converters.formats import orbax as orbax_format
from converters.formats._output import begin
from converters.formats._source import LARGE, Place, Source

RULES = [{"src": f"params/{{m}}/{a}", "dst": f"params/{{m}}/{b}"} for a, b in (("kernel", "weight"), ("bias", "bias"))]
RENAMED, TURNED = {"rules": RULES}, {"rules": [{**RULES[0], "ops": ["transpose"]}, RULES[1]]}
NAMES = ["a.npz", "a.safetensors", "a.pkl", "a.msgpack", "a"]


def tree(count=3):
    rng = np.random.default_rng(0)
    layers = {f"layer_{i}": {"kernel": rng.random((600, 500 + i), np.float32)} for i in range(count)}
    assert layers["layer_0"]["kernel"].nbytes >= LARGE
    return {"params": {name: {**layer, "bias": rng.random(7)} for name, layer in layers.items()}}


def crc(path):
    return f"{zlib.crc32(path.read_bytes()):08x}"


def test_sums_of_pieces_make_the_sum_of_the_whole():
    rng = random.Random(0)
    for sizes in [
        (0, 0),
        (0, 9),
        (9, 0),
        (1, 1),
        *((rng.randrange(100_000), rng.randrange(100_000)) for _ in range(20)),
    ]:
        a, b = map(rng.randbytes, sizes)
        assert _crc.joined(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)
    # Behind more bytes than can be tried: so many at once, or twice half of them.
    half = _crc.joined(zlib.crc32(a), 0, 1 << 39)
    assert _crc.joined(zlib.crc32(a), 0, 1 << 40) == _crc.joined(half, 0, 1 << 39) != half


@pytest.mark.parametrize("strong", [True, False])
def test_a_file_of_which_pieces_are_summed_by_others(strong, tmp_path):
    data = np.random.default_rng(0).bytes(5_000_000)
    path = tmp_path / "x"
    path.write_bytes(data)
    wanted = checksums_of_file(path, strong)
    assert wanted == {
        "bytes": len(data),
        "crc32": f"{zlib.crc32(data):08x}",
        **({"sha256": hashlib.sha256(data).hexdigest()} if strong else {}),
    }
    source = Source(path)
    # Not in order; two that follow one another, two that overlap, one up to the end.
    places = [Place(source, *at) for at in ((3_000_000, 2_000_000), (10, 1_000), (1_010, 990), (1_500, 100_000))]
    known = {place.at: zlib.crc32(data[place.at : place.at + place.size]) for place in places}
    assert File(source, places, strong).read().sums(known) == wanted
    assert File(source, places, strong).read().sums({10: known[10]}) == wanted  # the others nobody has summed
    known[10] ^= 1
    assert File(source, places, strong).read().sums(known)["crc32"] != wanted["crc32"]
    assert len(data) < SMALL and File(source).read().sums({}) == checksums_of_file(path, True)


@pytest.mark.parametrize("mapping", [None, RENAMED, TURNED], ids=["as it is", "renamed", "turned"])
@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_has_the_sums_of_what_is_there(name, mapping, tmp_path):
    source, made = tmp_path / name, tree()
    converters.save(source, made)
    how = {} if mapping is None else {"mapping": mapping, "to": "flat"}
    done = converters.convert(source, tmp_path / "out.npz", **how)
    said = json.loads(done.manifest.read_text())
    if source.is_file():
        assert said["source"]["file"]["crc32"] == crc(source)
        assert said["source"]["file"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert said["source"]["file"] == checksums_of_file(source)
    kernel = made["params"]["layer_1"]["kernel"]
    assert said["source"]["entries"]["params/layer_1/kernel"]["crc32"] == f"{zlib.crc32(kernel):08x}"
    # The archive's own sums are right, and its bytes those of one whose arrays nobody else has summed.
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None
    bare = converters.convert(source, tmp_path / "bare.npz", **how, manifest=False)
    assert bare.manifest is None and (tmp_path / "bare.npz").read_bytes() == (tmp_path / "out.npz").read_bytes()
    assert converters.convert_back(tmp_path / "out.npz", tmp_path / f"back-{name}").nbytes == done.nbytes


def test_an_archive_is_as_zipfile_writes_it(tmp_path):
    made = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.float16(2), "d": None}, "é": np.ones(LARGE, np.int8)}
    converters.save(tmp_path / "a.npz", made)
    with zipfile.ZipFile(tmp_path / "a.npz") as ours, zipfile.ZipFile(tmp_path / "b.npz", "w") as theirs:
        theirs.comment = ours.comment
        for info in ours.infolist():
            again = zipfile.ZipInfo(info.filename, info.date_time)
            again.file_size = info.file_size
            with theirs.open(again, "w") as member:
                member.write(ours.read(info))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("target", ["out.npz", "out.safetensors", "out"])
@pytest.mark.parametrize("mapping", [None, RENAMED, TURNED], ids=["as it is", "renamed", "turned"])
@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "bare"])
def test_a_damaged_array_is_refused_wherever_it_is_summed(target, mapping, manifest, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    source = tmp_path / "a.npz"
    converters.save(source, tree())
    data = bytearray(source.read_bytes())
    data[-400_000] ^= 1  # within the last of the large arrays
    source.write_bytes(data)
    with pytest.raises(converters.CheckpointError, match=r"layer_2/kernel.*damaged"):
        how = {} if mapping is None else {"mapping": mapping, "to": "flat"}
        converters.convert(source, folder / target, manifest=manifest, **how)
    assert not list(folder.iterdir())
    with pytest.raises(converters.CheckpointError, match="damaged"):
        converters.load(source)


def test_a_damaged_header_is_refused_with_a_sound_array(tmp_path):
    source = tmp_path / "a.npz"
    converters.save(source, {"a": np.ones(LARGE, np.uint8)})
    data = source.read_bytes()
    source.write_bytes(data.replace(b"{'descr': '|u1'", b"{'descr': '|i1'"))
    for manifest in (True, False):
        with pytest.raises(converters.CheckpointError, match="damaged"):
            converters.convert(source, tmp_path / "out.npz", manifest=manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2", "?"])
def test_arrays_in_other_orders_are_no_places(dtype, order, tmp_path):
    array = np.asarray(np.random.default_rng(0).random((1200, 1000)) * 9, dtype, order=order)
    np.savez(tmp_path / "a.npz", a=array, b=array[:3])
    leaf = npz.read(tmp_path / "a.npz").tree["a"]
    plain = order == "C" and not dtype.startswith(">")
    assert (leaf.place is not None) == (leaf.check is not None) == plain
    done = converters.convert(tmp_path / "a.npz", tmp_path / "b.npz")
    said = json.loads(done.manifest.read_text())["source"]
    assert said["file"]["crc32"] == crc(tmp_path / "a.npz")
    assert said["entries"]["a"]["crc32"] == f"{zlib.crc32(array.astype(array.dtype.newbyteorder('<')).tobytes()):08x}"
    assert np.array_equal(converters.load(tmp_path / "b.npz")["a"], array)


def test_every_file_and_folder_of_a_checkpoint_is_waited_for(tmp_path, monkeypatch):
    waited = set()
    sync = orbax_format.sync

    def watched(path):
        waited.add(os.stat(path).st_ino)
        sync(path)

    monkeypatch.setattr(orbax_format, "sync", watched)
    converters.save(tmp_path / "a", tree())
    assert {path.stat().st_ino for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]} <= waited


def test_files_are_sent_once(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a", tmp_path / "below" / "b"):
        path.write_bytes(b"x")
    begun = set()
    begin(tmp_path, begun)
    assert begun == {str(tmp_path / "a"), str(tmp_path / "below" / "b")}
    (tmp_path / "c").symlink_to("nothing")  # gone before it could be opened
    begin(tmp_path, begun)
    monkeypatch.delattr(os, "posix_fadvise")
    begin(tmp_path, begun)
    assert str(tmp_path / "c") in begun
