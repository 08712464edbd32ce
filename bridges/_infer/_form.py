"""Form: a value as a sum of places where leaves meet data, with what is known beside them.

    value = sum of contractions + sum of (number * product of leaf elements) + sum of known values + constants

Every part has the value's shape, and is moved, sliced and joined as the value is. A value without leaves has no form; a
value without data is a form of leaf elements only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridges._infer._keys import U, mix, of_number

MOST = 4  # parts of one sort
HUGE = 1e8  # what masks add or put in the place of a value is this large


@dataclasses.dataclass(frozen=True)
class Refs:
    """Leaf elements: `scale * leaf[ref] + shift`, or `shift` alone where ref is -1."""

    ref: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    def each(self, fn: Callable[[np.ndarray], np.ndarray]) -> Refs:
        return Refs(fn(self.ref), fn(self.scale), fn(self.shift))

    def by(self, scale: Any, shift: Any) -> Refs:
        """Returns `scale * self + shift`."""
        return Refs(self.ref, self.scale * scale, self.shift * scale + shift)

    @classmethod
    def of(cls, ref: np.ndarray) -> Refs:
        return cls(ref, np.ones(ref.shape), np.zeros(ref.shape))


@dataclasses.dataclass(frozen=True)
class Mono:
    """A product of leaf elements, and of a known number with its keys (None: 1)."""

    refs: tuple[Refs, ...]
    num: np.ndarray | None = None
    gid: np.ndarray | None = None

    def each(self, fn: Callable[[np.ndarray], np.ndarray]) -> Mono:
        return Mono(
            tuple(r.each(fn) for r in self.refs),
            None if self.num is None else fn(self.num),
            None if self.gid is None else fn(self.gid),
        )


@dataclasses.dataclass(frozen=True)
class Form:
    """The parts of a value.

    Attributes:
      dots: Pairs of global numbers of contraction outputs (-1: none) and the factor.
      monos: Products.
      atoms: Known values that depend on data: pairs of keys and numbers.
      const: What depends on neither.
    """

    dots: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    monos: tuple[Mono, ...] = ()
    atoms: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    const: np.ndarray | None = None

    @property
    def small(self) -> bool:
        return max(len(self.dots), len(self.monos), len(self.atoms)) <= MOST

    def each(self, fn: Callable[[np.ndarray], np.ndarray]) -> Form:
        return Form(
            tuple((fn(a), fn(s)) for a, s in self.dots),
            tuple(m.each(fn) for m in self.monos),
            tuple((fn(g), fn(n)) for g, n in self.atoms),
            None if self.const is None else fn(self.const),
        )

    def at(self, index: np.ndarray) -> Form:
        """Returns the form of the elements with these flat numbers, in the index's shape; the parts have one shape."""
        return self.each(lambda x: x.ravel()[index])

    def plus(self, other: Form) -> Form:
        """Returns the sum; the two have one shape. Parts with the same leaf elements become one."""
        const = self.const
        if other.const is not None:
            const = other.const if const is None else const + other.const
        form = Form(self.dots + other.dots, (), self.atoms + other.atoms, const)
        monos: list[Mono] = []
        for mono in (*self.monos, *other.monos):
            for i, have in enumerate(monos):
                if (merged := _merged(have, mono)) is not None:
                    monos[i] = merged
                    break
            else:
                monos.append(mono)
        return dataclasses.replace(form, monos=tuple(monos))

    def times(self, c: Any) -> Form:
        """Returns the product with a constant."""
        code = of_number(c)
        return Form(
            tuple((a, s * c) for a, s in self.dots),
            tuple(Mono((m.refs[0].by(c, 0.0), *m.refs[1:]), m.num, m.gid) for m in self.monos),
            tuple((mix(g + code, 11), n * c) for g, n in self.atoms),
            None if self.const is None else self.const * c,
        )

    def shifted(self, c: np.ndarray) -> Form:
        """Returns the sum with a constant of the same shape."""
        if not self.dots and not self.atoms and len(self.monos) == 1 and self.monos[0].num is None:
            (mono,) = self.monos
            if len(mono.refs) == 1:
                const = c if self.const is None else c + self.const
                return Form(monos=(Mono((mono.refs[0].by(1.0, const),)),))
        return dataclasses.replace(self, const=c if self.const is None else self.const + c)

    def param(self) -> Refs | None:
        """Returns the leaf elements that the value consists of, if it is nothing but these."""
        if self.dots or self.atoms or len(self.monos) != 1 or self.monos[0].num is not None:
            return None
        (mono,) = self.monos
        if len(mono.refs) != 1:
            return None
        return mono.refs[0] if self.const is None else mono.refs[0].by(1.0, self.const)

    def masked(self) -> Form:
        """Returns the form with nothing but the constant where that is huge: what masks put in the place of a value."""
        added = [m.refs[0].shift for m in self.monos if m.num is None and len(m.refs) == 1]
        const: Any = sum(added, 0.0 if self.const is None else self.const)
        if not np.any(huge := np.abs(const) >= HUGE):
            return self
        form = self.each(lambda x: np.broadcast_to(x, huge.shape))

        def refs(r: Refs) -> Refs:
            return Refs(np.where(huge, -1, r.ref), r.scale, np.where(huge, 0.0, r.shift))

        return Form(
            tuple((np.where(huge, -1, a), s) for a, s in form.dots),
            tuple(
                Mono(tuple(refs(r) for r in m.refs), m.num, None if m.gid is None else np.where(huge, U(0), m.gid))
                for m in form.monos
            ),
            tuple((np.where(huge, U(0), g), np.where(huge, 0.0, n)) for g, n in form.atoms),
            np.where(huge, np.sign(const) * HUGE, 0.0 if self.const is None else self.const),
        )

    def without_offsets(self) -> Form:
        """Returns the form without the leaves that are added."""
        return dataclasses.replace(self, monos=tuple(m for m in self.monos if m.num is not None), const=None)


