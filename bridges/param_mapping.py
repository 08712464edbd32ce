"""Mappings between variable trees: data with no direction, planned before an array is read, reversible.

    mapping = Mapping.load('mlp.toml') | conventions('haiku', 'linen')
    plan = mapping.plan(src_spec, dst_spec)          # every problem in one error, or every leaf decided
    new = plan.forward(old)
    old = plan.inverse(new)
    opt_state = plan.optimizer(opt_state, src_params, dst_params)

Knows JAX and NumPy only: no framework, and no file format but its own TOML. docs/mapping.md describes the language.
"""

from bridges.mapping._conventions import conventions as conventions
from bridges.mapping._conventions import frameworks as frameworks
from bridges.mapping._hyper import Agree as Agree
from bridges.mapping._hyper import Hyper as Hyper
from bridges.mapping._mapping import Mapping as Mapping
from bridges.mapping._mapping import Part as Part
from bridges.mapping._op import Op as Op
from bridges.mapping._ops import OPS as OPS
from bridges.mapping._plan import Item as Item
from bridges.mapping._plan import Plan as Plan
from bridges.mapping._row import LayerRow as LayerRow
from bridges.mapping._rule import Rule as Rule
from bridges.mapping._template import Template as Template
from bridges.mapping._verdicts import Verdict as Verdict
from bridges.mapping._verdicts import verdicts as verdicts
