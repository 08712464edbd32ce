"""What examples/digits.py shows of its results: measured numbers against what they may be, and the picture."""

import dataclasses

import jax
import numpy as np
from matplotlib.figure import Figure

NUDGED, FORGOTTEN = "Haiku, weights nudged", "Linen, new optimizer"


@dataclasses.dataclass(frozen=True)
class Check:
    """A claim, the number that was measured for it, and how large the number may be."""

    claim: str
    measured: float
    allowed: float

    @property
    def holds(self):
        return bool(self.measured <= self.allowed)  # never for NaN

    def __str__(self):
        mark, allowed = "ok " if self.holds else "NOT", number(self.allowed)
        return f"  {mark} {self.claim:62} {number(self.measured):>8}  (allowed {allowed})"


def number(x):
    return f"{x:.1e}" if x else "0"


def difference(found, wanted):
    """Returns the largest difference of two trees, in each array relative to its largest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return float(np.max([np.max(np.abs(a - b)) / (np.max(np.abs(b)) or 1) for a, b in pairs]))


def draw(first, losses, path):
    """Draws the loss before and after the switch, the same from near by, and the runs' distances from the one in Haiku."""
    styles = {
        "Haiku": {"color": "#b8c0ca", "lw": 5, "label": "Haiku, never switched"},
        FORGOTTEN: {"color": "#edae49", "lw": 1.5, "label": "Linen, optimizer begun anew"},
        NUDGED: {"color": "#8d96a3", "lw": 1.2, "label": "Haiku, each weight moved to the next float32"},
        "Linen": {"color": "#d1495b", "lw": 1.8, "label": "Linen, from the converted checkpoint"},
        "core": {"color": "#00667c", "lw": 1.8, "ls": (0, (2, 2)), "label": "core, from the checkpoint as it is"},
    }
    panels = {"Haiku": ("all", "near"), FORGOTTEN: ("near", "off"), NUDGED: ("off",)}
    switch, steps = len(first), np.arange(len(first) - 1, len(first) + len(losses["Haiku"]))
    figure = Figure(figsize=(11, 8.5), layout="constrained")  # without pyplot: no window, whatever the machine
    axes = figure.subplot_mosaic([["all", "all"], ["near", "off"]])
    for title, style in styles.items():
        off = np.maximum(np.abs(losses[title] - losses["Haiku"]), 1e-9)
        for panel in panels.get(title, axes):
            axes[panel].semilogy(steps, [np.nan, *off] if panel == "off" else [first[-1], *losses[title]], **style)
    for panel in ("all", "near"):
        axes[panel].semilogy(first, color="#30343f", lw=1.5, label="Haiku, before the switch")
    near = np.concatenate([first[-12:], losses["Haiku"][:12], losses[FORGOTTEN][:12]])
    axes["all"].set(title="A training run that leaves Haiku in the middle", ylabel="training loss (one batch)")
    axes["near"].set(
        title="Around the switch", xlim=(switch - 12, switch + 11), ylim=(near.min() / 1.2, near.max() * 1.2)
    )
    axes["off"].set(title="Distance from the run that never switched", ylabel="difference of the losses (0: at 1e-9)")
    for axis in axes.values():
        axis.axvline(switch - 0.5, color="#30343f", ls=":", lw=1.2)
        axis.set(xlabel="training step")
        axis.spines[["top", "right"]].set_visible(False)
    axes["all"].annotate("the switch ", (switch - 0.5, max(first)), ha="right", va="top")
    axes["all"].legend(frameon=False, loc="upper right")
    axes["off"].legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.55))
    figure.savefig(path, dpi=150)
