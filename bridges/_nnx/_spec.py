"""What an NNX model is made of, with nothing allocated: abstract Variables and the modules that own them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from bridges._nnx._leaves import holds_data, is_array, native_path
from bridges._nnx._maker import Maker
from bridges._nnx._stacks import shapes_of, stacks_of
from bridges._nnx._template import Template
from bridges._nnx._variables import flatten
from bridges.core._kind import RngState, Variable, kind_type
from bridges.core._spec import Layer, Spec, plain
from bridges.core._uses import Use, uses


def layer_of(module: Any) -> Layer:
    """Returns the layer of a module: its class, and its public attributes but those that hold Variables, as plain values.

    A plain array, such as a mask, is given by its shape and dtype.
    """
    fields = {
        name: plain(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and (is_array(value) or not holds_data(value))
    }
    return Layer.of(type(module), (nnx.Module, nnx.Pytree), "nnx", fields)


def layers_of(model: Any) -> dict[str, Layer]:
    """Returns the layers of a model by module path; one that is shared is listed once."""
    found = {
        native_path(keys): layer_of(node)
        for keys, node in nnx.iter_graph(model, graph=True)
        if isinstance(node, nnx.Pytree) and not isinstance(node, (nnx.Rngs, nnx.RngStream))
    }
    return dict(sorted(found.items()))


def constructor(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Maker:
    """Returns the maker of a model reference; arguments without any array in them are those of its constructor.

    The other adapters' verbs take a model's inputs. An NNX model is made without, so that inputs decide nothing; they are
    let pass, and one call serves models of every framework.
    """
    inputs = isinstance(model, nnx.Pytree) or _inputs(args, kwargs)
    return Maker(model, () if inputs else args, {} if inputs else kwargs)


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(map(is_array, jax.tree.leaves((args, kwargs))))


def spec(model: Any, *args: Any, **kwargs: Any) -> Spec:
    """Returns the spec of an NNX model.

    Args:
      model: A module instance; or a class, a function that returns a module, or a `functools.partial` of one, which is
        run in abstract. A parameter `rngs` that is left open is given one stream.
      *args, **kwargs: Arguments of the class or function; or the model's inputs, if there are arrays (or
        `jax.ShapeDtypeStruct`) among them: an NNX model is made without these, but its `uses` are known with them only.

    Returns:
      A `Spec` with `layers` by module path (`''` is the model itself), with the public attributes of each module as
      hyperparameters, `stacks` by module path where `nnx.vmap` made several copies of Flax's layers, and `native` the
      abstract `nnx.State`.

    Raises:
      FieldError: `model` gives no NNX module.

    >>> s = spec(nnx.Linear, 3, 4)
    >>> s.entries['params/kernel'], s.layers[''].type, s.layers[''].hyperparameters['out_features']
    (ShapeDtypeStruct(shape=(3, 4), dtype=float32), 'nnx.Linear', 4)
    """
    layers: dict[str, Layer] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    maker = constructor(model, args, kwargs)

    def make() -> Any:
        module, _ = maker.watched()
        layers.update(layers_of(module))
        shapes.update(shapes_of(module))
        return module

    template = Template.traced(make)
    native = template.native()
    entries = flatten(native)
    fixed = {
        path: x for path, x in entries.items() if not issubclass(kind_type(entries.kind(path) or Variable), RngState)
    }
    why: list[str] = []
    given = _inputs(args, kwargs)
    used = _uses(template.flagged((("train", False),)), args, kwargs, why.append) if given else {}
    return Spec(entries, "nnx", layers, native, stacks_of(fixed, shapes, layers), uses=used, unrun="".join(why))


def _uses(
    template: Template, args: tuple[Any, ...], kwargs: dict[str, Any], failed: Callable[[str], Any]
) -> dict[str, Use]:
    """Returns the uses of the entries of a module that is called with these inputs, in evaluation mode."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}

    def run(entries: dict[str, Any], arrays: dict[int, Any]) -> Any:
        given, named = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return template.build(entries)[0](*given, **named)

    return uses(run, template.entries, arrays, failed)
