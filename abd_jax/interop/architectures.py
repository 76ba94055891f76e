"""Which network a set of named arrays is, and its variables; and the way back to PyTorch's names and layouts.

Names: of Wide ResNets those of the published poisoned teachers (`block1.layer.0.convShortcut`), of ResNets and
MobileNetV2 torchvision's, of VGG those of the common network for CIFAR (`features.0`, one linear `classifier`), of ViTs
timm's. Other spellings in the wild are brought to these by `_SPELLINGS`. PyTorch keeps a kernel as OIHW and a matrix as
[out, in], we as HWIO and [in, out].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from abd_jax.interop.stored import Stored
from abd_jax.models import VGG, Architecture, MobileNetV2, ResNet, VisionTransformer, WideResNet
from abd_jax.models.resnet import BLOCKS
from abd_jax.models.vgg import GROUPS
from abd_jax.models.vit import SIZES

_SUFFIX = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_IGNORED = "num_batches_tracked"
_SHOWN = 5
_MATRICES = ("qkv", "proj", "fc1", "fc2")
"""Modules whose kernels are 1×1 convolutions here and matrices in PyTorch."""
_SPELLINGS: dict[type, tuple[tuple[str, str], ...]] = {
    WideResNet: (
        (r"^(linear|classifier)\.", "fc."),
        (r"\.(shortcut|downsample)(\.0)?\.weight$", ".convShortcut.weight"),
    ),
    ResNet: ((r"^(linear|classifier)\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    VGG: ((r"^(fc|linear|classifier\.0)\.", "classifier."),),
    MobileNetV2: ((r"^(classifier|fc|linear)\.(?=weight|bias)", "classifier.1."),),
    VisionTransformer: ((r"^fc\.", "head."),),
}


def torch_names(module: Architecture, paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """PyTorch's name for each of our variables.

    Args:
        module: the network.
        paths: of its variables, e.g. `("params", "block1_layer_0", "bn1", "scale")`.
    """
    return {path: _torch_name(module, "/".join(path[1:-1]), path[-1]) for path in paths}


def _torch_name(module: Architecture, owner: str, leaf: str) -> str:
    if isinstance(module, VisionTransformer) and owner == "tokens":
        return leaf
    return f"{_torch_owner(module, owner)}.{_SUFFIX[leaf]}"


def _torch_owner(module: Architecture, owner: str) -> str:
    block, _, name = owner.rpartition("/")
    if isinstance(module, WideResNet):
        return re.sub(r"^(block\d+)_layer_(\d+)/", r"\1.layer.\2.", owner)
    if isinstance(module, ResNet):
        name = {"downsample": "downsample.0", "bn_downsample": "downsample.1"}.get(name, name)
        return f"{block.replace('_', '.')}.{name}" if block else name
    if isinstance(module, VGG):
        return "classifier" if owner == "fc" else f"features.{_vgg_index(module, owner)}"
    if isinstance(module, MobileNetV2):
        if not block:
            ends = {"conv_stem": "features.0.0", "bn_stem": "features.0.1", "fc": "classifier.1"}
            return (ends | {"conv_head": "features.18.0", "bn_head": "features.18.1"})[name]
        layers = ("expand", "depthwise", "project")[block == "features_1" :]
        at = layers.index(name.removesuffix("_bn"))
        normalizes = int(name.endswith("_bn"))
        inside = f"{at + normalizes}" if at == len(layers) - 1 else f"{at}.{normalizes}"
        return f"{block.replace('_', '.')}.conv.{inside}"
    if not block:
        return {"patch_embed": "patch_embed.proj", "fc": "head"}.get(name, name)
    parts = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    return f"{block.replace('_', '.')}.{parts.get(name, name)}"


def _vgg_index(module: VGG, owner: str) -> int:
    """Place in PyTorch's list: convolution, normalization and ReLU for each kernel, a maximum behind each group."""
    kernel = owner.replace("bn", "conv")
    maxima = int(kernel[len("conv")]) - 1
    return 3 * module.kernels.index(kernel) + maxima + owner.startswith("bn")


def infer(arrays: Mapping[str, Stored]) -> tuple[str, ...]:
    """Names of the architectures that arrays of these names and shapes may be, in PyTorch's style or ours.

    Several where what tells them apart, a stride, leaves no trace in the weights; none where nothing is recognized.
    """
    shapes = {re.sub(r"/(kernel|scale)$", ".weight", name.removeprefix("params/")): stored.shape
              for name, stored in arrays.items()}  # fmt: skip
    ours = any(name.startswith("params/") for name in arrays)
    shapes = {name.replace("/", "."): shape for name, shape in shapes.items()}

    def side(name: str) -> int | None:
        shape = shapes.get(name, ())
        return (shape[0] if ours else shape[-1]) if len(shape) == 4 else None

    def outputs(name: str) -> int | None:
        shape = shapes.get(name, ())
        return (shape[-1] if ours else shape[0]) if len(shape) == 4 else None

    def indices(pattern: str) -> list[tuple[str, ...]]:
        return [match.groups() for name in shapes if (match := re.fullmatch(pattern, name))]

    if wide := indices(r"block1[._]layer[._](\d+)\.conv1\.weight"):
        first = outputs("block1.layer.0.conv1.weight") or outputs("block1_layer_0.conv1.weight") or 0
        return (f"wrn-{6 * len(wide) + 4}-{first // 16}",)
    if blocks := indices(r"layer([1-4])[._](\d+)\.conv1\.weight"):
        counts = tuple(sum(stage == str(s) for stage, _ in blocks) for s in range(1, 5))
        bottleneck = bool(indices(r"layer1[._]0\.(conv3)\.weight"))
        depths = [depth for depth, known in BLOCKS.items() if known == counts and (depth == 50) == bottleneck]
        form = {3: "", 7: "-imagenet"}.get(side("conv1.weight") or 0)
        return tuple(f"resnet-{depth}{form}" for depth in depths if form is not None)
    if token := [shape for name, shape in shapes.items() if name in ("cls_token", "tokens.cls_token")]:
        patch = side("patch_embed.proj.weight") or side("patch_embed.weight")
        depth = len(indices(r"blocks[._](\d+)\.norm1\.weight"))
        sizes = [name for name, known in SIZES.items() if known[:2] == (depth, *token[0][-1:])]
        return tuple(f"vit-{size}-{patch}" for size in sizes if patch)
    if indices(r"features[._]17\.(conv|expand)\..*"):
        return ("mobilenet-v2", "mobilenet-v2-imagenet")
    count = len(indices(r"conv[1-5]_(\d)\.weight" if ours else r"features\.(\d+)\.running_mean"))
    return tuple(f"vgg-{depth}" for depth, groups in GROUPS.items() if sum(groups) == count)


