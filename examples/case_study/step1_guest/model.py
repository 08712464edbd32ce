"""The language model as an NNX module. All of it is still Haiku's, in old_model.py."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

import bridges as br

from .config import Config
from .old_model import forward


def make_model(config: Config, *, rngs: nnx.Rngs) -> Any:
    tokens = jax.ShapeDtypeStruct((1, config.sequence_length), np.int32)
    return br.ToNNX(functools.partial(forward, config=config), rngs=rngs).lazy_init(tokens)
