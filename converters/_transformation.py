"""Transformation: an optax transformation as the command line names it.

    transformation('adam')                # an optimizer of optax that takes a learning rate alone
    transformation('train.py:optimizer')  # a transformation of your own, or a function that makes one

Only the structure of its state matters, and that one training step can be made with it: the learning rate is 1e-3.
"""

from __future__ import annotations

import inspect
from typing import Any

from bridges.core._errors import UnsupportedError, hint
from converters._models import referred


def transformation(name: str) -> Any:
    """Returns the optax transformation of that name.

    Raises:
      ModelError: A reference leads nowhere.
      UnsupportedError: optax is not installed, or what was named is no transformation.
    """
    try:
        import optax
    except ImportError as err:
        raise UnsupportedError("--optimizer needs the package optax: pip install 'jax-bridges[optax]'.") from err
    kinds = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    if ":" in name:
        tx = referred(name)
        tx = tx() if inspect.isfunction(tx) else tx
        if not isinstance(tx, kinds):
            raise UnsupportedError(f"{name} is a {type(tx).__name__} and no optax transformation.")
        return tx
    made = getattr(optax, name, None)
    try:
        tx = made(1e-3) if callable(made) else None
    except TypeError:
        tx = None
    if not isinstance(tx, kinds):
        raise UnsupportedError(
            f"optax.{name} is no optimizer that takes a learning rate alone.{hint(name, dir(optax))} Any other is named by"
            " the file that makes it: --optimizer train.py:optimizer."
        )
    return tx
