"""The manifest and the way back: bit for bit where nothing was changed, by the inverse where something was."""

import collections
import hashlib
import json
import pickle
import zlib

import flax
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import converters
from bridges.core import BridgeError
from bridges.param_mapping import Mapping, Plan
from converters._manifest import Manifest, manifest_of, residue_of
from converters._structure import built, described
from tests.converters.nets import HAIKU, LINEN, NNX, Dropping, X, haiku_variables, linen_variables
from tests.converters.test_convert import same

BYTES = "so is the file"


def model(target):
    return {"src_model": HAIKU, "dst_model": target, "inputs": (X,)}


PAIRS = [
    ("haiku.npz", "out.msgpack"),
    ("haiku.npz", "out.npz"),
    ("haiku.pkl", "out"),
    ("haiku.pkl", "out.safetensors"),
    ("haiku.pkl.gz", "out.pkl"),
    ("haiku.safetensors", "out.pkl.gz"),
    ("haiku.msgpack", "out.npz"),
    ("haiku", "out.msgpack"),
    ("haiku", "out2"),
]


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_back_from_every_format_to_every_format(name, target, tmp_path):
    """This package's writers give the same bytes for the same tree; Orbax's directories are compared by content."""
    params, state = haiku_variables()
    source, back = tmp_path / name, tmp_path / f"back-{name}"
    converters.save(source, (params, state) if "pkl" in name else {"params": params, "state": state})
    done = converters.convert(source, tmp_path / target, **model(LINEN))
    assert done.manifest == tmp_path / f"{target}.manifest.json"
    undone = converters.convert_back(tmp_path / target, back)
    assert "bit for bit" in undone.notes[0] and undone.verdict == "exact"
    assert same(converters.load(back), converters.load(source))
    if source.is_file():
        assert BYTES in undone.notes[0] and back.read_bytes() == source.read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


class Odd(collections.namedtuple("Odd", "params state step name")):
    __slots__ = ()


def test_structures_come_back(tmp_path):
    """Tuples, named tuples, integer keys, the order of keys, plain values: what the target's format never had."""
    params, state = haiku_variables()
    params = dict(reversed(params.items()))
    tree = {"params": params, "state": state, "step": 7, "note": "a", "empty": {}, "none": None, "scale": np.float16(2)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree))
    converters.convert(tmp_path / "a.pkl", tmp_path / "b.msgpack", **model(LINEN))
    assert converters.load(tmp_path / "b.msgpack")["step"] == 7
    back = converters.convert_back(tmp_path / "b.msgpack", tmp_path / "c.pkl")
    assert BYTES not in back.notes[0]  # Python's own pickler memoises
    made = pickle.loads((tmp_path / "c.pkl").read_bytes())
    assert same(made, tree) and list(made) == list(tree) and list(made["params"]) == list(params)
    assert type(made["step"]) is int and type(made["scale"]) is np.float16 and made["note"] == "a"


def test_structure_is_its_own_inverse():
    tree = {"b": (1, [2, {}], None), "a": {3: 4, 1: collections.OrderedDict(z=5)}, "x/y": Odd(6, (), 7, {"%": 8})}
    structure, leaves = described(tree)
    assert list(leaves)[:3] == ["b/0", "b/1/0", "a/3"] and leaves["x%2Fy/name/%25"] == 8
    made = built(json.loads(json.dumps(structure)), list(leaves.values()))
    assert made == tree and list(made) == list(tree) and type(made["x/y"]).__name__ == "Odd"
    assert type(made["a"][1]) is collections.OrderedDict
    with pytest.raises(NotImplementedError, match=r"key \(1, 2\) is neither"):
        described({(1, 2): 3})
    with pytest.raises(converters.CheckpointError, match="structure is damaged"):
        built(["d", [["a", ["x", 9]]]], [1])


