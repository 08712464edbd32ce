"""OptaxModule against the same optimizer called by hand, for every optimizer that Optax ships."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import bridges as br
from tests.light import LIGHTLY


class Stat(br.Variable):
    pass


class Model(br.Module):
    """A layer with a float statistic and an integer counter beside its weights: what must never be stepped."""

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (x.shape[-1], 4)))
        b = self.get("b", lambda: jax.random.normal(br.rng(), (4,)))
        mean = self.get("mean", jnp.zeros, (4,), kind=br.BatchStat)
        calls = self.get("calls", jnp.zeros, (), jnp.int32)
        out = x @ w + b
        self.put("mean", 0.9 * mean + 0.1 * out.mean(0))
        self.put("calls", calls + 1)
        return out + mean


class Fit(br.Module):
    def __init__(self, opt, targets="module"):
        self.net = Model()
        self.opt = opt
        self.targets = targets

    def loss(self, x, y):
        return ((self.net(x) - y) ** 2).mean()

    def train(self, x, y):
        if self.targets == "module":
            return self.opt(self.net, self.loss, x, y)
        if self.targets == "modules":
            return self.opt([self.net], self.loss, x, y)
        if self.targets == "kind":
            return self.opt(br.Param, self.loss, x, y)
        if self.targets == "paths":
            return self.opt([f"{self.path}/net/w", f"{self.path}/net/b"], self.loss, x, y)
        self.net(x)
        return self.opt(self.net.getm(".*"), self.loss, x, y)


X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
WARMUP = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10)

OPTIMIZERS = {
    **{
        name: getattr(optax, name)
        for name in (
            "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam"
            " nadamw novograd optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd sm3 yogi"
        ).split()
    },
    "polyak_sgd": lambda lr: optax.polyak_sgd(),
    "noisy_sgd": lambda lr: optax.noisy_sgd(lr, key=0),
    "lbfgs": lambda lr: optax.lbfgs(),
    "lbfgs_backtracking": lambda lr: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(10)),
    "chain": lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(WARMUP)),
    "sgd_momentum": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "inject": lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=lr),
    "masked": lambda lr: optax.masked(optax.adam(lr), lambda p: {k: k.endswith("/w") for k in p}),
    "labels": lambda lr: optax.multi_transform(
        {"a": optax.adam(lr), "b": optax.sgd(lr)}, lambda p: {k: "a" if k.endswith("/w") else "b" for k in p}
    ),
    "multi_steps": lambda lr: optax.MultiSteps(optax.adam(lr), every_k_schedule=2),
    "apply_if_finite": lambda lr: optax.apply_if_finite(optax.adam(lr), 3),
    "ema": lambda lr: optax.chain(optax.adam(lr), optax.ema(0.9)),
    "plateau": lambda lr: optax.chain(optax.adam(lr), optax.contrib.reduce_on_plateau()),
    "sam": lambda lr: optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05), opaque_mode=True),
    "sam_transparent": lambda lr: optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05)),
    "schedule_free": lambda lr: optax.contrib.schedule_free(optax.sgd(lr), lr),
    **{
        f"contrib_{name}": getattr(optax.contrib, name)
        for name in "acprop ademamix adopt dadapt_adamw madgrad momo momo_adam muon prodigy sophia".split()
    },
    "contrib_cocob": lambda lr: optax.contrib.cocob(),
    "contrib_mechanize": lambda lr: optax.contrib.mechanize(optax.sgd(lr)),
}


def by_hand(name, opt, state, steps):
    """The same training without OptaxModule: optax on a nested tree, statistics and counts updated by the function."""
    params = {"net": {k: state[f"fit/net/{k}"] for k in ("w", "b")}}
    rest = {k: state[f"fit/net/{k}"] for k in ("mean", "calls")}

    def loss_fn(params, rest):
        out = X @ params["net"]["w"] + params["net"]["b"]
        new = {"mean": 0.9 * rest["mean"] + 0.1 * out.mean(0), "calls": rest["calls"] + 1}
        return ((out + rest["mean"] - Y) ** 2).mean(), new

    opt_state = opt.init(params)
    losses = []
    for _ in range(steps):
        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rest)

        def value_fn(p, rest=rest):
            return loss_fn(p, rest)[0]

        extra = {}
        if "sam" in name:
            extra = {"grad_fn": lambda p, _, f=value_fn: jax.grad(f)(p)}
        elif "sophia" in name:
            extra = {"obj_fn": value_fn}
        elif isinstance(opt, optax.GradientTransformationExtraArgs):
            extra = {"value": loss, "grad": grads, "value_fn": value_fn}
        updates, opt_state = opt.update(grads, opt_state, params, **extra)
        params, rest = optax.apply_updates(params, updates), new
        losses.append(loss)
    return params["net"], rest, losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_peers_optimizer_wrapper_works_for_every_optimizer(name):
    make = OPTIMIZERS[name]
    if name in ("masked", "labels"):
        # The labels are written over flat paths: the run by hand labels its nested tree alike.
        by = {"masked": lambda p: {"net": {"w": True, "b": False}}, "labels": lambda p: {"net": {"w": "a", "b": "b"}}}
        hand = (
            optax.masked(optax.adam(1e-2), by[name])
            if name == "masked"
            else optax.multi_transform({"a": optax.adam(1e-2), "b": optax.sgd(1e-2)}, by[name])
        )
    else:
        hand = make(1e-2)
    fit = Fit(br.OptaxModule(make, 1e-2))
    state = br.init(fit.train)({}, X, Y, seed=0)
    before = dict(state)
    step = br.jit(fit.train, compiler_options=LIGHTLY)
    losses = []
    for _ in range(4):
        state, metrics = step(state, X, Y)
        losses.append(metrics["loss"])
    params, rest, expected = by_hand(name, hand, before, 4)
    # float32: the two programs sum the same terms in another order, under jit and not; line searches amplify that.
    rtol = 1e-3 if "lbfgs" in name or "muon" in name else 1e-5
    np.testing.assert_allclose(losses, expected, rtol=rtol)
    np.testing.assert_allclose(state["fit/net/w"], params["w"], rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(state["fit/net/b"], params["b"], rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(state["fit/net/mean"], rest["mean"], rtol=rtol, atol=1e-6)
    assert int(state["fit/net/calls"]) == 4
    moved = [path for path in state if not np.array_equal(state[path], before[path])]
    assert set(moved) - {"fit/net/mean", "fit/net/calls"}, "neither the params nor the optimizer's state moved"


@pytest.mark.parametrize("targets", ["module", "modules", "paths", "getm", "kind"])
def test_targets_may_be_modules_paths_or_a_getm_result(targets):
    fit = Fit(br.OptaxModule(optax.adam, 1e-2), targets)
    state = br.init(fit.train)({}, X, Y, seed=0)
    # 'getm' calls the net once more, so its statistics differ by a call; the gradient is that of the second call.
    new, metrics = br.pure(fit.train)(state, X, Y)
    assert set(metrics) == {"loss", "grad_norm"}
    moments = {path for path in new if "/state/0/mu/" in path}
    assert moments == {"opt/state/0/mu/fit/net/w", "opt/state/0/mu/fit/net/b"}


def test_peers_optimizer_never_steps_statistics():
    """ninjax steps every float entry it is given, running means included."""
    fit = Fit(br.OptaxModule(optax.sgd, 1.0), "getm")
    state = br.init(fit.train)({}, X, Y, seed=0)
    new, _ = br.pure(fit.train)(state, X, Y)
    out = X @ state["fit/net/w"] + state["fit/net/b"]
    twice = 0.9 * (0.1 * out.mean(0)) + 0.1 * out.mean(0)
    np.testing.assert_allclose(new["fit/net/mean"], twice, rtol=1e-5)
    assert new.kind("fit/net/mean") is br.BatchStat
    assert int(new["fit/net/calls"]) == 2


def test_state_is_whole_in_a_fresh_module_over_a_plain_dict():
    fit = Fit(br.OptaxModule(optax.adam(1e-2)))
    state = br.init(fit.train)({}, X, Y, seed=0)
    state, _ = br.pure(fit.train)(state, X, Y)
    here, _ = br.pure(fit.train)(state, X, Y)
    fresh = Fit(br.OptaxModule(optax.adam(1e-2)))
    plain = {path: np.asarray(value) for path, value in state.items()}
    there, _ = br.pure(fresh.train)(plain, X, Y)
    assert list(here) == list(there)
    for path in here:
        np.testing.assert_array_equal(here[path], there[path], err_msg=path)


@pytest.mark.parametrize("kind", [br.State, dict])
def test_load_takes_a_state_that_was_made_elsewhere(kind):
    fit = Fit(br.OptaxModule(optax.adam(1e-2)))
    state = br.init(fit.train)({}, X, Y, seed=0)
    params = kind({path: state[path] for path in ("fit/net/w", "fit/net/b")})
    opt = optax.adam(1e-2)
    _, native = opt.update(jax.tree.map(jnp.ones_like, params), opt.init(params), params)
    loaded, _ = br.pure(lambda s: fit.opt.load(s))(state, native)
    np.testing.assert_array_equal(loaded["opt/state/0/mu/fit/net/w"], native[0].mu["fit/net/w"])
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    with pytest.raises(br.EntryShapeError, match="another structure"):
        br.pure(lambda s: fit.opt.load(s))(state, optax.sgd(1.0, momentum=0.9).init(params))


def test_from_optax_and_names():
    adam = br.FromOptax(optax.adam)
    assert adam(1e-3, name="first").path == "first"
    assert br.OptaxModule(optax.adam(1e-3)).path == "opt"
    assert inspect.isclass(adam)


def test_has_aux_gives_metrics_and_aux():
    class Aux(Fit):
        def loss(self, x, y):
            out = self.net(x)
            return ((out - y) ** 2).mean(), {"out": out}

        def train(self, x, y):
            return self.opt(self.net, self.loss, x, y, has_aux=True)

    fit = Aux(br.OptaxModule(optax.lbfgs()))
    state = br.init(fit.train)({}, X, Y, seed=0)
    _, (metrics, aux) = br.pure(fit.train)(state, X, Y)
    assert metrics["loss"].shape == () and aux["out"].shape == (6, 4)


def test_errors_say_what_to_do():
    with pytest.raises(br.BridgeError, match="Give an optimizer"):
        br.OptaxModule(3)
    fit = Fit(br.OptaxModule(optax.sgd, 0.1))
    state = br.init(fit.train)({}, X, Y, seed=0)

    def swapped(x, y):
        return fit.opt(fit.loss, fit.net.getm(), x, y)

    with pytest.raises(br.BridgeError, match="targets first"):
        br.pure(swapped)(state, X, Y)

    def nothing(x, y):
        return fit.opt(["fit/net/mean", "fit/net/calls"], fit.loss, x, y)

    with pytest.raises(br.MissingEntryError, match="nothing to update"):
        br.pure(nothing)(state, X, Y)


class Whole(Fit):
    """The targets are the module that holds the optimizer too."""

    def train(self, x, y):
        self.net(x)
        targets = {"module": self, "getm": self.getm(".*"), "paths": [*self.getm(".*")], "kind": br.Param}[self.targets]
        return self.opt(targets, self.loss, x, y)


@pytest.mark.parametrize("targets", ["module", "getm", "paths", "kind"])
def test_its_own_state_is_not_stepped_over_a_plain_dict(targets):
    fit = Whole(br.OptaxModule(optax.adamw, 1e-2), targets)
    begin = br.init(fit.train)({}, X, Y, seed=0)
    train = jax.jit(br.pure(fit.train))
    want, found = begin, dict(begin)
    for _ in range(2):
        want, found = train(want, X, Y)[0], dict(train(found, X, Y)[0])
    assert found.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-7, err_msg=path)
