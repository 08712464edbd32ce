"""Hyper, Agree: a hyperparameter in which two layers must agree, and where each end keeps it. Compared in `_agree`."""

from __future__ import annotations

import dataclasses
from typing import Any

from bridges.mapping._data import check_keys, frozen, thawed


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Where one end keeps a hyperparameter: its name there and its default, or the one value that it always has.

    `form` names how the framework writes it (see `bridges.mapping._agree`); of padding, `window` names the kernel's size,
    dilation and stride.
    """

    name: str = ""
    default: Any = None
    value: Any = None
    form: str = ""
    window: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Any) -> Hyper | None:
        """Returns the hyperparameter of its plain data: its name, or a table."""
        if given is None or isinstance(given, Hyper):
            return given
        given = {"name": given} if isinstance(given, str) else given
        check_keys("A hyperparameter", given, [f.name for f in dataclasses.fields(cls)])
        return cls(**{key: frozen(value) for key, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        items = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return {key: thawed(value) for key, value, default in items if value != default or value is False}


@dataclasses.dataclass(frozen=True)
class Agree:
    """A hyperparameter in which both ends must agree, and what happens if they do not.

    Attributes:
      name: What it is called in errors, whatever the framework.
      src, dst: Where each end keeps it; None: it is not compared.
      effect: What a difference does.
      remedy: What to do, where it is not to pass the source's value at the target.
      note: A difference is no error, only noted in the plan.
    """

    name: str
    src: Hyper | None = None
    dst: Hyper | None = None
    effect: str = ""
    remedy: str = ""
    note: bool = False

    @property
    def inverse(self) -> Agree:
        """The same with the ends swapped."""
        return dataclasses.replace(self, src=self.dst, dst=self.src)
