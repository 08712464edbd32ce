"""How the command line names a model: `file.py:attr` or `package.module:attr.attr`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pathlib
import sys
from types import ModuleType
from typing import Any

from bridges._infer._model import Model as Model
from bridges._infer._model import ModelError as ModelError
from bridges._infer._model import framework_of
from bridges.core._errors import BridgeError, hint


def load(reference: str) -> Model:
    """Returns the model that `file.py:attr` or `package.module:attr` names, relative to the working directory.

    Raises:
      ModelError: The file, the module or the attribute is not there, or is no model. What running the file raises is
        passed on as its cause.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not place or not attribute:
        raise ModelError(f"{reference!r} names no model. Write file.py:name or package.module:name.")
    found = referred(reference)
    if inspect.isclass(found) and framework_of(found) == "linen":
        raise ModelError(f"{reference!r} is a Linen class. Name an instance: model = {attribute}(…) in {place}.")
    return Model.of(found, reference)


def referred(reference: str) -> Any:
    """Returns what `file.py:attr` or `package.module:attr` names, relative to the working directory.

    Raises:
      ModelError: The file, the module or the attribute is not there. What running the file raises is its cause.
    """
    place, _, attribute = reference.rpartition(":")
    found: Any = _module(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise ModelError(f"{reference!r}: {place} has no attribute {part!r}.{hint(part, names)}")
        found = getattr(found, part)
    return found


def _module(place: str) -> ModuleType:
    file = pathlib.Path(place)
    try:
        if place.endswith(".py"):
            if not file.is_file():
                raise ModelError(f"{place} does not exist.")
            name = file.stem
            spec = importlib.util.spec_from_file_location(name, file)
            if spec is None or spec.loader is None:
                raise ModelError(f"{place} is no Python file.")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(name, module)
            sys.path.insert(0, str(file.resolve().parent))
            try:
                spec.loader.exec_module(module)
            finally:
                sys.path.remove(str(file.resolve().parent))
            return module
        if (here := str(pathlib.Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(place)
    except BridgeError:
        raise
    except ModuleNotFoundError as err:
        raise ModelError(f"{place} cannot be imported: there is no module {err.name!r}.") from err
    except (Exception, SystemExit) as err:
        raise ModelError(f"{place} cannot be imported: {type(err).__name__}: {err}") from err
