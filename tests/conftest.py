"""What every test and docstring example runs under: the CPU, and property tests without a time limit an example."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax

import hypothesis
import pytest

# The first example of a property compiles, the others do not.
hypothesis.settings.register_profile("bridges", deadline=None)
hypothesis.settings.load_profile("bridges")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("smoke")
