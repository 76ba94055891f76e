"""The run-time type checker of the tests."""

import functools

import jax
from beartype import BeartypeConf, beartype

CONFIGURATION = BeartypeConf(is_pep484_tower=True)  # as for mypy, an int is a float


def check(function):
    """beartype; but a pytree made of stand-ins for arrays (shapes, shardings, NumPy arrays) is not checked."""
    checked = beartype(conf=CONFIGURATION)(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def check_unless_stand_in(self, *args, **kwargs):
        pytree = getattr(type(self), "_flax_dataclass", False)
        leaves = jax.tree.leaves((args, kwargs), is_leaf=lambda leaf: leaf is None)
        arrays = all(isinstance(leaf, jax.Array) for leaf in leaves)
        return (function if pytree and not arrays else checked)(self, *args, **kwargs)

    return check_unless_stand_in
