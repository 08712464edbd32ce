"""Haiku's variables, models and modules on this project's terms.

Five verbs (`flatten`, `unflatten`, `spec`, `init`, `apply`) turn any Haiku model's variables into a flat `State` and
back, bit for bit; `HaikuModule` and `FromHaiku` run Haiku code unchanged as a part of a `bridges.Module`. `ToHaiku`
goes the other way: a part of any framework as an `hk.Module`.

Wherever a model is asked for, it may be a function that uses Haiku modules, an `hk.Module` class (or a
`functools.partial` of one that holds its constructor's arguments), or what `hk.transform`, `hk.transform_with_state`,
`hk.multi_transform`, `hk.multi_transform_with_state` and `hk.without_apply_rng` give.
"""

from bridges._haiku._params_tree import read_params_tree as read_params_tree
from bridges._haiku._params_tree import write_params_tree as write_params_tree
from bridges._haiku._to_haiku import ToHaiku as ToHaiku
from bridges._haiku._tree import flatten as flatten
from bridges._haiku._tree import unflatten as unflatten
from bridges._haiku._verbs import apply as apply
from bridges._haiku._verbs import init as init
from bridges._haiku._verbs import spec as spec
from bridges._haiku._wrapper import FromHaiku as FromHaiku
from bridges._haiku._wrapper import HaikuModule as HaikuModule

__all__ = [
    "FromHaiku",
    "HaikuModule",
    "ToHaiku",
    "apply",
    "flatten",
    "init",
    "read_params_tree",
    "spec",
    "unflatten",
    "write_params_tree",
]
