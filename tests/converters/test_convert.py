"""File to file: what comes out is read by the target framework's own call, and computes the same."""

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import converters
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.param_mapping import Mapping, conventions
from tests.converters import nets
from tests.converters.nets import HAIKU, LINEN, NNX, X, haiku_variables, linen_variables


def same(a, b):
    """Whether two trees have one structure and the same bits."""
    leaves, treedefs = zip(*(jax.tree.flatten(tree) for tree in (a, b)), strict=True)
    return treedefs[0] == treedefs[1] and all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(*leaves, strict=True)
    )


@pytest.fixture
def haiku_file(tmp_path):
    params, state = haiku_variables()
    converters.save(tmp_path / "haiku.npz", {"params": params, "state": state})
    return tmp_path / "haiku.npz"


@pytest.fixture
def linen_file(tmp_path):
    (tmp_path / "linen.msgpack").write_bytes(flax.serialization.to_bytes(linen_variables()))
    return tmp_path / "linen.msgpack"


def test_haiku_to_linen(haiku_file, tmp_path):
    done = converters.convert(haiku_file, tmp_path / "out.msgpack", src_model=HAIKU, dst_model=LINEN, inputs=(X,))
    like = LINEN.init(jax.random.key(0), X)
    variables = flax.serialization.from_bytes(like, (tmp_path / "out.msgpack").read_bytes())
    params, state = haiku_variables()
    np.testing.assert_array_equal(LINEN.apply(variables, X), HAIKU.apply(params, state, X, False)[0])
    assert done.verdict == "exact for evaluation only" and "bias correction" in done.reasons[0]
    assert done.nbytes == sum(np.asarray(x).nbytes for x in jax.tree.leaves(like))
    assert "exact for evaluation only" in str(done) and done.to_dict()["dst"] == str(tmp_path / "out.msgpack")


def test_linen_to_nnx_and_back(linen_file, tmp_path):
    converters.convert(linen_file, tmp_path / "nnx", src_model=LINEN, dst_model=NNX, inputs=(X,))
    graph, like = nnx.split(nnx.eval_shape(lambda: NNX(nnx.Rngs(0))))
    model = nnx.merge(graph, ocp.StandardCheckpointer().restore(tmp_path / "nnx", like))
    variables = linen_variables()
    np.testing.assert_array_equal(model(X), LINEN.apply(variables, X))
    # The other way, and with the target known only as a spec.
    spec = linen_adapter.spec(LINEN, X)
    converters.convert(tmp_path / "nnx", tmp_path / "back.msgpack", src_model=NNX, dst_model=spec)
    assert (tmp_path / "back.msgpack").read_bytes() == linen_file.read_bytes()


def test_random_state_is_the_targets_own(linen_file, tmp_path):
    done = converters.convert(linen_file, tmp_path / "nnx", src_model=LINEN, dst_model=nets.Dropping, inputs=(X,))
    assert "own: RngCount/drop/rngs/count, RngKey/drop/rngs/key" in done.notes[0]
    graph, like = nnx.split(nnx.eval_shape(lambda: nets.Dropping(nnx.Rngs(0))))
    model = nnx.merge(graph, ocp.StandardCheckpointer().restore(tmp_path / "nnx", like))
    own = nets.Dropping(nnx.Rngs(0))
    assert model.drop.rngs.key[...] == own.drop.rngs.key[...]
    # A format without typed keys leaves them to the target; the rest is a pure dictionary for it.
    done = converters.convert(linen_file, tmp_path / "nnx.npz", src_model=LINEN, dst_model=own, inputs=(X,))
    assert "not written" in done.notes[0]
    state = nnx.state(own)
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(converters.load(tmp_path / "nnx.npz")))
    nnx.update(own, state)
    own.drop.deterministic = True
    np.testing.assert_array_equal(own(X), LINEN.apply(linen_variables(), X))


