"""The frameworks whose variables a file may hold: the name that options and arguments take -> how a person reads it."""

FRAMEWORKS = {"haiku": "Haiku", "linen": "Flax Linen", "nnx": "Flax NNX", "flat": "flat"}
