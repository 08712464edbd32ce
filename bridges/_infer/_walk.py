"""Walk: a graph gone through step by step, each value as numbers, as a form of leaves and data, or both.

The source and the target are gone through in the same way, so that a layer means the same whichever side it is on. What
differs is what becomes of a value in which leaves meet data (`met`): the source records it, the target looks it up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridges._infer._contraction import Contraction, of_conv, of_dot, of_lookup
from bridges._infer._form import Form, Mono, Refs, joined
from bridges._infer._graph import Graph, Step
from bridges._infer._keys import fresh, mix, of_number, total
from bridges._infer._layout import moved_inputs, moves
from bridges._infer._leaves import Leaves
from bridges._infer._numbers import ELEMENTWISE, host, numbers

_ADD = {"add": 1.0, "add_any": 1.0, "sub": -1.0}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value.

    Attributes:
      shape: Its shape.
      data: Whether it depends on an input.
      num: Its numbers, if they are known.
      gid: The keys of its elements, if it is data and known.
      form: What it is made of, if leaves take part in that and it is not too much.
      private: Whether its keys are of no value of the source.
    """

    shape: tuple[int, ...]
    data: bool
    num: np.ndarray | None = None
    gid: np.ndarray | None = None
    form: Form | None = None
    private: bool = False


class Stuck(Exception):
    """A step needs the numbers of a value whose leaves are not known yet."""

    def __init__(self, step: int, values: Sequence[int]):
        super().__init__(step)
        self.step, self.values = step, tuple(values)


