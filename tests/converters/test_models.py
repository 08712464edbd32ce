"""Model references: what a person types, and what it finds."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx

import bridges as br
from converters._models import Model, ModelError, load

X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


class Head(br.Module):
    def __call__(self, x):
        return x @ self.get("w", lambda: jax.random.normal(br.rng(), (3, 4)))


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


MODELS = {
    "haiku function": ("haiku", lambda x: hk.Linear(4)(x)),
    "haiku class": ("haiku", functools.partial(hk.Linear, 4)),
    "haiku transformed": ("haiku", hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(x)))),
    "haiku with state": ("haiku", hk.transform_with_state(lambda x: hk.Linear(4)(x))),
    "linen": ("linen", nn.Dense(4)),
    "linen factory": ("linen", lambda: nn.Dense(4)),
    "nnx class": ("nnx", Plain),
    "nnx factory": ("nnx", lambda rngs: nnx.Linear(3, 4, rngs=rngs)),
    "nnx factory without rngs": ("nnx", lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0))),
    "nnx instance": ("nnx", Plain(nnx.Rngs(0))),
    "core": ("core", Head(name="head")),
    "core factory": ("core", lambda: Head(name="head")),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_sort_of_model_has_a_spec_and_runs(name):
    framework, given = MODELS[name]
    model = Model.of(given, name)
    assert model.framework == framework
    spec = model.spec(jax.ShapeDtypeStruct((2, 3), np.float32))
    assert sum(int(np.prod(x.shape)) for x in spec.entries.values()) in (12, 16)
    state = model.init(0, X)
    assert {p: (x.shape, x.dtype) for p, x in state.items()} == {p: (x.shape, x.dtype) for p, x in spec.entries.items()}
    out, after = model.apply(state, X)
    assert out.shape == (2, 4) and after.keys() == state.keys()
    assert Model.of(model) is model


def test_what_is_no_model_is_said():
    with pytest.raises(ModelError, match="is a int and no model"):
        Model.of(3)


def test_references(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("size = 4\n")
    (tmp_path / "nets.py").write_text(
        "import flax.linen as nn\nfrom beside import size\n"
        "class Net(nn.Module):\n    pass\nclass box:\n    net = nn.Dense(size)\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert load("nets.py:box.net").model.features == 4
    assert load(f"{tmp_path}/nets.py:box.net").framework == "linen"
    for reference, text in {
        "nets.py": "names no model. Write file.py:name",
        "nets.py:bo": "has no attribute 'bo'. Did you mean 'box'",
        "nets.py:Net": "is a Linen class. Name an instance",
        "missing.py:net": "missing.py does not exist",
        "missing_package.nets:net": "there is no module 'missing_package'",
        "broken.py:net": "cannot be imported: ZeroDivisionError",
    }.items():
        with pytest.raises(ModelError, match=text):
            load(reference)
