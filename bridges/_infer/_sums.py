"""Sums and products of values in which leaves take part, as forms.

A sum of forms is a form; a product is one where leaves are multiplied by leaves or by what is known. A sum may be written
in several ways, with what is known taken apart or as one number: all are given, since the other network's way is not known.

Invariant: every form that is returned has the shape of the output, and known numbers in it have keys.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bridges._infer._form import Form, Mono, Refs
from bridges._infer._keys import mix
from bridges._infer._side import Side
from bridges._infer._value import Value, form_of, keys_of

Made = tuple[Form, list[Form]]  # the form of an output, and the ways in which it may be written


def summed(side: Side, ins: list[Value], shape: tuple[int, ...], sign: float) -> Made:
    """Returns the form of `a + sign * b`, and the ways in which it may be written."""

    def total_of(a: Form, b: Form) -> Form:
        a, b = (x.each(lambda y: np.broadcast_to(y, shape)) for x in (a, b if sign > 0 else b.times(-1.0)))
        if not (b.dots or b.monos or b.atoms):
            return a.shifted(b.const) if b.const is not None else a
        if not (a.dots or a.monos or a.atoms):
            return b.shifted(a.const) if a.const is not None else b
        return side.named(a.plus(b))

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
    return whole, [f for f in variants if f.small and (f.dots or f.monos)]


def multiplied(side: Side, i: int, ins: list[Value], shape: tuple[int, ...], divided: bool) -> Made | None:
    """Returns the form of `a * b` or `a / b`, and the ways in which it may be written; None if it has none.

    Args:
      side: Whose the values are.
      i: The step.
      ins: a and b.
      shape: The output's.
      divided: Whether b is what a is divided by.
    """
    a, b = ins
    if divided:
        inverse = _reciprocal(side, i, b)
        if inverse is None:
            return None
        b = inverse
    for x, y in ((a, b), (b, a)):  # a constant
        if y.form is None and not y.data and y.num is not None and x.form is not None:
            c = np.broadcast_to(y.num, shape)
            return form_of(x).each(lambda z: np.broadcast_to(z, shape)).times(c), []
    forms = []
    for x, y in ((a, b), (b, a)):
        if y.data or y.form is None:
            continue
        refs = _factors(side, y, y.form, i, shape)  # x times leaves
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
                Mono(m.refs, by, key) if m.num is None else Mono(m.refs, *side.keyed(m.num * by)) for m in form.monos
            )
            added = [n for _, n in form.atoms] + ([] if form.const is None else [form.const])
            atoms = tuple((gid, num) for num, gid in (side.keyed(n * by) for n in added))
            forms.append(Form((), monos, atoms))
    return (forms[0], forms) if forms else None


def _reciprocal(side: Side, i: int, value: Value) -> Value | None:
    """Returns 1 / value, the second input of a step; None if it has no numbers and is none of leaves alone."""
    if value.form is not None and not value.data:
        return Value(value.shape, False, None, None, side.pseudo_of_reciprocal(i, value))
    if value.num is None:
        return None
    with np.errstate(all="ignore"):
        num = np.asarray(1 / value.num)
    return Value(value.shape, value.data, num, None if value.gid is None else mix(value.gid, 17))


def _factors(side: Side, value: Value, form: Form, i: int, shape: tuple[int, ...]) -> tuple[Refs, ...] | None:
    if len(form.monos) == 1 and form.monos[0].num is None and form.const is None and not form.dots:
        return tuple(r.each(lambda z: np.broadcast_to(z, shape)) for r in form.monos[0].refs)
    refs = side.param(value, i)
    return None if refs is None else (refs.each(lambda z: np.broadcast_to(z, shape)),)
