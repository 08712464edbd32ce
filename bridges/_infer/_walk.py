"""Walk: a side gone through step by step, each value as numbers, as a form of leaves and data, or both.

A step that moves elements moves the parts of their forms; sums, products and contractions make forms of forms; everything
else needs numbers. The result is handed to `met` if leaves meet data in it.

Invariant: after a step its outputs have values, or None where an input has none; a step that needs numbers which are not
known raises `Stuck`, and leaves no value behind.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from bridges._infer._contracted import convolved, dotted, looked_up, reduced
from bridges._infer._form import Form, Mono, Refs, joined
from bridges._infer._graph import Step
from bridges._infer._keys import fresh, mix, of_number, total
from bridges._infer._layout import moved_inputs, moves
from bridges._infer._numbers import ELEMENTWISE, host, numbers
from bridges._infer._side import Side
from bridges._infer._sums import Made, multiplied, summed
from bridges._infer._value import Stuck, Value, form_of, keys_of

_ADD = {"add": 1.0, "add_any": 1.0, "sub": -1.0}


class Walk(Side):
    """A side that is gone through."""

    def roots(self) -> None:
        """Sets the variables, inputs and constants."""
        graph = self.graph
        for v, x in graph.roots.items():
            self.values[v] = Value(np.shape(x), False, host(x))
        for path, v in graph.variables.items():
            refs = self.leaves.refs(path)
            if graph.kind(v) == "c":  # it has no form: factors and offsets of leaves are real
                self.values[v] = None
                continue
            self.values[v] = Value(refs.shape, False, None, None, Form(monos=(Mono((Refs.of(refs),)),)))
        for i, v in enumerate(graph.inputs.values()):
            num = host(graph.roots[v])
            self.values[v] = self.rooted(num, i)

    def rooted(self, num: Any, i: int) -> Value:
        """Returns the i-th input."""
        gid = fresh((i + 1) << 50, np.shape(num))
        if isinstance(num, np.ndarray) and num.dtype.kind == "f":
            gid = np.where(num == 0, mix(gid, 9), gid)
        return Value(np.shape(num), True, num, gid)

    def step(self, i: int) -> None:
        """Goes through the i-th step."""
        step = self.graph.steps[i]
        ins = [self.values[v] for v in step.ins]
        if any(x is None for x in ins):
            self.values.update(dict.fromkeys(step.outs))
            return
        known = [x for x in ins if x is not None]
        if not step.outs:  # for what it does, not for what it gives: a print
            return
        nums = [self._typed(v, x) for v, x in zip(step.ins, known, strict=True)]
        data = any(x.data for x in known)
        full = all(n is not None for n in nums)
        made: list[Made] | None = None
        placed: list[Value] = []
        moved = self._moved(step, known, nums) if moved_inputs(step) is not None else None
        if moved is not None:
            index, inputs = moved
            if any(known[j].form is not None for j in inputs):
                made = [self._join(i, step, known, inputs, at) for at in index]
                if all(known[j].num is not None and (known[j].data or known[j].form is None) for j in inputs):
                    placed = self._plain_moves(i, step, known, index, inputs)
            elif data:
                self.values.update(zip(step.outs, self._plain_moves(i, step, known, index, inputs), strict=True))
                return
        elif any(x.form is not None for x in known):
            one = self._formed(i, step, known, tuple(self.graph.shape(step.outs[0])))
            made = None if one is None else [one]
        if made is None and not full:
            if data:
                raise Stuck(i, [v for v, n in zip(step.ins, nums, strict=True) if n is None])
            made = self._pseudos(i, step)
        elif made is None and not data and any(x.form is not None for x in known):
            made = self._pseudos(i, step)
        if made == []:
            self.values.update(dict.fromkeys(step.outs))
            return
        found = numbers(step, nums) if full else [None] * len(step.outs)
        for o, v in enumerate(step.outs):
            form, variants = made[o] if made is not None else (None, [])
            if placed and form is not None and form.small:
                value = dataclasses.replace(placed[o], form=form.masked())
                variants = [f.masked() for f in variants]
                self.values[v] = self.met(value, variants, (i, o))
            elif placed:
                self.values[v] = placed[o]
            else:
                self.values[v] = self._finish(i, o, step, known, data, found[o], form, variants)

    def _typed(self, v: int, value: Value) -> Any:
        """Returns the numbers of an input; those of leaves, which are real here, as integers where they are in the model."""
        num = self.number(value)
        leaves = value.form is not None and isinstance(num, np.ndarray) and num.dtype.kind == "f"
        return self.graph.narrowed(v, num) if leaves and self.graph.kind(v) in "iub" else num

    def _pseudos(self, i: int, step: Step) -> list[Made]:
        """Returns forms of leaves that stand for what a step makes of leaves alone; none if that is complex."""
        if any(self.graph.kind(v) == "c" for v in step.outs):
            return []
        return [(self.pseudo(i, o), []) for o in range(len(step.outs))]

    def _formed(self, i: int, step: Step, ins: list[Value], shape: tuple[int, ...]) -> Made | None:
        """Returns the form of what an operation makes of leaves; None if it has none."""
        form: Form | None = None
        if any(x.num is not None and x.num.dtype.kind == "c" and not x.data for x in ins):
            return None  # factors and offsets of leaves are real
        if step.name in _ADD:
            return summed(self, ins, shape, _ADD[step.name])
        if step.name in ("mul", "div"):
            return multiplied(self, i, ins, shape, step.name == "div")
        if step.name == "neg":
            form = form_of(ins[0]).times(-1.0)
        elif step.name == "dot_general":
            form = dotted(self, i, step, ins, shape)
        elif step.name == "conv_general_dilated":
            form = convolved(self, i, step, ins, shape)
        elif step.name == "reduce_sum" and ins[0].data:
            form = reduced(self, i, step, ins[0], shape)
        return None if form is None else (form, [])

    def _finish(
        self,
        i: int,
        o: int,
        step: Step,
        ins: list[Value],
        data: bool,
        num: Any,
        form: Form | None,
        variants: list[Form],
    ) -> Value:
        shape = tuple(self.graph.shape(step.outs[o]))
        if form is None:
            if not data:
                return Value(shape, False, num)
            num, gid, private = self.register(num, self._hint(step, ins, num), (i, o))
            return Value(shape, True, num, gid, None, private)
        if not data and not form.dots:
            refs = form.param()
            return Value(shape, False, None, None, form if refs is None else Form(monos=(Mono((refs,)),)))
        form, variants = form.masked(), [f.masked() for f in variants]
        if not form.dots and not form.monos:  # nothing of the leaves is left: zero data
            num = np.zeros(shape) if form.const is None else np.broadcast_to(form.const, shape)
            if not form.atoms:
                return Value(shape, True, num, of_number(num))
        if num is not None and not form.small:
            form = None
        value = Value(shape, True, num, None, form)
        if num is not None:
            num, gid, private = self.register(num, self._hint(step, ins, num), (i, o))
            value = Value(shape, True, num, gid, form, private)
        return self.met(value, variants or ([form] if form is not None else []), (i, o))

    def _hint(self, step: Step, ins: list[Value], num: Any) -> np.ndarray | None:
        """The keys of what elements were made of, where that is one element each or a sum over axes."""
        given = [x for x in ins if x.data]
        if any(x.gid is None for x in given) or not given:
            return None
        keys = [mix(x.gid, 13) for x in given]
        if step.name in ELEMENTWISE:
            with np.errstate(over="ignore"):
                out = keys[0]
                for other in keys[1:]:
                    out = out + other
            return np.broadcast_to(out, np.shape(num))
        if step.name.startswith("reduce_") and "axes" in step.params and len(keys) == 1:
            return np.asarray(total(keys[0], tuple(step.params["axes"])))
        return None

    # Moving elements -------------------------------------------------------------------------------------------------

    def _moved(self, step: Step, ins: list[Value], nums: list[Any]) -> tuple[list[np.ndarray], list[int]] | None:
        inputs = moved_inputs(step) or []
        if all(ins[j].form is None and not ins[j].data for j in inputs):
            return None
        if any(nums[j] is not None and not isinstance(nums[j], np.ndarray) for j in inputs):  # random keys
            return None
        if any(nums[j] is None for j in range(len(ins)) if j not in inputs):
            raise Stuck(self.graph.maker[step.outs[0]], [v for v, n in zip(step.ins, nums, strict=True) if n is None])
        if step.name == "convert_element_type":
            wanted, given = step.params["new_dtype"], nums[0]
            real = jax.dtypes.issubdtype(wanted, np.inexact if not ins[0].data else np.floating)
            if not real or (given is not None and given.dtype.kind != "f"):
                return None
        shapes = [x.shape for x in ins]
        return moves(step, shapes, [None if j in inputs else nums[j] for j in range(len(ins))]), inputs

    def _plain_moves(
        self, i: int, step: Step, ins: list[Value], index: list[np.ndarray], inputs: list[int]
    ) -> list[Value]:
        given, made = [ins[j] for j in inputs], []
        kinds = {x.num.dtype.kind for x in given if x.num is not None}
        alone = len(given) == 1
        every = [np.ravel(np.asarray(x.num)) for x in given]
        keys = [np.ravel(keys_of(x)) for x in given]
        num = every[0] if alone else np.concatenate(every)
        gid = keys[0] if alone else np.concatenate(keys)
        for o, at in enumerate(index):
            inside = np.where(at < 0, 0, at)
            moved, key = num[inside], gid[inside]
            if np.any(at < 0):
                moved, key = np.where(at < 0, 0, moved), np.where(at < 0, np.uint64(0), key)
            moved = moved.astype(np.float64) if "f" in kinds else moved
            value = Value(at.shape, True, moved, key, None, any(x.private for x in given))
            same = alone and at.size == num.size and step.name not in ("gather", "dynamic_slice")
            made.append(value if same else self.moved(value, (i, o)))
        return made

    def _join(self, i: int, step: Step, ins: list[Value], inputs: list[int], at: np.ndarray) -> Made:
        chosen = any(x.data for j, x in enumerate(ins) if j not in inputs)
        params = [ins[j] for j in inputs]
        if chosen and step.name in ("gather", "dynamic_slice") and not params[0].data:
            refs = self.param(params[0], i)
            if refs is not None:
                return looked_up(self, i, step, refs, at), []
        forms = [form_of(x) for x in params]
        form = joined(forms, [x.shape for x in params], at)
        variants = [form]
        if any(x.num is not None and x.form is not None and x.data for x in params):
            plain = [form_of(x if x.num is None or not x.data else dataclasses.replace(x, form=None)) for x in params]
            other = joined(plain, [x.shape for x in params], at)
            if other.monos or other.dots:
                variants.append(other)
        return form, variants
