"""Makes the tables of docs/layers.md: each module of Haiku, Linen and NNX, from the conventions and from the frameworks."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
from flax import nnx

from bridges import haiku_adapter
from bridges.mapping._verdicts import escaped
from bridges.param_mapping import Verdict, verdicts

# From the best to the worst.
SHORT = {
    "exact": "exact",
    "exact to rounding": "exact to rounding",
    "exact for evaluation only": "evaluation only",
    "refused": "refused",
}
FRAMEWORKS = {"haiku": "Haiku", "linen": "Linen", "nnx": "NNX"}
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
SAME = {f"nets.ResNet{n}": "nets.ResNet" for n in (18, 34, 50, 101, 152, 200)}
WRAPPERS = {
    "haiku": ("Sequential", "DeepRNN", "ResetCore"),
    "linen": ("Sequential", "RNN", "Bidirectional"),
    "nnx": ("Sequential", "RNN", "Bidirectional", "List", "Dict"),
}
BASES = {"haiku": ("Module", "RNNCore"), "linen": ("Module", "RNNCellBase"), "nnx": ("Module", "RNNCellBase")}
PLAIN = ("Dropout",)  # no variables in Linen, in NNX a random stream, which a plan leaves to its model
FUNCTIONS = {"AvgPool": "`avg_pool` with `count_include_pad=False`", "MaxPool": "`max_pool`"}
GIVEN, NOTHING, BASE = "the layers that it is given", "no variables", "a base class"


def modules(framework: str = "haiku") -> list[str]:
    """Returns the public names of a framework's modules, without the framework's, sorted."""
    spaces, base = {
        "haiku": ({"": hk, "nets.": hk.nets, "experimental.": hk.experimental}, hk.Module),
        "linen": ({"": nn}, nn.Module),
        "nnx": ({"": nnx}, nnx.Module),
    }[framework]
    return sorted(
        prefix + name
        for prefix, space in spaces.items()
        for name, found in vars(space).items()
        if inspect.isclass(found) and issubclass(found, base) and not name.startswith("_")
    )


def namespaces() -> set[str]:
    """Returns Haiku's public modules of Python that hold a module of Haiku."""
    found, left = set(), [hk]
    while left:
        space = left.pop()
        for name, value in vars(space).items():
            if (
                isinstance(value, types.ModuleType)
                and value.__name__.startswith("haiku.")
                and "_src" not in value.__name__
            ):
                left += [value] if name[0] != "_" and value.__name__ not in found else []
                found.add(value.__name__)
    return found


def _class(name: str) -> str:
    return name.rpartition(".")[2]


@functools.cache
def parts(name: str) -> tuple[str, ...]:
    """Returns which of Haiku's layers a module is made of, as its specification says."""
    spec = haiku_adapter.spec(lambda: MADE_OF[name]())
    own = {_class(other) for other in {*modules()} - {*MADE_OF, *WRAPPERS["haiku"], *SAME}} - {
        "ExponentialMovingAverage"
    }  # BatchNorm's
    return tuple(sorted({layer.type.removeprefix("haiku.") for layer in spec.layers.values()} & own))


def rows_of(name: str, src: str, dst: str) -> list[Verdict]:
    """Returns what the conventions say of a module of one framework in another."""
    return [v for v in verdicts() if (v.src, v.dst) == (src, dst) and f"{src}.{_class(name)}" in v.types[0]]


def _cells(rows: Sequence[Verdict]) -> list[str]:
    there = sorted({found.split(".", 1)[1] for row in rows for found in row.types[1]})
    several = len({row.verdict for row in rows}) > 1
    said = dict.fromkeys(SHORT[row.verdict] + (f" ({_when(row)})" if several and row.when else "") for row in rows)
    return [", ".join(f"`{name}`" for name in there) or "none", "; ".join(said)]


def _when(row: Verdict) -> str:
    return row.when.replace("!>", "≤ ").replace(">", "> ").replace(" =", " = ").replace("=  ", "= ").replace("!=", "≠ ")


def cells(name: str, src: str, dst: str) -> list[str]:
    """Returns what stands for a module of one framework in another, and the verdict.

    A module that is made of others has the worst of their verdicts.
    """
    if rows := rows_of(name, src, dst):
        return _cells(rows)
    if name in BASES[src]:
        return [BASE, NOTHING]
    same = f"`{name}`: " if name in modules(dst) else ""
    if name in WRAPPERS[src]:
        return [same + GIVEN, "theirs"]
    if name in PLAIN:
        return [f"`{name}`", NOTHING]
    if not (inside := parts(SAME.get(name, name))):
        return [FUNCTIONS.get(name, "a function"), NOTHING]
    worst = max((v.verdict for part in inside for v in rows_of(part, src, dst) if not v.when), key=list(SHORT).index)
    return [f"made of {', '.join(f'`{part}`' for part in inside)}", SHORT[worst]]


def tables() -> str:
    """Returns the tables of Haiku's modules, of Linen's and of those that only NNX has, and the reasons."""
    lines = ["| Haiku | Linen | verdict | NNX | verdict |", "|---|---|---|---|---|"]
    for name in modules():
        lines.append(_line(name, [*cells(name, "haiku", "linen"), *cells(name, "haiku", "nnx")]))

    lines += ["", "## Linen's modules in NNX", "", "| Linen | NNX | Linen to NNX | NNX to Linen |", "|---|---|---|---|"]
    known = {t.removeprefix("nnx.") for v in verdicts() if v.src == "nnx" for t in v.types[0]}
    for name in modules("linen"):
        there, verdict = cells(name, "linen", "nnx")
        back = [v for v in verdicts() if (v.src, v.dst) == ("nnx", "linen") and f"linen.{name}" in v.types[1]]
        lines.append(_line(name, [there, verdict, _cells(back)[1] if back else verdict]))

    lines += ["", "## What only NNX has", "", "| NNX | Linen | verdict |", "|---|---|---|"]
    shown = {
        t.removeprefix("nnx.")
        for v in verdicts()
        if (v.src, v.dst) == ("linen", "nnx") and v.types[0]
        for t in v.types[1]
    }
    for name in modules("nnx"):
        if name not in shown and (name in known or name not in modules("linen")):
            lines.append(_line(name, cells(name, "nnx", "linen")))

    lines += ["", "## Why", "", "| layer | to | verdict | why |", "|---|---|---|---|"]
    lines += sorted(_reasons(), key=str.lower)
    return "\n".join(lines) + "\n"


def _line(name: str, found: Sequence[str]) -> str:
    return f"| `{name}` | " + " | ".join(found) + " |"


def _reasons() -> list[str]:
    """Returns a line for each reason of a verdict worse than rounding: whose layer it is, where it goes, what is lost."""
    found: dict[tuple[str, tuple[str, ...], str, str, str], list[str]] = {}
    for v in verdicts():
        if v.types[0] and list(SHORT).index(v.verdict) > 1:
            found.setdefault((v.src, v.types[0], _when(v), v.verdict, v.reason), []).append(FRAMEWORKS[v.dst])
    lines = []
    for (src, names, when, verdict, reason), to in found.items():
        public = [name for t in names if (name := t.split(".", 1)[1]) in map(_class, modules(src))]
        layers = ", ".join(f"`{name}`" for name in public) + (f" ({when})" if when else "")
        lines.append(
            f"| {FRAMEWORKS[src]}: {layers} | {', '.join(to)} | {SHORT[verdict]} | {escaped(reason).rstrip('.')} |"
        )
    return lines
