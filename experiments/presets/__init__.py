"""The presets: one file each, whose docstring states command, hardware, minutes and result."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from abd_jax import data
from abd_jax.settings import nearest, one_of
from abd_jax.training.config import Preset


def modules() -> dict[str, ModuleType]:
    """Preset name → its file."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return {module.PRESET.name: module for module in found}


def presets() -> dict[str, Preset]:
    """Preset name → preset."""
    return {name: module.PRESET for name, module in modules().items()}


def named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none; for a data set's name it says which preset takes that data set.
    """
    known = presets()
    return known[one_of("preset", name, known, "" if name in known else _for_data(name, known))]


def _for_data(name: str, known: dict[str, Preset]) -> str:
    """A hint, if a data set has that name, or one like it where no preset has."""
    found = name if name in data.CATALOG else None if nearest(name, known) else nearest(name, data.CATALOG)
    if found is None:
        return ""
    shape = data.info(found).image_shape
    fitting = next((preset for preset in known.values() if data.info(preset.dataset).image_shape == shape), None)
    return f"a data set; say {fitting.name} --dataset {found}" if fitting else f"{found} is a data set"
