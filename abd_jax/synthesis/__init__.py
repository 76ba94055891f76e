"""Data-free methods. A new one is a file with three pure functions (see `base.Synthesizer`) and one line here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

from abd_jax.settings import one_of
from abd_jax.synthesis.base import SynthesisConfig, Synthesizer, Task
from abd_jax.synthesis.cmi import CMI, CMIConfig
from abd_jax.synthesis.dafl import DAFL, DAFLConfig
from abd_jax.synthesis.deep_inversion import DeepInversion, DeepInversionConfig
from abd_jax.synthesis.dfad import DFAD, DFADConfig
from abd_jax.synthesis.dfq import DFQ, DFQConfig
from abd_jax.synthesis.fast import Fast, FastConfig
from abd_jax.synthesis.nayer import NAYER, NAYERConfig
from abd_jax.synthesis.ood import OOD, OODConfig
from abd_jax.synthesis.zskt import ZSKT, ZSKTConfig

__all__ = [
    "METHODS",
    "Method",
    "SynthesisConfig",
    "Synthesizer",
    "Task",
    "create",
    "lookup",
    "method_of",
    "names",
    "register",
]


class Method(NamedTuple):
    """A method: its settings' class, and what binds settings to a task."""

    config: type[SynthesisConfig]
    bind: Callable[[Any, Task], Synthesizer]


METHODS: dict[str, Method] = {
    "zskt": Method(ZSKTConfig, ZSKT),
    "deep_inversion": Method(DeepInversionConfig, DeepInversion),
    "cmi": Method(CMIConfig, CMI),
    "ood": Method(OODConfig, OOD),
    "dafl": Method(DAFLConfig, DAFL),
    "dfq": Method(DFQConfig, DFQ),
    "dfad": Method(DFADConfig, DFAD),
    "fast": Method(FastConfig, Fast),
    "nayer": Method(NAYERConfig, NAYER),
}
"""Name → method."""
ENTRY_POINTS = "abd_jax.methods"
"""Under this group an installed package names its methods: `noise = "its_module:METHOD"`."""


def register(name: str, method: Method) -> None:
    """Makes a method of your own known by name.

    Raises:
        ValueError: the name is another method's, or the settings are.
    """
    if METHODS.get(name, method) != method:
        raise ValueError(f"method {name!r}: the name is taken; allowed is any other than {', '.join(METHODS)}")
    if any(known.config is method.config for other, known in METHODS.items() if other != name):
        raise ValueError(f"method {name!r}: its settings {method.config.__name__} are another method's")
    METHODS[name] = method


def _installed() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def names() -> list[str]:
    """Of all methods: registered ones, and those that installed packages offer."""
    return list(dict.fromkeys([*METHODS, *_installed()]))


def method_of(config: SynthesisConfig) -> str:
    """The name of the method that settings belong to."""
    return next(name for name, method in METHODS.items() if type(config) is method.config)


def create(config: SynthesisConfig, task: Task) -> Synthesizer:
    """A method's settings bound to a task.

    Raises:
        ValueError: the method cannot do the task.
    """
    return METHODS[method_of(config)].bind(config, task)


def lookup(name: str) -> Method:
    """The method of that name: registered, or offered by an installed package.

    Raises:
        ValueError: unknown name.
    """
    if name not in METHODS:
        offered = _installed()
        if name in offered:
            register(name, offered[name].load())
            return METHODS[name]
    return METHODS[one_of("method", name, names())]
