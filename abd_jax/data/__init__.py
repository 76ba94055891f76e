"""Data sets as uint8 arrays, and their augmentation on the device."""

from abd_jax.data.datasets import LOADERS, Dataset, load

__all__ = ["LOADERS", "Dataset", "load"]
