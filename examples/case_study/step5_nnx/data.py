"""A text as batches of characters. The batch of a step depends on nothing but the step, so that a run can be resumed."""

from typing import NamedTuple

import numpy as np

from .config import Config


class Batch(NamedTuple):
    tokens: np.ndarray  # [batch, sequence_length] int32
    targets: np.ndarray  # the same, one character later


def encode(text: str) -> np.ndarray:
    """Returns numbers of characters: 0 for a newline, 1 to 95 for printable ASCII, a space for what is neither."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    numbers = np.where((codes >= 32) & (codes < 127), codes - 31, 1)
    return np.where(codes == 10, 0, numbers)


class Dataset:
    """The first nine tenths of a text for training, the rest for evaluation."""

    def __init__(self, config: Config):
        self.config = config
        numbers = encode(config.text.read_text("utf-8"))
        cut = len(numbers) * 9 // 10
        self.parts = {"train": numbers[:cut], "eval": numbers[cut:]}

    def batch(self, part: str, step: int) -> Batch:
        """Returns the batch of a step: windows of the text at random places."""
        numbers, length = self.parts[part], self.config.sequence_length
        rng = np.random.default_rng((self.config.seed, step))
        starts = rng.integers(0, len(numbers) - length, self.config.batch_size)
        windows = numbers[starts[:, None] + np.arange(length + 1)]
        return Batch(windows[:, :-1], windows[:, 1:])
