"""Wide ResNets of the PyTorch literature: their state dicts to our variables and back, in NumPy alone.

The names are those of the published poisoned teachers: `conv1.weight`, `block1.layer.0.bn1.running_mean`,
`block1.layer.0.convShortcut.weight`, …, `bn1.weight`, `fc.bias`. PyTorch keeps kernels as OIHW, we as HWIO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from abd_jax.models import WideResNet

_SUFFIX = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
_IGNORED = "num_batches_tracked"
_SHOWN = 5


def wide_resnet_from_torch(module: WideResNet, state: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of `module` from a PyTorch state dict.

    Args:
        module: depth, width and number of classes that the state must fit.
        state: name → array (whatever `np.asarray` takes); `num_batches_tracked` is ignored.

    Returns:
        `{"params": …, "batch_stats": …}`, float32, as `module.init` makes them.

    Raises:
        ValueError: an entry is missing, left over, of another shape, no number or not finite, or a variance negative.
    """
    state = {name: np.asarray(value) for name, value in state.items() if name.rpartition(".")[2] != _IGNORED}
    what = f"WRN-{module.depth}-{module.width} with {module.num_classes} classes"
    stem = state.get("conv1.weight")
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    abstract = flatten_dict(_shapes(module, channels))
    names = {path: _torch_name(path) for path in abstract}
    if missing := sorted(set(names.values()) - set(state)):
        raise ValueError(f"the state dict is no {what}: missing {_listed(missing)}")
    if left := sorted(set(state) - set(names.values())):
        raise ValueError(f"the state dict is no {what}: left over {_listed(left)}")
    variables = {}
    for path, name in names.items():
        value, expected = state[name], _to_torch(np.empty(abstract[path].shape)).shape
        if value.shape != expected:
            raise ValueError(f"{name} has shape {value.shape}: {what} needs {expected}")
        if not np.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
            raise ValueError(f"{name} has dtype {value.dtype}: allowed are real numbers")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(value))} value(s) that are not finite")
        if path[-1] == "var" and (value < 0).any():
            raise ValueError(f"{name} has negative values: it is no variance")
        variables[path] = jnp.array(_from_torch(value), jnp.float32)
    return unflatten_dict(variables)


def wide_resnet_to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a Wide ResNet's variables, float32; `load_state_dict` takes it as it is."""
    flat = flatten_dict({kind: variables[kind] for kind in ("params", "batch_stats")})
    return {_torch_name(path): _to_torch(np.asarray(value, np.float32)) for path, value in flat.items()}


def _shapes(module: WideResNet, channels: int) -> Any:
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 8, 8, channels))), jax.random.key(0))


def _torch_name(path: tuple[str, ...]) -> str:
    """`("params", "block1_layer_0", "bn1", "scale")` → `block1.layer.0.bn1.weight`."""
    kind, *modules, leaf = path
    owner = re.sub(r"^(block\d+)_layer_(\d+)", r"\1.layer.\2", ".".join(modules))
    return f"{owner}.{_SUFFIX[kind, leaf]}"


def _to_torch(value: np.ndarray) -> np.ndarray:
    """HWIO → OIHW, or [in, out] → [out, in]; vectors stay."""
    return np.array(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T, order="C")


def _from_torch(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
