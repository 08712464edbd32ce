"""A mapping that was inferred says, as a file, what the plan found by itself; stacks included."""

import functools

import pytest

from bridges.param_mapping import Mapping
from converters._infer import Inferred
from converters._models import Model
from tests.mapping import stacks

FORMS = ("haiku stack", "linen scan 1", "linen", "nnx stack")
form = functools.cache(lambda name: stacks.FORMS[name]())


class Known(Model):
    """A model whose spec is at hand."""

    def spec(self, *args, **kwargs):
        return form(self.name).spec


@pytest.mark.parametrize(("src", "dst"), [(a, b) for a in FORMS for b in FORMS if a != b])
def test_the_file_says_what_was_found(src, dst):
    ends = [Known(form(name).framework, None, name) for name in (src, dst)]
    found = Inferred.of(*ends)
    assert Mapping.loads(found.toml).plan(form(src).spec, form(dst).spec) == found.plan
    assert "[{i:int}]/attn" in found.toml and found.toml.count("\n") <= 10