def test_random_keys_come_back(tmp_path):
    """A typed key, which neither the target nor an archive can hold, is in the residue as data."""
    converters.save(tmp_path / "linen.msgpack", linen_variables())
    converters.convert(tmp_path / "linen.msgpack", tmp_path / "nnx", src_model=LINEN, dst_model=Dropping, inputs=(X,))
    converters.convert(tmp_path / "nnx", tmp_path / "l.msgpack", src_model=Dropping, dst_model=LINEN, inputs=(X,))
    back = converters.convert_back(tmp_path / "l.msgpack", tmp_path / "nnx2")
    assert "bit for bit" in back.notes[0]
    a, b = (converters.load(tmp_path / name)["drop"]["rngs"] for name in ("nnx", "nnx2"))
    assert a["key"]["value"] == b["key"]["value"] and a["count"]["value"] == b["count"]["value"]


def test_what_was_trained_on_goes_back_by_the_inverse(tmp_path):
    params, state = haiku_variables()
    converters.save(tmp_path / "h.pkl", (params, state))
    converters.convert(tmp_path / "h.pkl", tmp_path / "l.msgpack", **model(LINEN))
    variables = converters.load(tmp_path / "l.msgpack")
    variables["params"]["dense_0"]["kernel"] += 1
    (tmp_path / "l.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    back = converters.convert_back(tmp_path / "l.msgpack", tmp_path / "back.pkl")
    assert back.notes == ("1 of 14 entries were changed since, and went back by the inverse",)
    made = pickle.loads((tmp_path / "back.pkl").read_bytes())
    params["head/~/linear_0"]["w"] += 1
    assert same(made, (params, state))  # the residue still has what Linen does not
    # A statistic was changed: Haiku's hidden average cannot be known any more, and that is said.
    variables["batch_stats"]["norm"]["mean"] += 1
    (tmp_path / "l.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    back = converters.convert_back(tmp_path / "l.msgpack", tmp_path / "back2.pkl")
    assert "not exactly: 1/norm%2F~%2Fmean_ema/average, 1/norm%2F~%2Fmean_ema/hidden" in back.notes[1]
    assert back.verdict == "exact for evaluation only"
    made = pickle.loads((tmp_path / "back2.pkl").read_bytes())
    np.testing.assert_array_equal(HAIKU.apply(*made, X, False)[0], LINEN.apply(variables, X))


def test_what_is_in_it(tmp_path):
    params, state = haiku_variables()
    converters.save(tmp_path / "h.npz", {"params": params, "state": state})
    mapping = Mapping.loads("""extends = ["conventions:haiku->linen"]\nmodules = { stem = "stem" }""")
    converters.convert(tmp_path / "h.npz", tmp_path / "l.msgpack", mapping=mapping, **model(LINEN))
    given = json.loads(manifest_of(tmp_path / "l.msgpack").read_text())
    source = (tmp_path / "h.npz").read_bytes()
    sums = {"crc32": f"{zlib.crc32(source):08x}", "sha256": hashlib.sha256(source).hexdigest()}
    assert given["source"]["file"] == {"bytes": len(source), **sums}
    kernel = np.asarray(converters.load(tmp_path / "l.msgpack")["params"]["stem"]["kernel"])
    said = given["target"]["entries"]["params/stem/kernel"]
    assert said["crc32"] == f"{zlib.crc32(kernel.tobytes()):08x}" and said["shape"] == list(kernel.shape)
    mean = np.asarray(converters.load(tmp_path / "l.msgpack")["batch_stats"]["norm"]["mean"])
    assert given["target"]["entries"]["batch_stats/norm/mean"]["sha256"] == hashlib.sha256(mean.tobytes()).hexdigest()
    assert Mapping.loads(given["mapping"]["toml"]) == mapping
    assert given["mapping"]["sha256"] == hashlib.sha256(mapping.dumps().encode()).hexdigest()
    plan = Plan.from_json(json.dumps(given["plan"]))
    assert set(plan.src) == {"/".join(p) for p in _haiku_paths(params, state)}
    assert given["versions"]["jax"] == jax.__version__ and given["verdict"] == "exact for evaluation only"
    loaded = Manifest.load(manifest_of(tmp_path / "l.msgpack"))
    assert loaded.plan == plan and loaded.mapping == mapping
    assert sorted(np.load(residue_of(tmp_path / "l.msgpack"))) == sorted(
        f"state%2Fnorm%252F~%252F{ema}_ema%2F{leaf}"
        for ema in ("mean", "var")
        for leaf in ("average", "counter", "hidden")
    )


def _haiku_paths(params, state):
    for collection, bundle in (("params", params), ("state", state)):
        for module, leaves in bundle.items():
            yield from ((collection, module, leaf) for leaf in leaves)


def test_nothing_is_kept_beside_an_exact_conversion(tmp_path):
    converters.save(tmp_path / "a.msgpack", linen_variables())
    converters.convert(tmp_path / "a.msgpack", tmp_path / "b", src_model=LINEN, dst_model=NNX, inputs=(X,))
    assert not residue_of(tmp_path / "b").exists()
    converters.convert(tmp_path / "a.msgpack", tmp_path / "c.npz", manifest=False)
    assert not manifest_of(tmp_path / "c.npz").exists()
    # A manifest of an earlier output does not stay beside another one.
    converters.convert(tmp_path / "a.msgpack", tmp_path / "b", manifest=False, overwrite=True)
    assert not manifest_of(tmp_path / "b").exists()


def test_wrong_manifests(tmp_path):
    params, state = haiku_variables()
    converters.save(tmp_path / "h.npz", {"params": params, "state": state})
    converters.convert(tmp_path / "h.npz", tmp_path / "l.npz", **model(LINEN))
    note, residue = manifest_of(tmp_path / "l.npz"), residue_of(tmp_path / "l.npz")
    before = sorted(tmp_path.iterdir())

    def fails(text, kind=converters.CheckpointError):
        with pytest.raises(kind, match=text):
            converters.convert_back(tmp_path / "l.npz", tmp_path / "back.npz")
        assert sorted(tmp_path.iterdir()) == before

    good, kept = note.read_text(), residue.read_bytes()
    converters.save(tmp_path / "l.npz", {"other": np.ones(2)}, overwrite=True)
    fails(r"file is not the one that .*\n(.|\n)*missing 'params/stem/kernel'(.|\n)*unexpected 'other'", ValueError)
    converters.convert(tmp_path / "h.npz", tmp_path / "l.npz", overwrite=True, **model(LINEN))
    for text, said in (
        ("", "is no manifest"),
        ("{}", "no manifest of version 1"),
        (good.replace('"op": "reshape"', '"op": "rishape"'), "damaged"),
        (good.replace("residue.npz", "../x.npz"), "is no file beside the manifest"),
        (good.replace('"sources": ["params/', '"sources": ["other/'), "is damaged"),
        ("[" * 100_000, "is no manifest"),
    ):
        assert text != good
        note.write_text(text)
        fails(said)
    note.write_text(good)
    residue.write_bytes(kept[:-1] + b"x")
    fails("checksum differs")
    residue.write_bytes(kept)
    given = json.loads(good)
    entry = next(e for p, e in given["source"]["entries"].items() if p.endswith("hidden"))
    entry["crc32"] = "0" * 8
    note.write_text(json.dumps(given))
    fails("did not come back as they were, although what they became is unchanged")
    residue.unlink()
    before.remove(residue)
    note.write_text(good)
    fails("residue.npz does not exist")
    note.unlink()
    before.remove(note)
    fails("needs the manifest that the conversion wrote")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_a_manifest_that_anybody_may_have_written(tmp_path_factory, data):
    """Any one value of it replaced: an error of this package, or a result that was checked; nothing else is raised."""
    folder = tmp_path_factory.getbasetemp() / "hostile"
    note = manifest_of(folder / "l.npz")
    if not folder.exists():
        folder.mkdir()
        params, state = haiku_variables()
        converters.save(folder / "h.npz", {"params": params, "state": state})
        converters.convert(folder / "h.npz", folder / "l.npz", **model(LINEN))
        (folder / "good.json").write_text(note.read_text())
    given = json.loads((folder / "good.json").read_text())
    node = given
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.integers(0, 5)) == 0:
            break
        node = node[key]
    node[key] = data.draw(st.sampled_from([None, 0, -1, 2**63, "", "x", "/", [], {}, [[]], {"a": 1}, True, 1.5]))
    note.write_text(json.dumps(given))
    try:
        converters.convert_back(folder / "l.npz", folder / "back.npz", overwrite=True)
    except BridgeError:
        return
    params, state = haiku_variables()
    assert same(converters.load(folder / "back.npz")["params"]["stem"], params["stem"])
