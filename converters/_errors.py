"""The error of files: one that cannot be read, written, or told apart."""

from __future__ import annotations

from bridges.core._errors import BridgeError


class CheckpointError(BridgeError, ValueError):
    """A file is damaged, hostile, of an unknown format, or cannot be written; the text names the file and the remedy."""
