"""`Leaf`: an array field of a pytree.

To a type checker it is an array. At run time it is anything, since JAX also fills trees with shapes, shardings and
its own markers; the field's shape stands in the class's docstring.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax

if TYPE_CHECKING:
    Leaf: TypeAlias = jax.Array
else:
    Leaf = Any