def canonical(module: Architecture, state: Mapping[str, Stored]) -> dict[str, Stored]:
    """A PyTorch state dict under the names of this file, counters left out.

    A bias in front of batch normalization, which VGGs in the wild have, goes into the running mean it is subtracted by.

    Raises:
        ValueError: two entries become one.
    """
    renamed: dict[str, Stored] = {}
    for name, stored in state.items():
        if name.rpartition(".")[2] == _IGNORED:
            continue
        for pattern, replacement in _SPELLINGS[type(module)]:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"two entries are {name}")
        renamed[name] = stored
    if isinstance(module, VGG):
        for kernel in module.kernels:
            at = _vgg_index(module, kernel)
            bias, mean = f"features.{at}.bias", f"features.{at + 1}.running_mean"
            if bias in renamed and mean in renamed and renamed[bias].shape == renamed[mean].shape:
                renamed[mean] = _difference(renamed[mean], renamed.pop(bias))
    return renamed


def _difference(left: Stored, right: Stored) -> Stored:
    return Stored(left.shape, lambda: np.asarray(left.load(), np.float32) - np.asarray(right.load(), np.float32))


def variables_from_torch(
    module: Architecture, abstract: Mapping[str, Any], state: Mapping[str, Stored], what: str
) -> dict[str, Any]:
    """The variables of `module` from a PyTorch state dict; all shapes are checked before the first value is read.

    Args:
        module: the network that the state must fit.
        abstract: the shapes of its variables.
        state: name → array; `num_batches_tracked` is ignored.
        what: the network in words, for messages.

    Returns:
        `{"params": …, "batch_stats": …}`, float32, of the structure of `abstract`.

    Raises:
        ValueError: an entry is missing, left over, of another shape, no number or not finite, or a variance negative.
    """
    state, flat = canonical(module, state), flatten_dict(dict(abstract))
    names = torch_names(module, list(flat))
    _check(state, {names[path]: _torch_shape(path, leaf.shape) for path, leaf in flat.items()}, what)
    return unflatten_dict(
        {path: _from_torch(path, _checked(name, state[name], path[-1])) for path, name in names.items()}
    )


def variables_from_flax(abstract: Mapping[str, Any], arrays: Mapping[str, Stored], what: str) -> dict[str, Any]:
    """The variables from arrays of our own names; else as `variables_from_torch`."""
    flat = flatten_dict(dict(abstract), sep="/")
    _check(arrays, {path: leaf.shape for path, leaf in flat.items()}, what)
    loaded = {path: jnp.asarray(_checked(path, arrays[path], path.rpartition("/")[2])) for path in flat}
    return unflatten_dict(loaded, sep="/")


def variables_to_torch(module: Architecture, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a network's variables, float32; `load_state_dict` takes it as it is."""
    flat = flatten_dict({kind: dict(tree) for kind, tree in variables.items()})
    names = torch_names(module, list(flat))
    return {names[path]: _to_torch(path, np.asarray(value, np.float32)) for path, value in flat.items()}


def _check(state: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    if missing := sorted(set(expected) - set(state)):
        raise ValueError(f"the state dict is no {what}: missing {_listed(missing)}")
    if left := sorted(set(state) - set(expected)):
        raise ValueError(f"the state dict is no {what}: left over {_listed(left)}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} has shape {state[name].shape}: {what} needs {shape}")


def _checked(name: str, stored: Stored, leaf: str) -> np.ndarray:
    value = np.asarray(stored.load())
    real = np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer)
    if not real and value.dtype != jnp.bfloat16:
        raise ValueError(f"{name} has dtype {value.dtype}: allowed are real numbers")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(value))} value(s) that are not finite")
    if leaf == "var" and (value < 0).any():
        raise ValueError(f"{name} has negative values: it is no variance")
    return value


def _is_matrix(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel" and path[-2] in _MATRICES


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """HWIO → OIHW, [in, out] → [out, in], 1×1 kernels of matrices → [out, in]; vectors and tokens stay."""
    if path[-1] != "kernel":
        return np.array(value)
    value = value[0, 0] if _is_matrix(path) else value
    return np.array(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T, order="C")


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2]) if _is_matrix(path) else shape[::-1] if len(shape) == 2 else (*shape[:1:-1], *shape[:2])


def _from_torch(path: tuple[str, ...], value: np.ndarray) -> jax.Array:
    if path[-1] == "kernel":
        value = value.T[None, None] if _is_matrix(path) else value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return jnp.array(np.ascontiguousarray(value), jnp.float32)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:120] for name in names[:_SHOWN]) + more
