"""Optimizer states and second parameters go along, and come back bit for bit."""

import pickle

import flax
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import converters
from bridges import haiku_adapter, linen_adapter
from bridges.core._flat import flatten
from bridges.param_mapping import conventions
from tests.converters.nets import HAIKU, LINEN, NNX, X, haiku_variables, linen_variables, randomised
from tests.converters.test_convert import same

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
TO_LINEN = {"src_model": HAIKU, "dst_model": LINEN, "inputs": (X,)}


@pytest.fixture
def triple(tmp_path):
    params, state = haiku_variables()
    tree = (params, state, randomised(TX.init(params), 2))
    (tmp_path / "triple.pkl").write_bytes(pickle.dumps(tree))
    return tree


def arrays(tree):
    return jax.tree.map(np.asarray, tree)


def test_into_flax(triple, tmp_path):
    """As `plan.optimizer` has it, read by Flax's own call."""
    done = converters.convert(tmp_path / "triple.pkl", tmp_path / "out.msgpack", **TO_LINEN)
    like = jax.eval_shape(lambda: LINEN.init(jax.random.key(0), X))
    like = {**like, "opt_state": jax.eval_shape(TX.init, like["params"])}
    read = flax.serialization.from_bytes(like, (tmp_path / "out.msgpack").read_bytes())
    plan = conventions("haiku", "linen").plan(haiku_adapter.spec(HAIKU, X), linen_adapter.spec(LINEN, X))
    wanted = plan.optimizer(triple[2], triple[0], like["params"])
    assert same(arrays(read["opt_state"]), arrays(wanted))
    assert any("Taken for granted" in note for note in done.notes)


@pytest.mark.parametrize("target", ["out.msgpack", "out.pkl", "out"])
def test_back(triple, target, tmp_path):
    converters.convert(tmp_path / "triple.pkl", tmp_path / target, **TO_LINEN)
    back = converters.convert_back(tmp_path / target, tmp_path / "back.pkl")
    assert "bit for bit" in back.notes[0]
    assert same(pickle.loads((tmp_path / "back.pkl").read_bytes()), triple)


def test_fields_keep_their_names(triple, tmp_path):
    params, state, opt_state = triple
    tree = {"params": params, "state": state, "opt_state": opt_state, "ema_params": randomised(params, 5), "step": 7}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree))
    converters.convert(tmp_path / "a.pkl", tmp_path / "b.msgpack", **TO_LINEN)
    made = converters.load(tmp_path / "b.msgpack")
    assert sorted(made) == ["batch_stats", "ema_params", "opt_state", "params", "step"] and made["step"] == 7
    np.testing.assert_array_equal(made["ema_params"]["stem"]["kernel"], tree["ema_params"]["stem"]["w"])
    converters.convert_back(tmp_path / "b.msgpack", tmp_path / "c.pkl")
    assert same(pickle.loads((tmp_path / "c.pkl").read_bytes()), tree)
    # Trained on: a moment that was changed goes back through the same ops.
    made["opt_state"]["1"]["0"]["mu"]["norm"]["scale"] += 1
    made["step"] = 8
    (tmp_path / "b.msgpack").write_bytes(flax.serialization.to_bytes(made))
    converters.convert_back(tmp_path / "b.msgpack", tmp_path / "d.pkl")
    tree["opt_state"][1][0].mu["norm"]["scale"] += 1
    assert same(pickle.loads((tmp_path / "d.pkl").read_bytes()), {**tree, "step": 8})


