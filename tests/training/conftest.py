"""A round draws the same latent vectors twice on purpose, for the update and for the student: no key-reuse check."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def key_reuse():
    with jax.debug_key_reuse(False):
        yield
