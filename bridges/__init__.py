"""bridges: dm-haiku, Flax Linen, Flax NNX and a flat-state module system for JAX, side by side and convertible."""