def test_into_nnx_and_to_haiku_again(triple, tmp_path):
    """Orbax restores into `nnx.state` of a model and its optimizer; `tx` gives the state its containers back."""
    done = converters.convert(tmp_path / "triple.pkl", tmp_path / "nnx", src_model=HAIKU, dst_model=NNX, inputs=(X,))
    assert any("nnx.Optimizer keeps a step, which the source lacks; it is the count" in note for note in done.notes)
    model = NNX(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    like = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    read = ocp.StandardCheckpointer().restore(tmp_path / "nnx", like)
    nnx.update(model, read["model"])
    nnx.update(optimizer, read["optimizer"])
    count = triple[2][1][0].count
    assert optimizer.step[...] == count and optimizer.opt_state[1][0].count[...] == count
    np.testing.assert_array_equal(optimizer.opt_state[1][0].mu["stem"]["kernel"][...], triple[2][1][0].mu["stem"]["w"])
    converters.convert(tmp_path / "nnx", tmp_path / "h.pkl", src_model=NNX, dst_model=HAIKU, inputs=(X,), tx=TX)
    made = pickle.loads((tmp_path / "h.pkl").read_bytes())
    assert same(made["opt_state"], triple[2]) and same(made["params"], triple[0]) and made["step"] == count


def test_what_cannot_be_carried_is_refused_before_anything_is_written(tmp_path):
    variables = linen_variables()
    tree = {**variables, "opt_state": optax.adam(1e-3).init(variables["params"]["stem"])}
    converters.save(tmp_path / "a.msgpack", tree)
    with pytest.raises(NotImplementedError, match="not in the structure of src_params"):
        converters.convert(tmp_path / "a.msgpack", tmp_path / "b", src_model=LINEN, dst_model=NNX, inputs=(X,))
    converters.save(
        tmp_path / "a.msgpack", {**variables, "ema_params": {"stem": variables["params"]["stem"]}}, overwrite=True
    )
    with pytest.raises(
        ValueError, match=r"'ema_params' does not have the entries of the parameters:\n  - 'params/dense_0"
    ):
        converters.convert(tmp_path / "a.msgpack", tmp_path / "b", src_model=LINEN, dst_model=NNX, inputs=(X,))
    assert [path.name for path in tmp_path.iterdir()] == ["a.msgpack"]


def test_a_state_without_tuples_needs_its_transformation(tmp_path):
    """A file of msgpack does not say that `mu` is Adam's: whether it follows the 1 added to an LSTM's bias is not known."""
    model = nn.RNN(nn.OptimizedLSTMCell(3))
    x = np.ones((2, 4, 5), np.float32)
    params = model.init(jax.random.key(0), x)["params"]
    state = optax.adam(1e-3).init(params)
    moments = jax.tree.map(lambda a: np.arange(a.size, dtype=a.dtype).reshape(a.shape), state[0].mu)
    state = (state[0]._replace(mu=moments), *state[1:])
    converters.save(tmp_path / "a.msgpack", {"step": 0, "params": params, "opt_state": state})

    def old(x):
        core = hk.LSTM(3)
        return hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)[0]

    ends = {"src_model": model, "dst_model": old, "inputs": (x,)}
    with pytest.raises(NotImplementedError, match=r"not known whether 'mu'.*\n(.*\n)*The state .* dictionaries.*tx="):
        converters.convert(tmp_path / "a.msgpack", tmp_path / "b.pkl", **ends)
    with pytest.raises(ValueError, match="not of the given transformation"):
        converters.convert(tmp_path / "a.msgpack", tmp_path / "b.pkl", tx=optax.sgd(1e-3, 0.9), **ends)
    converters.convert(tmp_path / "a.msgpack", tmp_path / "b.pkl", tx=optax.adam(1e-3), **ends)
    made = pickle.loads((tmp_path / "b.pkl").read_bytes())
    plan = conventions("linen", "haiku").plan(linen_adapter.spec(model, x), haiku_adapter.spec(old, x))
    assert same(made["opt_state"], jax.tree.map(np.asarray, plan.optimizer(state, params, made["params"])))


def test_dictionaries_for_an_optimizers_state_are_said(tmp_path):
    variables = linen_variables()
    state = randomised(TX.init(variables["params"]), 2)
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes({**variables, "opt_state": state}))
    ends = {"src_model": LINEN, "dst_model": HAIKU, "inputs": (X,)}
    done = converters.convert(tmp_path / "a.msgpack", tmp_path / "b.pkl", **ends)
    assert any("without them optax cannot use it" in note for note in done.notes)
    done = converters.convert(tmp_path / "a.msgpack", tmp_path / "c.pkl", tx=TX, **ends)
    assert not any("in dictionaries" in note for note in done.notes)
    assert type(pickle.loads((tmp_path / "c.pkl").read_bytes())[2]) is tuple
    converters.convert_back(tmp_path / "c.pkl", tmp_path / "back.msgpack")
    trees = [flax.serialization.msgpack_restore((tmp_path / f"{name}.msgpack").read_bytes()) for name in ("a", "back")]
    assert same(*trees)


def test_into_flat(triple, tmp_path):
    """Of the optimizer's state into path -> array: the moments have the target's paths, whatever parameters are called."""
    rules = [{"src": "params/{m:path}/{leaf}", "dst": "net/{m:path}/params/{leaf}"}]
    mapping = {"rules": rules, "drop": ["state/{rest:path}"]}
    job = {"mapping": mapping, "to": "flat", "src_model": HAIKU, "inputs": (X,)}
    converters.convert(tmp_path / "triple.pkl", tmp_path / "flat.npz", **job)
    flat = flatten(converters.load(tmp_path / "flat.npz"))
    moments = triple[2][1][0]
    assert same(flat["opt_state/1/0/nu/net/stem/params/w"], moments.nu["stem"]["w"])
    assert same(flat["opt_state/1/0/mu/net/head/~/linear_1/params/b"], moments.mu["head/~/linear_1"]["b"])
    assert flat["opt_state/1/0/count"] == moments.count
    assert len(flat) == 3 * len(jax.tree.leaves(triple[0])) + 1
    converters.convert_back(tmp_path / "flat.npz", tmp_path / "back.pkl")
    assert same(pickle.loads((tmp_path / "back.pkl").read_bytes()), triple)
