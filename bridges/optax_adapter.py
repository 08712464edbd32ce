"""Optax optimizers as parts of the core: a module that holds the optimizer's state and takes steps.

Params go to the optimizer as a plain dictionary from path to array, so that masks and labels can be written over paths.
Its state is kept in entries of kind `OptState`, `<module path>/state/<path in the optimizer's state>`, where a tree like
the params keeps their paths: `opt/state/0/mu/net/bias`.

What it does not do: it never touches an entry that is not a `Param`, whatever it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from bridges.core import BridgeError, MissingEntryError, Module, State, Variable, context, evaluate, grad, trainable


class OptState(Variable):
    """State of an optimizer: moments, counts, hyperparameters that were injected."""


def _is_optimizer(value: Any) -> bool:
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


class OptaxModule(Module):
    """An Optax optimizer with its state.

    Args:
      opt: An optimizer (anything with Optax's `init` and `update`: a `GradientTransformation`, `optax.MultiSteps`), or a
        function that makes one from the further arguments.
      *args: Arguments of the function.
      **kwargs: Keyword arguments of the function.

    Raises:
      BridgeError: There is neither an optimizer nor a function that makes one.

    >>> import bridges as br, jax.numpy as jnp
    >>> class Fit(br.Module):
    ...   def __init__(self):
    ...     self.opt = br.OptaxModule(optax.sgd, 0.5)
    ...   def loss(self, y):
    ...     return ((self.get('w', jnp.zeros, ()) - y) ** 2).mean()
    ...   def train(self, y):
    ...     return self.opt([f'{self.path}/w'], self.loss, y)
    >>> fit = Fit()
    >>> state = br.init(fit.train)({}, 3.0)
    >>> state, metrics = br.pure(fit.train)(state, 3.0)
    >>> float(metrics['loss']), float(metrics['grad_norm']), float(state['fit/w'])
    (9.0, 6.0, 3.0)
    """

    def __init__(self, opt: Any, *args: Any, **kwargs: Any):
        made = opt if _is_optimizer(opt) and not (args or kwargs) else opt(*args, **kwargs) if callable(opt) else None
        if not _is_optimizer(made):
            raise BridgeError(
                f"OptaxModule got {type(opt).__name__} {opt!r}. Give an optimizer, OptaxModule(optax.adam(1e-3)), or a"
                " function that makes one with its arguments, OptaxModule(optax.adam, 1e-3)."
            )
        self.opt: Any = made

    @classmethod
    def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        return "opt"

    def __call__(
        self, targets: Any, loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False, **kwargs: Any
    ) -> Any:
        """Takes one step on `loss_fn(*args, **kwargs)` and writes the new params and optimizer state.

        Args:
          targets: Modules, paths, prefixes, a `getm` result, or a list of these. Only their `Param` entries are updated.
          loss_fn: A stateful function that returns a scalar loss, `(loss, aux)` with `has_aux`.
          *args: Its arguments.
          has_aux: Whether it returns auxiliary output.
          **kwargs: Its keyword arguments.

        Returns:
          `{'loss': [], 'grad_norm': []}`, before the step; `(metrics, aux)` with `has_aux`.

        Raises:
          MissingEntryError: The targets hold no `Param` entries.
        """
        if not callable(loss_fn):
            raise BridgeError(
                f"OptaxModule is called with the targets first and the loss function second; the second argument is"
                f" {type(loss_fn).__name__}. Write opt(targets, loss_fn, *args)."
            )
        function = _with_aux(loss_fn, has_aux)
        values = evaluate(function)
        loss, params, grads, aux = grad(function, self._select(targets), has_aux=True)(*args, **kwargs)

        # Line searches pass on whatever else the optimizer was given, to parameters of these names.
        def value_fn(params: Mapping[str, Any], obj_fn: Any = None, grad_fn: Any = None) -> Any:
            return values(params, *args, **kwargs)[0]

        self.step(params, grads, value=loss, value_fn=value_fn)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return (metrics, aux) if has_aux else metrics

    def step(self, params: State, grads: State, **extra: Any) -> State:
        """Applies one update from gradients that are at hand, and returns the new params, which it has written.

        Args:
          params: Path -> array, the current values; what `grad` gives.
          grads: The same paths.
          **extra: What the optimizer may ask for beside these. `value` (the loss) and `value_fn` (params -> loss) serve
            line searches and the like, and are handed on under every name that Optax has for them.
        """
        before = dict(params)
        gradients = dict(grads)
        names = before.keys()
        state = _to_params(self.get("state", lambda: _to_states(self.opt.init(before), names), kind=OptState))
        given = {"grad": gradients, **extra}
        if "value_fn" in extra:
            value_fn = extra["value_fn"]
            given |= {"obj_fn": value_fn, "grad_fn": lambda params, _: jax.grad(value_fn)(params)}
        updates, state = self.opt.update(gradients, state, before, **_accepted(self.opt.update, given))
        self.put("state", _to_states(state, names), kind=OptState)
        new = optax.apply_updates(before, updates)
        self.put(new)
        return State(new, params.declared)

    def load(self, state: Any) -> None:
        """Writes an optimizer state that comes from elsewhere, such as `plan.optimizer` gives, in place of this one's.

        Args:
          state: What the optimizer's `init` gives for the params, which may be a `State` or a dictionary of paths in it.

        Raises:
          EntryShapeError: This optimizer's state has another structure.
          CreateError: It has none yet and none may be created here.
        """
        entries = context().entries

        def over_paths(node: Any) -> bool:
            return type(node) is dict and bool(node) and all(path in entries for path in node)

        found = jax.tree.map(lambda node: State(node) if over_paths(node) else node, state, is_leaf=over_paths)
        self.put("state", found, kind=OptState)

    def _select(self, targets: Any) -> Callable[[Any], State]:
        def select(ctx: Any) -> State:
            # From a plain dictionary the moments come without a kind, and would be taken for weights.
            for name in ctx.under(f"{self.path}/state"):
                ctx.declare(f"{self.path}/state/{name}", OptState)
            params = trainable(ctx, targets)
            if not params:
                raise MissingEntryError(
                    f"{self!r} was given nothing to update: the targets hold no floating entries of kind Param. Name"
                    " modules or paths whose params exist."
                )
            return params

        return select


def _accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Returns the extra arguments that an update function takes: most take any, SAM only those it names."""
    parameters = inspect.signature(update).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return extra
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in extra.items() if name in names}


def _with_aux(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    return loss_fn if has_aux else lambda *args, **kwargs: (loss_fn(*args, **kwargs), None)


def _to_states(tree: Any, names: Any) -> Any:
    """Returns an optimizer state in which every dictionary of the params' paths is a `State`, so that entries below it
    keep those paths."""

    def like_params(node: Any) -> bool:
        return type(node) is dict and node.keys() == names

    return jax.tree.map(lambda node: State(node) if like_params(node) else node, tree, is_leaf=like_params)


def _to_params(tree: Any) -> Any:
    def is_state(node: Any) -> bool:
        return isinstance(node, State)

    return jax.tree.map(lambda node: dict(node) if is_state(node) else node, tree, is_leaf=is_state)


def FromOptax(make: Any) -> type[OptaxModule]:
    """Returns a module class that makes optimizers: `Adam = FromOptax(optax.adam)`, then `Adam(1e-3, name='opt')`.

    Args:
      make: A function that makes an optimizer, or an optimizer.
    """

    class FromOptaxModule(OptaxModule):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(make, *args, **kwargs)

    FromOptaxModule.__name__ = FromOptaxModule.__qualname__ = f"FromOptax({getattr(make, '__name__', 'opt')})"
    return FromOptaxModule
