"""`Network`, a network as a value, and `Forward`, what it returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from abd_jax.models.layers import BatchNormTap, Norm
from abd_jax.models.typing import Leaf

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics."""


@struct.dataclass
class Forward:
    """What one pass of a classifier returns; fields that nobody reads cost nothing under `jit`.

    Attributes:
        logits: `[batch, classes]`, float32.
        embedding: pooled features in front of the classifier, `[batch, features]`.
        stages: activation after each stage, `[batch, height, width, channels]` each.
        entries: activation that enters each block: the places at which `Network.tail` can start.
        batch_norm: one `BatchNormTap` per batch normalization, in forward order.
    """

    logits: Leaf
    embedding: Leaf
    stages: tuple[Leaf, ...]
    entries: tuple[Leaf, ...]
    batch_norm: tuple[BatchNormTap, ...]


class Classifier(Protocol):
    """What a flax module offers to be wrapped in a `Network`."""

    num_classes: int
    kernels: tuple[str, ...]
    """Paths of the modules whose HWIO kernels mix channels, in forward order: the stem, which cannot be shuffled, then
    those that can."""
    batch_norms: tuple[str, ...]
    """Paths of all batch normalizations, in forward order; none in a network without."""
    normalized: tuple[str, ...]
    """For each of those, the path of the kernel whose output it reads; where it reads a sum, of the last one in it."""

    def entry_of(self, kernel: str) -> int:
        """The last entry at or before the kernel."""
        ...


@struct.dataclass
class Network:
    """A network as a value: variables, with the module and the input normalization as static fields.

    Images are `[batch, height, width, channels]` in [0, 1]; normalization to zero mean and unit deviation happens
    inside, so no caller can normalize a teacher and a student differently.
    """

    variables: Mapping[str, Any]
    module: Any = struct.field(pytree_node=False)
    mean: tuple[float, ...] = struct.field(pytree_node=False)
    std: tuple[float, ...] = struct.field(pytree_node=False)
    input_shape: tuple[int, int, int] = struct.field(pytree_node=False)

    def __call__(self, images: Float[Array, "batch height width channels"], norm: Norm = "running") -> Forward:
        """One forward pass; `norm` says whose statistics batch normalization uses."""
        return _forward(self.module, self.variables, self._normalize(images), norm)

    def tail(
        self,
        entry: int,
        activation: Float[Array, "batch height width channels"],
        gathers: Mapping[str, Int[Array, "copies _"]] | None = None,
    ) -> Float[Array, "copies batch classes"]:
        """Logits from `Forward.entries[entry]` on, for one or several copies of the network.

        Copy i reads, in front of each kernel named in `gathers`, its input channels in the order `gathers[name][i]`.
        All copies are one pass of the same weights over a batch of `batch · copies`, an image's copies side by side, so
        that they stay on the image's device.
        """
        gathers = dict(gathers or {})
        copies = next(iter(gathers.values())).shape[0] if gathers else 1
        wide = (len(activation), copies, *activation.shape[1:])
        repeated = jnp.broadcast_to(activation[:, None], wide).reshape(-1, *activation.shape[1:])
        logits = _tail(self.module, entry, self.variables, repeated, gathers)
        return logits.reshape(len(activation), copies, -1).swapaxes(0, 1)

    def absorb(self, forward: Forward) -> Network:
        """Moves the batch statistics of a pass into the running ones, by a tenth; nothing without normalization."""
        if not self.module.batch_norms:
            return self
        stats = flatten_dict(self.variables["batch_stats"], sep="/")
        for path, tap in zip(self.module.batch_norms, forward.batch_norm, strict=True):
            for name, new in (("mean", tap.mean), ("var", tap.variance)):
                old = stats[f"{path}/{name}"]
                stats[f"{path}/{name}"] = old + BATCH_NORM_MOMENTUM * (jax.lax.stop_gradient(new) - old)
        return dataclasses.replace(self, variables={**self.variables, "batch_stats": unflatten_dict(stats, sep="/")})

    def require_batch_norm(self, who: str) -> None:
        """For whoever reads or changes batch normalizations.

        Args:
            who: the option and its value that need them, e.g. `defense clp`.

        Raises:
            ValueError: the network has no batch normalization.
        """
        if not self.module.batch_norms:
            raise ValueError(f"{who}: needs a network with batch normalization, and this one has none")

    @property
    def params(self) -> Any:
        return self.variables["params"]

    def with_params(self, params: Any) -> Network:
        return dataclasses.replace(self, variables={**self.variables, "params": params})

    def _normalize(self, images: Array) -> Array:
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return (images - mean.astype(images.dtype)) / std.astype(images.dtype)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _forward(module: Any, variables: Any, images: Array, norm: Norm) -> Forward:
    """`jit` within whatever is compiled: networks are traced once per shape and not where they are called."""
    return module.apply(variables, images, norm)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tail(module: Any, entry: int, variables: Any, activation: Array, gathers: dict[str, Array]) -> Array:
    return module.apply(variables, activation, entry, gathers, method="tail")


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(function: Callable[..., Any], owner: Any, *arguments: Any) -> Any:
    """`function(owner, *arguments)` as one program, compiled once for all equal owners, whoever asks."""
    return function(owner, *arguments)


def _draw(module: nn.Module, key: Array, images: Array) -> Any:
    return module.init(key, images, "running")


def initialize(
    key: Array, module: nn.Module, input_shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Network:
    """Draws the variables of a classifier for images of `input_shape` (height, width, channels)."""
    variables = drawn(_draw, module, key, jnp.zeros((1, *input_shape)))
    return Network(variables=variables, module=module, mean=mean, std=std, input_shape=input_shape)
