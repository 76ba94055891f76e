"""One mesh, one axis `data`: batches are split over it, everything else is replicated."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh of the first `devices` devices (default: all); Auto axes, since Explicit ones break the step.

    Raises:
        ValueError: more devices than there are.
    """
    available = jax.devices()
    if devices is not None and not 1 <= devices <= len(available):
        raise ValueError(
            f"devices {devices}: allowed are 1 … {len(available)}, the {available[0].platform} devices here"
        )
    chosen = available[:devices]
    return jax.make_mesh((len(chosen),), ("data",), devices=chosen, axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every leaf on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
