"""A conversion carries no random state: what a newcomer forgets of it is said."""

import pytest
from flax import nnx

from bridges import StructureError, nnx_adapter


def test_a_model_with_dropout_keeps_its_own_random_state():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    new = {path: value for path, value in nnx_adapter.flatten(model).items() if path.startswith("params/")}
    with pytest.raises(StructureError, match=r"random state.*nnx_adapter.flatten\(model\) \| new"):
        nnx_adapter.unflatten(new, model)
    nnx.update(model, nnx_adapter.unflatten(nnx_adapter.flatten(model) | new, model))
    del new["params/layers/0/bias"]
    with pytest.raises(StructureError) as err:
        nnx_adapter.unflatten(new, model)
    assert "random state" not in str(err.value)
