"""Rows of networks that no one trained."""

from abd_jax.report.rows import Row


def row(role="student", defense="none", trigger="badnet_sq", seed=0, acc=0.9, asr=0.5, ra=0.4) -> Row:
    return Row("digits", "digits", "zskt", trigger, seed, role, defense, acc, asr, ra, 10.0)
