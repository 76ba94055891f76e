"""What comes from and goes to other frameworks; NumPy arrays are the border, no other framework is imported here."""

from abd_jax.interop.teacher import read_teacher

__all__ = ["read_teacher"]
