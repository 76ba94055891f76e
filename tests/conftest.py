"""Strict settings for every test: what would pass silently elsewhere is an error here."""

import jax
import pytest
from jaxtyping import install_import_hook

from tests.typecheck import check

jax.config.update("jax_num_cpu_devices", 8)  # a mesh without hardware; whatever names no mesh stays on the first
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_disable_most_optimizations", True)  # tests compile much and compute little: a third of the time
# Every annotated call; must precede the first import.
install_import_hook("abd_jax", f"{check.__module__}.{check.__name__}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line(
        "markers",
        "optax: runs Optax's Adam or schedules, which multiply int32 counts by floats: no strict dtype promotion",
    )


@pytest.fixture(autouse=True)
def dtype_promotion(request: pytest.FixtureRequest):
    """Strict dtype promotion, except where Optax itself breaks it."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("optax") else "strict"):
        yield


@pytest.fixture(scope="module")
def key_reuse():
    """No check of keys that are used twice, where that is on purpose or in what is called."""
    with jax.debug_key_reuse(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Forgets a module's compiled programs: those of all tests need more memory maps than Linux gives a process.

    XLA then aborts in the midst of a compilation (vm.max_map_count, 65 530 by default).
    """
    yield
    jax.clear_caches()
