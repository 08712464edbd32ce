"""converters: checkpoint files between the frameworks that `bridges` knows, planned before and verified after.

Names are loaded when they are first used: `import converters` imports neither a framework nor a file format.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters._back import convert_back as convert_back
    from converters._convert import Conversion as Conversion
    from converters._convert import convert as convert
    from converters._errors import CheckpointError as CheckpointError
    from converters._files import load as load
    from converters._files import save as save
    from converters._job import Job as Job
    from converters._verify import verify as verify
    from converters.report import Check as Check
    from converters.report import FirstDifference as FirstDifference
    from converters.report import Report as Report

# Where each public name lives.
_NAMES: dict[str, str] = {
    "Check": "converters.report",
    "CheckpointError": "converters._errors",
    "FirstDifference": "converters.report",
    "Report": "converters.report",
    "load": "converters._files",
    "save": "converters._files",
    "Job": "converters._job",
    "Conversion": "converters._convert",
    "convert": "converters._convert",
    "convert_back": "converters._back",
    "verify": "converters._verify",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'converters' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


__all__ = [*sorted(_NAMES)]