class Walk:
    """A graph and its values so far.

    Attributes:
      graph: The graph.
      leaves: Its leaves.
      values: By number; None for what depends on something that could not be told.
      contractions: By the first of their global numbers, ascending.
    """

    def __init__(self, graph: Graph, leaves: Leaves):
        self.graph, self.leaves = graph, leaves
        self.values: dict[int, Value | None] = {}
        self.contractions: list[Contraction] = []
        self.starts: list[int] = []
        self._end = 0
        self._pseudo: dict[tuple[int, int], np.ndarray] = {}

    # What the sides do differently -----------------------------------------------------------------------------------

    def register(self, num: np.ndarray, hint: np.ndarray | None, place: tuple[int, int]) -> tuple[Any, Any, bool]:
        """Returns the numbers and keys of a value that depends on data, and whether the keys are private."""
        raise NotImplementedError

    def moved(self, value: Value, place: tuple[int, int]) -> Value:
        """Returns a value whose elements were moved, with the keys that it should have."""
        raise NotImplementedError

    def met(self, value: Value, forms: Sequence[Form], place: tuple[int, int]) -> Value:
        """Returns a value in which leaves and data meet, after it was recorded or looked up."""
        raise NotImplementedError

    # -----------------------------------------------------------------------------------------------------------------

    def roots(self) -> None:
        """Sets the variables, inputs and constants."""
        graph = self.graph
        for v, x in graph.roots.items():
            self.values[v] = Value(np.shape(x), False, host(x))
        for path, v in graph.variables.items():
            refs = self.leaves.refs(path)
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

    def number(self, value: Value) -> Any:
        """Returns the numbers of a value, or None if they are not known."""
        if value.num is not None or value.form is None:
            return value.num
        form = value.form
        if form.dots or form.atoms:
            return None
        out: Any = 0.0 if form.const is None else form.const
        for mono in form.monos:
            product: Any = 1.0 if mono.num is None else mono.num
            for refs in mono.refs:
                x = self.leaves.number(refs)
                if x is None:
                    return None
                product = product * x
            out = out + product
        return np.broadcast_to(np.asarray(out), value.shape)

    def step(self, i: int) -> None:
        """Goes through the i-th step."""
        step = self.graph.steps[i]
        ins = [self.values[v] for v in step.ins]
        if any(x is None for x in ins):
            self.values.update(dict.fromkeys(step.outs))
            return
        known = [x for x in ins if x is not None]
        nums = [self.number(x) for x in known]
        data = any(x.data for x in known)
        full = all(n is not None for n in nums)
        made: list[tuple[Form | None, list[Form]]] | None = None
        placed: list[Value] = []
        moved = self._moved(step, known, nums) if moved_inputs(step) is not None else None
        if moved is not None:
            index, inputs = moved
            if any(known[j].form is not None for j in inputs):
                made = [self._join(i, step, known, nums, inputs, at) for at in index]
                if all(known[j].num is not None and (known[j].data or known[j].form is None) for j in inputs):
                    placed = self._plain_moves(i, step, known, index, inputs)
            elif data:
                self.values.update(zip(step.outs, self._plain_moves(i, step, known, index, inputs), strict=True))
                return
        elif any(x.form is not None for x in known):
            made = self._symbolic(i, step, known, nums)
        if made is None and not full:
            if data:
                raise Stuck(i, [v for v, n in zip(step.ins, nums, strict=True) if n is None])
            made = [(self.pseudo(i, o), []) for o in range(len(step.outs))]
        elif made is None and not data and any(x.form is not None for x in known):
            made = [(self.pseudo(i, o), []) for o in range(len(step.outs))]
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
        if any(nums[j] is None for j in range(len(ins)) if j not in inputs):
            raise Stuck(self.graph.maker[step.outs[0]], [v for v, n in zip(step.ins, nums, strict=True) if n is None])
        if step.name == "convert_element_type":
            wanted, given = step.params["new_dtype"], nums[0]
            real = np.issubdtype(np.dtype(wanted), np.inexact) or "float" in str(wanted)
            if not real or (given is not None and given.dtype.kind != "f"):
                return None
        shapes = [x.shape for x in ins]
        return moves(step, shapes, [None if j in inputs else nums[j] for j in range(len(ins))]), inputs

    def _plain_moves(
        self, i: int, step: Step, ins: list[Value], index: list[np.ndarray], inputs: list[int]
    ) -> list[Value]:
        given, made = [ins[j] for j in inputs], []
        if any(not isinstance(x.num, np.ndarray) for x in given):
            raise Stuck(i, [])
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

    def _join(
        self, i: int, step: Step, ins: list[Value], nums: list[Any], inputs: list[int], at: np.ndarray
    ) -> tuple[Form | None, list[Form]]:
        looked_up = any(x.data for j, x in enumerate(ins) if j not in inputs)
        params = [ins[j] for j in inputs]
        if looked_up and step.name in ("gather", "dynamic_slice") and not params[0].data:
            refs = self.param(params[0], i)
            if refs is not None:
                return self._lookup(i, step, refs, at), []
        forms = [form_of(x) for x in params]
        form = joined(forms, [x.shape for x in params], at)
        variants = [form]
        if any(x.num is not None and x.form is not None and x.data for x in params):
            plain = [form_of(x if x.num is None or not x.data else dataclasses.replace(x, form=None)) for x in params]
            other = joined(plain, [x.shape for x in params], at)
            if other.monos or other.dots:
                variants.append(other)
        return form, variants

    def _lookup(self, i: int, step: Step, refs: Refs, at: np.ndarray) -> Form:
        shape = refs.ref.shape
        if step.name == "gather":
            axes = list(step.params["dimension_numbers"].start_index_map)
        else:
            axes = [a for a, (n, m) in enumerate(zip(shape, step.params["slice_sizes"], strict=True)) if n != m] or [0]
        places = np.unravel_index(np.where(at < 0, 0, at), shape)
        index = np.zeros(at.shape)
        for axis in axes:
            index = index * 100003 + places[axis]
        return self.contract(of_lookup(at, index, int(np.prod(shape)), i), refs, at.shape)

    # Leaves and data -------------------------------------------------------------------------------------------------

    def contract(self, made: Contraction, refs: Refs, shape: tuple[int, ...]) -> Form:
        """Returns the form of a contraction's output, after taking it in."""
        kernel = Refs(*(np.broadcast_to(x, refs.ref.shape).ravel() for x in (refs.ref, refs.scale, refs.shift)))
        self.contractions.append(made)
        self.leaves.kernels.append(kernel)
        self.starts.append(self._end)
        at = np.arange(self._end, self._end + made.row.size, dtype=np.int64).reshape(shape)
        self._end += made.row.size
        return Form(dots=((at, np.ones(shape)),))

    def param(self, value: Value, i: int) -> Refs | None:
        """Returns the leaf elements that a value without data consists of."""
        if value.data or value.form is None:
            return None
        refs = value.form.param()
        if refs is not None:
            return refs
        form = self.pseudo(i, -1, value.shape)
        return form.param()

    def pseudo(self, i: int, o: int, shape: tuple[int, ...] | None = None) -> Form:
        """Returns the form of a value that leaves give by more than moving: elements of a leaf that stands for it."""
        if (i, o) not in self._pseudo:
            step = self.graph.steps[i]
            if o < 0:
                (v,) = [v for v in step.ins if (x := self.values[v]) is not None and not x.data and x.form is not None][
                    :1
                ]
            else:
                v = step.outs[o]
            self._pseudo[i, o] = self.leaves.pseudo(v, tuple(self.graph.shape(v)) if shape is None else shape)
        return Form(monos=(Mono((Refs.of(self._pseudo[i, o]),)),))

    def _symbolic(
        self, i: int, step: Step, ins: list[Value], nums: list[Any]
    ) -> list[tuple[Form | None, list[Form]]] | None:
        name = step.name
        shape = tuple(self.graph.shape(step.outs[0]))
        if name in _ADD:
            return self._sum(ins, nums, shape, _ADD[name])
        if name == "neg":
            return [(form_of(ins[0]).times(-1.0), [])]
        if name == "mul" or name == "div":
            return self._product(i, step, ins, nums, shape)
        if name == "dot_general":
            return self._dot(i, step, ins, shape)
        if name == "conv_general_dilated":
            data, kernel = ins
            refs = self.param(kernel, i)
            if refs is None or data.num is None or step.params["batch_group_count"] != 1:
                return None
            return [(self.contract(of_conv(step.params, keys_of(data), kernel.shape, i), refs, shape), [])]
        if name == "reduce_sum" and ins[0].data:
            return self._reduced(i, step, ins[0], shape)
        return None

    def _sum(
        self, ins: list[Value], nums: list[Any], shape: tuple[int, ...], sign: float
    ) -> list[tuple[Form | None, list[Form]]]:
        def total_of(a: Form, b: Form) -> Form:
            a, b = (x.each(lambda y: np.broadcast_to(y, shape)) for x in (a, b if sign > 0 else b.times(-1.0)))
            if not (b.dots or b.monos or b.atoms):
                return a.shifted(b.const) if b.const is not None else a
            if not (a.dots or a.monos or a.atoms):
                return b.shifted(a.const) if a.const is not None else b
            return self.named(a.plus(b))

        a, b = (form_of(x) for x in ins)
        whole = total_of(a, b)
        variants = [whole]
        plain = [form_of(dataclasses.replace(x, form=None)) if x.data and x.num is not None else None for x in ins]
        if plain[0] is not None and ins[0].form is not None and ins[1].form is not None:
            variants.append(total_of(plain[0], b))
        if plain[1] is not None and ins[1].form is not None and ins[0].form is not None:
            variants.append(total_of(a, plain[1]))
        if not whole.small and len(variants) > 1:
            whole = variants[-1]
        return [(whole, [f for f in variants if f.small and (f.dots or f.monos)])]

    def _product(
        self, i: int, step: Step, ins: list[Value], nums: list[Any], shape: tuple[int, ...]
    ) -> list[tuple[Form | None, list[Form]]] | None:
        a, b = ins
        if step.name == "div":
            if b.form is not None and not b.data:
                ref = self.pseudo_of_reciprocal(i, b)
                b = Value(b.shape, False, None, None, ref)
            elif b.form is None and nums[1] is not None:
                if b.data:
                    with np.errstate(all="ignore"):
                        b = dataclasses.replace(b, num=1 / nums[1], gid=None if b.gid is None else mix(b.gid, 17))
                else:
                    with np.errstate(all="ignore"):
                        b = Value(b.shape, False, 1 / nums[1])
            elif b.data and b.num is not None:
                with np.errstate(all="ignore"):
                    b = Value(b.shape, True, 1 / b.num, None if b.gid is None else mix(b.gid, 17))
            else:
                return None
        for x, y in ((a, b), (b, a)):  # a constant
            if y.form is None and not y.data and y.num is not None and x.form is not None:
                c = np.broadcast_to(y.num, shape)
                return [(form_of(x).each(lambda z: np.broadcast_to(z, shape)).times(c), [])]
        forms = []
        for x, y in ((a, b), (b, a)):
            if y.data or y.form is None:
                continue
            refs = self._factors(y, i, shape)  # x times leaves
            if refs is None:
                continue
            if x.data and x.num is not None:
                num = np.broadcast_to(x.num, shape)
                gid = np.broadcast_to(keys_of(x), shape)
                forms.append(Form(monos=(Mono(refs, num, gid),)))
            if x.form is not None and not x.form.dots and not x.form.atoms and x.form.const is None:
                form = x.form.each(lambda z: np.broadcast_to(z, shape))
                if all(len(m.refs) + len(refs) <= 3 for m in form.monos):
                    forms.insert(0, Form(monos=tuple(Mono(m.refs + refs, m.num, m.gid) for m in form.monos)))
            break
        else:
            for x, y in ((a, b), (b, a)):  # leaves times data that is known
                if x.form is None or not x.data or x.form.dots or not y.data or y.num is None:
                    continue
                form = x.form.each(lambda z: np.broadcast_to(z, shape))
                by = np.broadcast_to(y.num, shape)
                key = np.broadcast_to(keys_of(y), shape)
                monos = tuple(
                    Mono(m.refs, by if m.num is None else m.num * by, key if m.num is None else None)
                    for m in form.monos
                )
                atoms = tuple((None, n * by) for _, n in form.atoms)
                if form.const is not None:
                    atoms = (*atoms, (None, form.const * by))
                forms.append(self.named(Form((), monos, atoms)))  # type: ignore[arg-type]
        if not forms:
            return None
        return [(forms[0], forms)]

    def _factors(self, value: Value, i: int, shape: tuple[int, ...]) -> tuple[Refs, ...] | None:
        form = value.form
        assert form is not None
        if len(form.monos) == 1 and form.monos[0].num is None and form.const is None and not form.dots:
            return tuple(r.each(lambda z: np.broadcast_to(z, shape)) for r in form.monos[0].refs)
        refs = self.param(value, i)
        return None if refs is None else (refs.each(lambda z: np.broadcast_to(z, shape)),)

    def pseudo_of_reciprocal(self, i: int, value: Value) -> Form:
        """Returns the form of 1 / value."""
        if (i, -2) not in self._pseudo:
            v = self.graph.steps[i].ins[1]
            self._pseudo[i, -2] = self.leaves.pseudo(v, value.shape, reciprocal=True)
        return Form(monos=(Mono((Refs.of(self._pseudo[i, -2]),)),))

    def named(self, form: Form) -> Form:
        """Returns a form whose known numbers all have keys."""
        monos = []
        for m in form.monos:
            if m.num is not None and m.gid is None:
                num, gid, _ = self.register(m.num, None, (-1, 0))
                m = Mono(m.refs, num, gid)
            monos.append(m)
        atoms = []
        for g, n in form.atoms:
            if g is None:
                n, g, _ = self.register(n, None, (-1, 0))
            atoms.append((g, n))
        return dataclasses.replace(form, monos=tuple(monos), atoms=tuple(atoms))

    def _dot(
        self, i: int, step: Step, ins: list[Value], shape: tuple[int, ...]
    ) -> list[tuple[Form | None, list[Form]]] | None:
        for data, kernel, left in ((ins[0], ins[1], True), (ins[1], ins[0], False)):
            if kernel.data or kernel.form is None or data.num is None:
                continue
            refs = self.param(kernel, i)
            if refs is None:
                return None
            keys = keys_of(data)
            if not keys.any():
                return [(Form(const=np.zeros(shape)), [])]
            hot = self._one_hot(step, data, kernel, left, refs, i, shape)
            if hot is not None:
                return [(hot, [])]
            return [(self.contract(of_dot(step.params, keys, kernel.shape, left, i), refs, shape), [])]
        return None

    def _one_hot(
        self, step: Step, data: Value, kernel: Value, left: bool, refs: Refs, i: int, shape: tuple[int, ...]
    ) -> Form | None:
        num = data.num
        assert num is not None
        if (
            not data.data
            or num.size > 1 << 24
            or np.count_nonzero(num) * 2 > num.size
            or not np.all((num == 0) | (num == 1))
        ):
            return None
        made = of_dot(step.params, np.where(num == 1, np.uint64(1), np.uint64(0)), kernel.shape, left, i)
        rows = made.rows(np.arange(int(made.row.max()) + 1))
        if not np.all(rows.sum(1) == 1):
            return None
        hot = rows.argmax(1)[made.row]
        return self.contract(of_lookup(made.kernel[made.unit, hot], hot, refs.ref.size, i), refs, shape)

    def _reduced(
        self, i: int, step: Step, value: Value, shape: tuple[int, ...]
    ) -> list[tuple[Form | None, list[Form]]] | None:
        """A sum over axes of data times leaves: a contraction that was written as a product and a sum."""
        form = value.form
        if form is None or form.dots or form.atoms or form.const is not None or len(form.monos) != 1:
            return None
        (mono,) = form.monos
        if mono.num is None or mono.gid is None or len(mono.refs) != 1:
            return None
        axes = tuple(step.params["axes"])
        last = tuple(range(-len(axes), 0))
        count = int(np.prod([value.shape[a] for a in axes]))

        def lined(x: np.ndarray) -> np.ndarray:
            return np.moveaxis(np.broadcast_to(x, value.shape), axes, last).reshape(-1, count)

        keys = lined(mono.gid)
        kernel = mono.refs[0].each(lined)
        units, unit = np.unique(kernel.ref, axis=0, return_inverse=True)
        first = np.unique(unit, return_index=True)[1]
        kernel = kernel.each(lambda x: x[first])
        from bridges._infer._contraction import row_keys

        index = np.arange(units.size, dtype=np.int64).reshape(units.shape)
        made = Contraction(
            np.arange(len(keys)), unit.ravel(), np.arange(len(units)), row_keys(keys), lambda r: keys[r], index, i
        )
        return [(self.contract(made, kernel, shape), [])]


def form_of(value: Value) -> Form:
    """Returns the form of a value: of one without leaves, the known value itself."""
    if value.form is not None:
        return value.form
    assert value.num is not None
    if not value.data:
        return Form(const=value.num)
    return Form(atoms=((keys_of(value), value.num),))


def keys_of(value: Value) -> np.ndarray:
    """Returns the keys of a known value; those of a constant are made of its numbers."""
    if value.gid is not None:
        return value.gid
    return of_number(value.num)
