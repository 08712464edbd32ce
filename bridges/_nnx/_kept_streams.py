"""The random streams that an NNX module keeps, for hosts that give it keys of their own at each call.

NNX keeps a key and a count in Variables; Linen and Haiku pass keys in. A host that stores neither gives each stream a key
and the count nought, as `nnx.reseed` does.
"""

from __future__ import annotations

import dataclasses
import re

from flax import nnx

from bridges._nnx._maker import Maker
from bridges._nnx._template import Template
from bridges.core import _flat
from bridges.core._errors import SeedError


@dataclasses.dataclass(frozen=True)
class KeptStream:
    """A random stream that a module keeps.

    Attributes:
      tag: Its name in NNX.
      key: Path of the entry of its key, below the module.
      count: Path of the entry of its count.
      shape: The shape of both: `()`, or that of a stream of many keys.
    """

    tag: str
    key: str
    count: str
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """Its path in the module."""
        return self.key.partition(_flat.SEPARATOR)[2].rpartition(_flat.SEPARATOR)[0]


def kept_streams(template: Template) -> tuple[KeptStream, ...]:
    """Returns the random streams of a module, in the order in which `nnx.reseed` gives them keys."""
    module, leaves = template.build(template.entries)
    paths = {id(variable): leaf.path for variable, leaf in zip(leaves, template.leaves, strict=True)}
    return tuple(
        KeptStream(stream.tag, paths[id(stream.key)], paths[id(stream.count)], tuple(stream.key.get_raw_value().shape))
        for _, stream in nnx.iter_graph(module, graph=True)
        if isinstance(stream, nnx.RngStream)
    )


def asked_streams(maker: Maker) -> tuple[str, ...]:
    """Returns the names of the random streams that a constructor asks for, `default` if it draws from `rngs` itself."""
    asked: tuple[str, ...] = ("params",)
    while maker.takes_rngs:
        try:
            Template.traced(lambda streams=asked: maker.watched(streams)[0])
            break
        except SeedError as err:  # flax 0.12.8 says the name in the text only.
            found = re.search(r"No RngStream named '(.*?)'", str(err))
            if found is None or found[1] in asked:
                raise
            asked = (*asked, found[1])
    return asked
