"""What tests run under: the CPU, property tests without a time limit an example, and what was compiled is kept."""

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


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what was compiled in a folder of this run, which its processes share; JAX_COMPILATION_CACHE_DIR names another.

    Most of the time that tests take is compiling, and up to a third of the programs have been compiled before, by another
    test or the other process. What is read is the code that was written, so that results are the same bit for bit.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        folder = tmp_path_factory.getbasetemp()
        folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
