"""Anti-backdoor data-free knowledge distillation in JAX.

`load`, `audit`, `distill`, `export` and what they take are here; they are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abd_jax.api import (
        AuditConfig,
        Method,
        Model,
        Preset,
        Progress,
        Screens,
        audit,
        distill,
        export,
        load,
        register,
    )

__all__ = [
    "AuditConfig",
    "Method",
    "Model",
    "Preset",
    "Progress",
    "Screens",
    "audit",
    "distill",
    "export",
    "load",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'abd_jax' has no attribute {name!r}")
    from abd_jax import api

    return getattr(api, name)
