"""Catches the host waiting for the device: JAX's own transfer guard does not see it on CPU (FACTS.md §5)."""

from contextlib import contextmanager

import jax
from jax._src.array import ArrayImpl

WAITS = [
    "_value",
    "__array__",
    "__float__",
    "__int__",
    "__bool__",
    "__index__",
    "item",
    "tolist",
    "block_until_ready",
    "__dlpack__",
    "__str__",
    "__repr__",
]


@contextmanager
def forbidden(monkeypatch):
    """Inside, every read of a device value raises."""

    def refuse(*_, **__):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in WAITS:
            replacement = property(refuse) if name == "_value" else refuse
            patch.setattr(ArrayImpl, name, replacement)
        for name in ("device_get", "block_until_ready"):
            patch.setattr(jax, name, refuse)
        yield