def test_same_names_without_models(tmp_path):
    """Linen and NNX keep names where a port did; what they store otherwise is carried by the conventions."""
    i, h = {"kernel": np.ones((3, 4)), "bias": np.zeros(4)}, {"kernel": np.ones((4, 4))}
    tree = {"params": {"Dense_0": {"kernel": np.ones((3, 4))}, "SimpleCell_0": {"i": i, "h": h}}}
    converters.save(tmp_path / "linen.npz", tree)
    converters.convert(tmp_path / "linen.npz", tmp_path / "nnx.npz", to="nnx")
    made = converters.load(tmp_path / "nnx.npz")
    assert same(made, {"Dense_0": {"kernel": np.ones((3, 4))}, "SimpleCell_0": {"dense_i": i, "dense_h": h}})
    # What could be stored in two ways is not guessed at.
    with pytest.raises(ValueError, match=r"could be .*SimpleCell.*, which are stored differently"):
        converters.convert(tmp_path / "nnx.npz", tmp_path / "back.npz", to="linen", framework="nnx")


def test_convolutions_without_models(tmp_path):
    """A port has the same hyperparameters: rows between differing `transpose_kernel`s are no second way to store them."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    tree = {"params": {"Conv_0": {"kernel": kernel}, "ConvTranspose_0": {"kernel": kernel, "bias": np.ones(4)}}}
    converters.save(tmp_path / "linen.npz", tree)
    converters.convert(tmp_path / "linen.npz", tmp_path / "nnx.npz", to="nnx")
    assert same(converters.load(tmp_path / "nnx.npz"), tree["params"])
    converters.convert(tmp_path / "nnx.npz", tmp_path / "back.npz", to="linen", framework="nnx")
    assert same(converters.load(tmp_path / "back.npz"), tree)


def test_haiku_needs_a_model_or_a_mapping(haiku_file, tmp_path):
    with pytest.raises(NotImplementedError, match=r"only the target's model tells: name it \(--into\), or give a map"):
        converters.convert(haiku_file, tmp_path / "out.msgpack", to="linen")
    mapping = Mapping.loads("""
    extends = ["conventions:haiku->linen"]
    [modules]
    "head/~/linear_{i:int}" = "dense_{i:int}"
    "norm" = "norm"
    "stem" = "stem"
    """)
    with pytest.raises(ValueError, match="'stem' could be Conv or DepthwiseConv or ConvTranspose, which are stored"):
        converters.convert(haiku_file, tmp_path / "out.msgpack", mapping=mapping, to="linen")
    converters.convert(haiku_file, tmp_path / "out.msgpack", mapping=mapping, to="linen", src_model=HAIKU, inputs=(X,))
    made = converters.load(tmp_path / "out.msgpack")
    assert sorted(made["params"]) == ["dense_0", "dense_1", "norm", "stem"]
    assert made["params"]["norm"]["scale"].shape == (4,) and made["batch_stats"]["norm"]["var"].shape == (4,)
    with pytest.raises(NotImplementedError, match="does not say of which framework its target is"):
        converters.convert(haiku_file, tmp_path / "other.msgpack", mapping=mapping)


def test_the_format_alone(haiku_file, tmp_path):
    done = converters.convert(haiku_file, tmp_path / "out.safetensors")
    assert done.plan is None and done.verdict == "exact"
    converters.convert(tmp_path / "out.safetensors", tmp_path / "back.npz")
    assert same(converters.load(tmp_path / "back.npz"), converters.load(haiku_file))


def test_a_source_model_without_a_target_changes_the_format_alone_and_says_so(haiku_file, tmp_path):
    done = converters.convert(haiku_file, tmp_path / "same.msgpack", src_model=HAIKU, inputs=(X,))
    assert done.plan is None and "Name the target's model (--into, dst_model=)" in done.notes[0]
    assert not converters.convert(haiku_file, tmp_path / "plain.msgpack").notes


def test_flat_is_path_to_array(haiku_file, tmp_path):
    converters.convert(haiku_file, tmp_path / "flat.npz", to="flat")
    with np.load(tmp_path / "flat.npz") as archive:
        assert "params/head/~/linear_0/w" in archive.files
        flat = dict(archive)
    params, state = haiku_variables()
    assert same(haiku_adapter.unflatten(flat), (params, state))
    # A flat file is a source like any other.
    converters.convert(tmp_path / "flat.npz", tmp_path / "out.msgpack", dst_model=LINEN, inputs=(X,))
    variables = converters.load(tmp_path / "out.msgpack")
    np.testing.assert_array_equal(LINEN.apply(variables, X), HAIKU.apply(params, state, X, False)[0])


def test_problems_come_before_anything_is_written(haiku_file, tmp_path):
    before = sorted(tmp_path.iterdir())

    class Wider(nets.Linen):
        @nets.nn.compact
        def __call__(self, x, train=False):
            x = nets.nn.Conv(4, (3,), name="stem")(x)
            x = nets.nn.BatchNorm(not train, epsilon=1e-3, name="norm")(x)
            return nets.nn.Dense(7, name="dense_0")(x)

    with pytest.raises(ValueError, match=r"epsilon(.|\n)*params/head/~/linear_1/w"):
        converters.convert(haiku_file, tmp_path / "out.msgpack", src_model=HAIKU, dst_model=Wider(), inputs=(X,))
    with pytest.raises(ValueError, match=r"file does not hold.*\n(.|\n)*'params/stem/w' is float32.3,3,4. in the file"):
        spec = haiku_adapter.spec(HAIKU, X[..., :2])
        converters.convert(haiku_file, tmp_path / "out.msgpack", src_model=spec, dst_model=LINEN, inputs=(X,))
    with pytest.raises(NotImplementedError, match="to='nnx', and the target's model is of linen"):
        converters.convert(haiku_file, tmp_path / "out.msgpack", to="nnx", dst_model=LINEN, inputs=(X,))
    with pytest.raises(NotImplementedError, match="'lnen' is no framework"):
        converters.convert(haiku_file, tmp_path / "out.msgpack", to="lnen")
    with pytest.raises(NotImplementedError, match="cannot hold everything"):
        converters.save(tmp_path / "complex.npz", {"a": np.ones(2, np.complex128)})
        converters.convert(tmp_path / "complex.npz", tmp_path / "complex.safetensors")
    (tmp_path / "complex.npz").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_job_is_a_plan_to_look_at(haiku_file, tmp_path):
    job = converters.Job.of(haiku_file, tmp_path / "out.msgpack", src_model=HAIKU, dst_model=LINEN, inputs=(X,))
    text = str(job)
    assert "Haiku: 14 variables" in text and "params/head/~/linear_0/w" in text and "evaluation only" in text
    assert job.nbytes and not (tmp_path / "out.msgpack").exists()


def test_places(haiku_file, tmp_path):
    cannot = converters.CheckpointError
    with pytest.raises(cannot, match="are the same"):
        converters.convert(haiku_file, haiku_file, overwrite=True)
    (tmp_path / "link.npz").symlink_to(haiku_file)
    with pytest.raises(cannot, match="are the same"):
        converters.convert(haiku_file, tmp_path / "link.npz", overwrite=True)
    (tmp_path / "out.safetensors").write_bytes(b"x")
    with pytest.raises(cannot, match="exists"):
        converters.convert(haiku_file, tmp_path / "out.safetensors")
    with pytest.raises(cannot, match=r"directory .*nowhere does not exist"):
        converters.convert(haiku_file, tmp_path / "nowhere" / "out.safetensors")
    with pytest.raises(cannot, match=r"does not exist. Did you mean 'haiku.npz'"):
        converters.convert(tmp_path / "haiku.nz", tmp_path / "b.safetensors")
    converters.convert(haiku_file, tmp_path / "folder")
    with pytest.raises(cannot, match="lies inside the source"):
        converters.convert(tmp_path / "folder", tmp_path / "folder" / "x.npz")
    with pytest.raises(cannot, match="which would be replaced"):
        converters.convert(tmp_path / "folder" / "manifest.ocdbt", tmp_path / "folder", overwrite=True)
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "gone.npz")
    with pytest.raises(cannot, match="link that leads nowhere"):
        converters.convert(haiku_file, tmp_path / "dangling.npz")
    assert (tmp_path / "out.safetensors").read_bytes() == b"x"


def test_spec_of_the_source_decides_the_framework(tmp_path):
    """Bare NNX weights look like Linen's; a model says which they are."""
    converters.save(
        tmp_path / "a.npz", {"stem": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    )
    with pytest.raises(converters.CheckpointError, match="not clear"):
        converters.convert(tmp_path / "a.npz", tmp_path / "b.npz", to="linen")
    model = nnx_adapter.spec(lambda: nnx.Dict(stem=nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    converters.convert(tmp_path / "a.npz", tmp_path / "b.npz", to="linen", src_model=model)
    assert list(converters.load(tmp_path / "b.npz")) == ["params"]
    assert conventions("nnx", "linen").parts
