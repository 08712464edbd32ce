"""What a run is made of."""

import dataclasses
import pathlib

LICENSE = pathlib.Path(__file__).parents[3] / "LICENSE"  # a text that everybody has


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults train in seconds on a laptop."""

    text: pathlib.Path = LICENSE
    vocabulary: int = 96  # newline and printable ASCII
    sequence_length: int = 32
    batch_size: int = 8

    model_size: int = 32
    num_heads: int = 4
    num_layers: int = 2
    widening: int = 4
    dropout: float = 0.1

    learning_rate: float = 1e-2
    warmup_steps: int = 10
    decay_steps: int = 200
    weight_decay: float = 1e-2
    clip: float = 1.0

    seed: int = 42
    eval_batches: int = 2
    eval_every: int = 10


DEFAULT = Config()
