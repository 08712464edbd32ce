"""solve: two networks in, for every target leaf the source elements that it consists of out."""

from __future__ import annotations

from bridges._infer._found import Found, Network, Progress


def solve(src: Network, dst: Network, *, seed: int = 0, progress: Progress | None = None) -> Found:
    """Returns which source elements the target's leaves consist of.

    Args:
      src: The source.
      dst: The target; its inputs have the paths, shapes and dtypes of the source's.
      seed: For the values that are drawn.
      progress: Called now and then with the steps done, their number, and where the search is.
    """
    raise NotImplementedError
