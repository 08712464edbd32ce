"""What is relied on in flax beyond its documented interface, pinned: a release that changes it fails here first."""

from __future__ import annotations

import jax
import pytest
from flax import errors
from flax import linen as nn

from bridges._linen._observe import Spy, missing_stream, modified_collection
from tests.linen import models
from tests.linen.models import inputs, variables_of

X = inputs(2, 3)


def test_a_modification_error_names_its_collection():
    model = nn.BatchNorm(use_running_average=False)
    with pytest.raises(errors.ModifyScopeVariableError) as caught:
        model.apply(variables_of(model, X), X)
    assert modified_collection(caught.value) == "batch_stats"
    assert modified_collection(errors.ModifyScopeVariableError('a "b" c', "v", "/p")) == 'a "b" c'
    with pytest.raises(errors.FlaxError):
        modified_collection(errors.FlaxError("said in other words"))


def test_a_stream_error_names_its_stream():
    with pytest.raises(errors.InvalidRngError) as caught:
        nn.Dropout(0.5, deterministic=False).apply({}, X)
    assert missing_stream(caught.value) == "dropout"
    assert missing_stream(errors.InvalidRngError("said in other words")) == "params"


def test_methods_are_looked_up_on_the_temporary_instance():
    """What `Spy` relies on: Linen calls `self.sow` and the like on the clone that an interceptor sees."""
    model = models.Sower()
    variables = {"params": variables_of(model, X)["params"]}
    spy = Spy()
    with nn.intercept_methods(spy):
        model.apply(variables, X)
    assert spy.sown == {"intermediates/h", "losses/l2"}
    assert spy.touched == {"params/Dense_0/kernel", "params/Dense_0/bias"}
    assert not spy.streams
    with nn.intercept_methods(spy):
        models.ConvNet().init(jax.random.key(0), inputs(2, 4, 4, 3), train=True)
    assert spy.streams == {"dropout"}
    assert "batch_stats/BatchNorm_0/mean" in spy.touched


def test_a_spy_leaves_attributes_and_overrides_alone():
    class Overrides(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow(x)
            return nn.Dense(3)(x)

        def sow(self, value):
            return super().sow("intermediates", "own", value)

    spy = Spy()
    with nn.intercept_methods(spy):
        Overrides().apply(variables_of(Overrides(), X), X)
        models.ReservedNames().bind(variables_of(models.ReservedNames(), X))(X)
    assert not spy.sown


def test_bind_and_scope_give_what_apply_gives():
    model = nn.BatchNorm(use_running_average=False)
    variables = variables_of(model, X)
    bound = model.bind(variables, mutable=frozenset({"batch_stats"}))
    out = bound(X)
    want, updated = model.apply(variables, X, mutable=["batch_stats"])
    assert models.same(out, want)
    assert models.same(dict(bound.scope.mutable_variables()), dict(updated))
