"""infer_mapping: the mapping between two models, found from what they compute, proved, and written for a person.

Both models are traced, and taken apart to the places where variables meet data. A place of the target is one of the source
when what comes in is known to be equal, as numbers and up to layout, and what goes out can be made equal; names and shapes
only order the candidates. What is found goes into the mapping language, in its most readable form, and is verified.

What it does not do: guess. A leaf that could not be placed is listed with the reason, and the mapping is then partial.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from bridges._infer._end import End, is_random, taken
from bridges._infer._found import Evidence, Found, Network, Parting, Progress
from bridges._infer._function import Function as Function
from bridges._infer._inferred import DifferentModelsError as DifferentModelsError
from bridges._infer._inferred import InferredMapping as InferredMapping
from bridges._infer._inferred import Verified as Verified
from bridges._infer._inferred import str_parting
from bridges._infer._planned import planned
from bridges._infer._proof import agree, verified
from bridges._infer._rules import Written, written
from bridges._infer._solve import SAME, compared, solve
from bridges.core._uses import uses
from bridges.mapping._plan import Plan

__all__ = ["DifferentModelsError", "Function", "InferredMapping", "Verified", "infer_mapping"]


def infer_mapping(
    src: Any, dst: Any, /, *inputs: Any, seed: int = 0, progress: Progress | None = None, **kwargs: Any
) -> InferredMapping:
    """Returns the mapping between two implementations of one network.

    Args:
      src: The source: a Haiku function, `hk.Module` class or what Haiku's transforms give; a Linen module; an NNX module or
        a function that makes one; a `bridges.Module`; or a `bridges.Function(apply, params)`, also as the pair
        `(apply, params)`, for hand-written JAX and Equinox.
      dst: The target, any of these.
      *inputs: The inputs of both. Arrays may be nested and may be `jax.ShapeDtypeStruct`; values are drawn for these, and
        for arrays that are all the same, and in place of NaN and infinities. Integers are used as they are. Whether a model
        trains is set by itself.
      seed: For random variables and inputs.
      progress: Called with the steps done, their number, and where the search is.
      **kwargs: Inputs by keyword; a model that does not take one is called without it.

    Returns:
      An `InferredMapping`: a `Mapping` that is `complete`, or a partial one, which lists what is `unplaced` and why.

    Raises:
      DifferentModelsError: The models are certainly not the same function; the text says where they part. Where that is not
        certain, the mapping is partial and its `parting` says where the search stopped.
      ModelError: A model cannot be called with these inputs.

    >>> import numpy as np
    >>> from bridges.infer import Function
    >>> old = Function(lambda p, x: x @ p['w'].T, {'w': np.ones((3, 2), np.float32)})
    >>> new = Function(lambda p, x: x @ p['kernel'], {'kernel': np.ones((2, 3), np.float32)})
    >>> mapping = infer_mapping(old, new, np.ones((4, 2), np.float32))
    >>> mapping.complete, mapping.to_dict()['placed']['kernel']['kind']
    (True, 'values')
    """
    began = time.perf_counter()
    arrays = taken(inputs, kwargs, seed)
    ends = End.of(src, arrays), End.of(dst, arrays)
    networks = [Network(end.run, end.weights, arrays.arrays) for end in ends]
    traced = time.perf_counter()

    def by_conventions(found: Found) -> Found:
        def same(whole: Found) -> bool:
            return compared(networks[0], networks[1], whole, seed + 1) < SAME

        return planned(found, ends[0].spec, ends[1].spec, networks[1].variables, same)

    found = solve(networks[0], networks[1], seed=seed, progress=progress, guess=by_conventions)
    solved = time.perf_counter()
    needed = [set(uses(end.needed, dict(end.spec.entries), arrays.arrays)) for end in ends]
    weak = set(ends[1].spec.entries) - needed[1]
    own = {path: x for path, x in ends[1].fixed.items() if not is_random(ends[1].spec, path)}
    made = written(found, ends[0].spec, ends[1].spec, needed[0], ends[0].fixed, weak, own, _head(ends))
    seconds = {"trace": traced - began, "solve": solved - traced, "write": time.perf_counter() - solved}
    return _proved(made, found, ends, seconds)


def _head(ends: tuple[End, End]) -> list[str]:
    src, dst = ends
    return [f"{src.model.name} -> {dst.model.name}, found by what they compute."]


def _proved(made: Written, found: Found, ends: tuple[End, End], seconds: dict[str, float]) -> InferredMapping:
    """Returns the mapping, verified if it is whole.

    Raises:
      DifferentModelsError: The models part.
    """
    parting, proof, evidence = found.parting, None, made.evidence
    if not made.unplaced and not made.unused:
        began = time.perf_counter()
        plan = made.mapping.plan(ends[0].spec, ends[1].spec)
        proof = verified(*ends, plan)
        evidence = _confirmed(evidence, proof, plan)
        seconds["verify"] = time.perf_counter() - began
        if agree(proof):
            parting = None
        elif math.isnan(proof.outputs) or (math.isnan(proof.gradients) and not proof.no_gradients):
            what = "outputs" if math.isnan(proof.outputs) else "gradients"
            text = f"every variable is placed, but there is no number among the {what}: nothing was compared"
            parting = Parting("", "", text)
        else:
            text = f"every variable is placed, but the outputs are {proof.outputs:.0e} apart and the gradients"
            text = f"{text} {proof.gradients:.0e}, in parts of the largest"
            parting = dataclasses.replace(parting, certain=True) if parting else Parting("", "", text, True)
    lines = [str_parting(parting).replace("\n", " ")] if parting else [f"Verified: {proof}."] if proof else []
    text = "".join(f"# {line}\n" for line in lines)
    mapping = InferredMapping(
        made.mapping.parts,
        text + made.retold(evidence),
        evidence,
        made.unplaced,
        made.unused,
        made.dropped,
        proof,
        parting,
        made.notes,
        seconds,
    )
    if parting is not None and parting.certain:
        raise DifferentModelsError(
            f"{ends[0].model.name} and {ends[1].model.name} are not one function.\n{str_parting(parting)}", mapping
        )
    return mapping


def _confirmed(evidence: Mapping[str, Evidence], proof: Verified, plan: Plan) -> dict[str, Evidence]:
    """Returns the evidence with what the proof says of each leaf: how far gradients are apart, or that there is none."""
    out = dict(evidence)
    for item in plan:
        errors = [proof.leaves[path] for path in item.sources if path in proof.leaves]
        for path in item.targets if errors else ():
            known = out.get(path)
            if known is None:
                continue
            if all(map(math.isnan, errors)):
                text = "" if "depend" in known.text else "the output does not depend on it"
                out[path] = dataclasses.replace(known, text="; ".join(filter(None, (known.text, text))))
            elif math.isnan(known.error):
                out[path] = dataclasses.replace(known, error=max(e for e in errors if not math.isnan(e)))
    return out
