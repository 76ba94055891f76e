"""Wide ResNets of the PyTorch literature in memory: their state dicts to our variables and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax.interop.architectures import variables_from_torch, variables_to_torch
from abd_jax.interop.stored import Stored
from abd_jax.models import WideResNet


def wide_resnet_from_torch(module: WideResNet, state: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of `module` from a PyTorch state dict; see `architectures.variables_from_torch`.

    Args:
        module: depth, width and number of classes that the state must fit.
        state: name → array (whatever `np.asarray` takes); `num_batches_tracked` is ignored.

    Raises:
        ValueError: an entry is missing, left over, of another shape, no number or not finite, or a variance negative.
    """
    arrays = {name: Stored.of(value) for name, value in state.items()}
    stem = arrays.get("conv1.weight")
    channels = stem.shape[1] if stem is not None and len(stem.shape) == 4 else 3
    shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 8, 8, channels))), jax.random.key(0))
    what = f"WRN-{module.depth}-{module.width} with {module.num_classes} classes"
    return variables_from_torch(module, shapes, arrays, what)


def wide_resnet_to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a Wide ResNet's variables, float32; `load_state_dict` takes it as it is."""
    return variables_to_torch(WideResNet(10, 1, 1), variables)


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A change of a state dict's array: its first number is the value."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change