def _merged(a: Mono, b: Mono) -> Mono | None:
    """Returns the sum of two products of the same leaf elements, with the key of the sum left to be found: x·s - m·s."""
    if a.num is None or b.num is None or len(a.refs) != len(b.refs):
        return None
    first, second = a.refs[0], b.refs[0]
    if any(not np.array_equal(x.ref, y.ref) for x, y in zip(a.refs, b.refs, strict=True)):
        return None
    if any(np.any(r.shift) for r in (*a.refs, *b.refs)):
        return None
    if any(not np.array_equal(x.scale, y.scale) for x, y in zip(a.refs[1:], b.refs[1:], strict=True)):
        return None
    one = dataclasses.replace(first, scale=np.ones_like(first.scale))
    return Mono((one, *a.refs[1:]), a.num * first.scale + b.num * second.scale, None)


def joined(forms: Sequence[Form | None], shapes: Sequence[tuple[int, ...]], index: np.ndarray) -> Form:
    """Returns the form of a value whose elements are taken from several others.

    Args:
      forms: One for each.
      shapes: Theirs.
      index: int: each element's place among those of all, laid end to end; below 0 for none of them.
    """
    out = Form()
    start, first = 0, len(forms) == 1 and not np.any(index < 0)
    for form, shape in zip(forms, shapes, strict=True):
        size = int(np.prod(shape))
        if first and form is not None:
            return form.each(lambda a: np.broadcast_to(a, shapes[0]).ravel()[index])
        here = (index >= start) & (index < start + size)
        local = np.where(here, index - start, 0)
        start += size
        if form is None or not here.any():
            continue
        out = _beside(
            out, form, lambda a, e=0, s=shape, i=local, h=here: np.where(h, np.broadcast_to(a, s).ravel()[i], e), here
        )
    return out


def _beside(out: Form, form: Form, take: Callable[..., np.ndarray], here: np.ndarray) -> Form:
    """Returns the union of two forms whose elements are different ones: the k-th part of one fills that of the other."""
    dots = [(take(a, -1), take(s)) for a, s in form.dots]
    atoms = [(take(g, U(0)), take(n)) for g, n in form.atoms]
    monos = []
    for m in form.monos:
        refs = tuple(Refs(take(r.ref, -1), take(r.scale), take(r.shift)) for r in m.refs)
        num = None if m.num is None else take(m.num)
        monos.append(Mono(refs, num, None if m.gid is None else take(m.gid, U(0))))
    const = None if form.const is None else take(form.const)
    old = list(out.dots)
    for k, (a, s) in enumerate(dots):
        if k < len(old):
            old[k] = (np.where(here, a, old[k][0]), np.where(here, s, old[k][1]))
        else:
            old.append((a, s))
    old_atoms = list(out.atoms)
    for k, (g, n) in enumerate(atoms):
        if k < len(old_atoms):
            old_atoms[k] = (np.where(here, g, old_atoms[k][0]), np.where(here, n, old_atoms[k][1]))
        else:
            old_atoms.append((g, n))
    old_monos = list(out.monos)
    for m in monos:
        for k, have in enumerate(old_monos):
            if (have.num is None) == (m.num is None) and len(have.refs) == len(m.refs) and not _overlap(have, here):
                refs = tuple(
                    Refs(*(np.where(here, getattr(y, f), getattr(x, f)) for f in ("ref", "scale", "shift")))
                    for x, y in zip(have.refs, m.refs, strict=True)
                )
                num = None if m.num is None or have.num is None else np.where(here, m.num, have.num)
                gid = None if m.gid is None or have.gid is None else np.where(here, m.gid, have.gid)
                old_monos[k] = Mono(refs, num, gid)
                break
        else:
            old_monos.append(m)
    if const is not None:
        const = const if out.const is None else out.const + const
    else:
        const = out.const
    return Form(tuple(old), tuple(old_monos), tuple(old_atoms), const)


def _overlap(have: Mono, here: np.ndarray) -> bool:
    return any(bool(np.any((r.ref >= 0) & here)) for r in have.refs)
