"""Odd models: sizes of zero, what is no number, complex and integer leaves, keys, side outputs: an answer or a reason."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import bridges as br
from bridges._infer._apart import apart
from bridges._infer._model import ModelError

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def inferred(apply, shapes, *inputs, other=None):
    """The mapping between `apply` and the same (or `other`) with other names of leaves; `p` is their list, in order."""

    def model(apply, names):
        params = {n: np.ones(s, np.float32) if isinstance(s, tuple) else s for n, s in zip(names, shapes, strict=True)}
        return br.Function(lambda p, *x: apply([p[n] for n in names], *x), params)

    names = [[f"{side}{k}" for k in range(len(shapes))] for side in ("old", "new")]
    return br.infer_mapping(model(apply, names[0]), model(other or apply, names[1]), *inputs)


def settled(x):
    return jax.lax.while_loop(lambda c: jnp.max(jnp.abs(c)) > 0.01, lambda c: c / 2, x)


def told(x):
    io_callback(lambda _: None, None, x, ordered=True)
    jax.debug.callback(lambda _: None, x)
    return x


def masked(x):
    return jnp.where(jnp.arange(x.shape[-1]) > 0, x, jnp.nan)


def of_keys(p, x, key):
    keys = jax.random.split(key, 4)[jnp.argsort(x[:, 0])]
    return x @ p[0] * jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys), key


WHOLE = {
    "no units": (lambda p, x: jnp.tanh(x @ p[0] + p[1]) @ p[2] + p[3], [(3, 0), (0,), (0, 2), (2,)], X),
    "a leaf without elements": (lambda p, x: x @ p[0] + p[1].sum(), [(3, 2), (0,)], X),
    "a sum of nothing": (lambda p, x: (x[:, :0, None] * p[0]).sum(1) + p[1], [(0, 2), (2,)], X),
    "scalars": (lambda p, x: ((x * x) * p[0] - x * p[0] + p[1]) * x * p[2] / x, [(), (), ()], np.float32(0.7)),
    "NaN by a mask": (lambda p, x: masked(x @ p[0]), [(3, 2)], X),
    "NaN and infinity come in": (lambda p, x: x @ p[0], [(3, 2)], np.where(X > 1, np.inf, np.where(X < -1, np.nan, X))),
    "integer leaves": (lambda p, x: (x @ p[0] + p[1])[:, p[1]], [(3, 2), np.array([1, 0])], X),
    "four bits": (lambda p, x: x @ p[0].astype(x.dtype) @ p[1], [jnp.ones((3, 2), jnp.int4), (2, 2)], X),
    "pivots": (lambda p, x: x @ jnp.linalg.inv(p[0] @ p[0].T + jnp.eye(3)), [(3, 3)], X),
    "bits": (lambda p, x: x @ p[0] * (jax.lax.bitcast_convert_type(x[:, :2], jnp.int32) > 0), [(3, 2)], X),
    "complex values": (lambda p, x: jnp.fft.irfft(jnp.fft.rfft(x @ p[0]) * p[1] + 1j, 4), [(3, 4), (3,)], X),
    "random keys": (of_keys, [(3, 2)], X, jax.random.key(1)),
    "side outputs": (lambda p, x: (jax.jit(lambda x: jnp.tanh(told(x)))(x @ p[0]), "text", None), [(3, 2)], X),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_model_is_mapped_whole(name):
    mapping = inferred(*WHOLE[name])
    assert mapping.complete, mapping
    assert mapping.verified.outputs < 1e-6


PARTIAL = {
    "no examples": (lambda p, x: x @ p[0], [(3, 2)], np.zeros((0, 3), np.float32), "no value of the source tells it"),
    "nothing but NaN": (lambda p, x: jnp.log(-jnp.abs(x @ p[0])), [(3, 2)], X, "no number among the outputs"),
    "a complex leaf": (lambda p, x: jnp.abs(x @ p[0]), [np.ones((3, 2), np.complex64)], X, "it is complex"),
    "leaves made complex": (
        lambda p, x: jnp.abs(x @ (p[0] + 1j * p[1])), [(3, 2), (3, 2)], X, "no value of the source tells it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTIAL)
def test_an_odd_model_gets_a_reason(name):
    *given, reason = PARTIAL[name]
    mapping = inferred(*given)
    assert not mapping.complete
    assert reason in str(mapping)
    assert mapping.parting is None or not mapping.parting.certain


def test_without_gradients_outputs_are_compared_and_that_is_said():
    mapping = inferred(lambda p, x: settled(x @ p[0]), [(3, 3)], X)
    assert mapping.complete and mapping.verified.outputs < 1e-12
    assert "JAX takes no gradients: Reverse-mode differentiation does not work for lax.while_loop" in str(mapping)
    assert mapping.to_dict()["verified"]["gradients"] is None


def test_a_nan_hides_no_difference():
    with pytest.raises(br.DifferentModelsError):
        inferred(lambda p, x: masked(x @ p[0]), [(3, 3)], X, other=lambda p, x: masked(x @ p[0] * 1.001 + 0.1))
    one, other, nan = np.array([1.0, np.nan]), np.array([1.5, np.nan]), np.array([np.nan, 1.0])
    assert apart([one], [one]) == 0 and apart([one], [other]) == 0.5 and apart([one], [nan]) == float("inf")
    assert np.isnan(apart([nan[:1]], [nan[:1]])) and apart([], []) == 0


def test_an_output_that_jax_does_not_know_is_an_error():
    @dataclasses.dataclass
    class Output:
        logits: jax.Array

    with pytest.raises(ModelError, match=r"returns a Output at \[0\], of which it is not known what is in it"):
        inferred(lambda p, x: (Output(x @ p[0]), x), [(3, 2)], X)


def test_texts_among_parameters_are_no_leaves():
    assert list(br.Function(lambda p, x: x, {"w": np.ones(2), "name": np.array(["a"])}).spec().entries) == ["w"]
