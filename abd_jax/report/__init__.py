"""What a person sees of a finished run: one self-contained page, and a table for the terminal."""

from abd_jax.report.matrix import write_matrix_page
from abd_jax.report.reproduction import write_page
from abd_jax.report.tables import results_table

__all__ = ["results_table", "write_matrix_page", "write_page"]
