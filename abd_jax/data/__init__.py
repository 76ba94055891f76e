"""Data sets as uint8 arrays, and their augmentation on the device."""

from abd_jax.data.catalog import CATALOG, Info, info
from abd_jax.data.datasets import LOADERS, Dataset, load
from abd_jax.data.prepared import is_prepared, prepare
from abd_jax.data.stream import batches

__all__ = ["CATALOG", "LOADERS", "Dataset", "Info", "batches", "info", "is_prepared", "load", "prepare"]
