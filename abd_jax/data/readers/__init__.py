"""Original files of published data sets → uint8 arrays, one reader per format.

Files come from strangers: nothing is unpickled, no archive is unpacked to disk, sizes are bounded.
"""

from abd_jax.data.readers.cifar import read_cifar
from abd_jax.data.readers.common import Arrays
from abd_jax.data.readers.gtsrb import read_gtsrb
from abd_jax.data.readers.idx import read_idx
from abd_jax.data.readers.svhn import read_svhn
from abd_jax.data.readers.tfds import find_prepared, read_prepared

__all__ = ["Arrays", "find_prepared", "read_cifar", "read_gtsrb", "read_idx", "read_prepared", "read_svhn"]
