"""One mesh, one axis `data`: batches are split over it, everything else is replicated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (default: all); Auto axes, since Explicit ones break the step.

    Raises:
        ValueError: more devices than there are.
    """
    available = jax.devices()
    if devices is not None and not 1 <= devices <= len(available):
        many, platform = len(available), available[0].platform
        allowed = (
            f"are 1 … {many}, since {many} {platform} devices are" if many > 1 else f"is 1, the one {platform} device"
        )
        raise ValueError(f"devices {devices}: allowed {allowed} here")
    chosen = available[:devices]
    return jax.make_mesh((len(chosen),), ("data",), devices=chosen, axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every leaf on every device of the mesh; of several processes, each brings the same values."""
    place = NamedSharding(mesh, PartitionSpec())
    if not mesh.is_multi_process:
        return jax.device_put(tree, place)

    def everywhere(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(everywhere(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])

    return jax.tree.map(everywhere, tree)
