"""The presets: one file each, whose docstring states command, hardware, minutes and result."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from abd_jax.training.config import Preset


def modules() -> dict[str, ModuleType]:
    """Preset name → its file."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.PRESET.name: module for module in found}


def presets() -> dict[str, Preset]:
    """Preset name → preset."""
    return {name: module.PRESET for name, module in modules().items()}
