"""Makes the tables of docs/layers.md: each module that Haiku has, from the conventions and from Haiku itself."""

from __future__ import annotations

import functools
import inspect

import haiku as hk
import jax.numpy as jnp

from bridges import haiku_adapter
from bridges.param_mapping import Verdict, verdicts

SHORT = {
    "exact": "exact",
    "exact to rounding": "exact to rounding",
    "exact for evaluation only": "evaluation only",
    "refused": "refused",
}
IMAGE, SEQUENCE = jnp.ones((1, 32, 32, 3)), jnp.ones((2, 4))


# How a module that is no layer of its own is called, to see what it is made of.
MADE_OF = {
    "SeparableDepthwiseConv2D": lambda: hk.SeparableDepthwiseConv2D(2, 3, 4)(IMAGE),
    "AvgPool": lambda: hk.AvgPool((2, 2, 1), (2, 2, 1), "VALID")(IMAGE),
    "MaxPool": lambda: hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID")(IMAGE),
    "IdentityCore": lambda: hk.IdentityCore()(SEQUENCE, ()),
    "Flatten": lambda: hk.Flatten()(IMAGE),
    "Reshape": lambda: hk.Reshape((2, 2))(SEQUENCE),
    "nets.MLP": lambda: hk.nets.MLP([3, 2])(SEQUENCE),
    "nets.MobileNetV1": lambda: hk.nets.MobileNetV1(num_classes=10)(IMAGE, True),
    "nets.ResNet": lambda: hk.nets.ResNet18(10)(IMAGE, True),
}
WRAPPERS = ("Sequential", "DeepRNN", "ResetCore")
ABSTRACT = ("Module", "RNNCore")  # bases, which have no variables
SAME = {f"nets.ResNet{n}": "nets.ResNet" for n in (18, 34, 50, 101, 152, 200)}


def modules() -> list[str]:
    """Returns the public names of Haiku's modules, without `haiku.`, sorted."""
    spaces = {"": hk, "nets.": hk.nets, "experimental.": hk.experimental}
    return sorted(
        prefix + name
        for prefix, space in spaces.items()
        for name, found in vars(space).items()
        if inspect.isclass(found) and issubclass(found, hk.Module) and not name.startswith("_")
    )


def _class(name: str) -> str:
    return name.rpartition(".")[2]


@functools.cache
def made_of(name: str) -> str:
    """Returns which layers a module is made of, as its specification says."""
    if name in WRAPPERS:
        return "the layers that it is given"
    spec = haiku_adapter.spec(lambda: MADE_OF[name]())
    own = {_class(other) for other in {*modules()} - {*MADE_OF, *WRAPPERS, *SAME}} - {
        "ExponentialMovingAverage"
    }  # BatchNorm's
    layers = sorted({layer.type.removeprefix("haiku.") for layer in spec.layers.values()} & own)
    return f"made of {', '.join(f'`{layer}`' for layer in layers)}" if layers else "no variables"


def _cells(rows: list[Verdict]) -> tuple[str, str]:
    there = sorted({found.split(".", 1)[1] for row in rows for found in row.types[1]})
    said = dict.fromkeys(
        SHORT[row.verdict] + (f" ({_when(row)})" if _several(rows) and row.when else "") for row in rows
    )
    return ", ".join(f"`{name}`" for name in there) or "none", "; ".join(said)


def _when(row: Verdict) -> str:
    return row.when.replace("!>", "≤ ").replace(">", "> ").replace(" =", " = ").replace("=  ", "= ")


def _several(rows: list[Verdict]) -> bool:
    return len({row.verdict for row in rows}) > 1


def tables() -> str:
    """Returns the table of Haiku's modules, that of Linen's layers in NNX, and the reasons."""
    found = verdicts()
    lines = ["| Haiku | Linen | verdict | NNX | verdict |", "|---|---|---|---|---|"]
    for name in modules():
        rows = {
            dst: [v for v in found if (v.src, v.dst) == ("haiku", dst) and f"haiku.{_class(name)}" in v.types[0]]
            for dst in ("linen", "nnx")
        }
        if any(rows.values()):
            lines.append(
                f"| `{name}` | " + " | ".join(" | ".join(_cells(rows[dst])) for dst in ("linen", "nnx")) + " |"
            )
        elif name not in ABSTRACT:
            lines.append(f"| `{name}` | {made_of(SAME.get(name, name))} | | | |")
    lines += ["", "## Linen's layers in NNX", "", "| Linen | NNX | Linen to NNX | NNX to Linen |", "|---|---|---|---|"]
    for name in sorted({t for v in found if v.src == "linen" for t in v.types[0]}):
        there = [v for v in found if (v.src, v.dst) == ("linen", "nnx") and name in v.types[0]]
        back = [v for v in found if (v.src, v.dst) == ("nnx", "linen") and name in v.types[1]]
        cells = _cells(there)
        lines.append(f"| `{name.split('.', 1)[1]}` | {cells[0]} | {cells[1]} | {_cells(back)[1] if back else ''} |")
    lines += ["", "## Why", ""]
    reasons: dict[str, list[str]] = {}
    for v in found:
        if v.reason and v.verdict != "exact to rounding":
            reasons.setdefault(v.reason, []).append(v.layer)
    lines += [
        f"- {', '.join(dict.fromkeys(layers))}: {reason.rstrip('.')}." for reason, layers in sorted(reasons.items())
    ]
    return "\n".join(lines) + "\n"
