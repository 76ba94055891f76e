"""Implicit hypergradients by fixed-point iteration (Grazzi et al., 2020, arXiv 2006.16218)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def implicit_hypergradient(
    outer: Callable[[Array, PyTree], Array],
    fixed_point: Callable[[Array, PyTree], Array],
    delta: Array,
    params: PyTree,
    iterations: int,
) -> tuple[Array, PyTree]:
    """d outer(δ*(θ), θ) / dθ, where δ* = Φ(δ*, θ) is the inner solution.

    With v the solution of v = (∂Φ/∂δ)ᵀ v + ∂outer/∂δ, found by `iterations` substitutions from v = 0, the gradient is
    ∂outer/∂θ + (∂Φ/∂θ)ᵀ v. The map is linearized once.

    Args:
        outer: (δ, θ) → scalar.
        fixed_point: Φ, (δ, θ) → δ; a contraction near `delta`.
        delta: the inner solution.
        params: θ.
        iterations: K; 0 leaves the direct gradient.

    Returns:
        The outer value and the hypergradient, shaped like `params`.
    """
    value, (outer_delta, outer_params) = jax.value_and_grad(outer, argnums=(0, 1))(delta, params)
    _, transpose = jax.vjp(fixed_point, delta, params)
    v = jnp.zeros_like(delta)
    for _ in range(iterations):
        v = transpose(v)[0] + outer_delta
    if not iterations:
        return value, outer_params
    return value, jax.tree.map(jnp.add, outer_params, transpose(v)[1])
