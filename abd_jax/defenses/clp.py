"""Channel Lipschitz pruning (Zheng et al., ECCV 2022, arXiv 2208.03111): needs no data at all.

A channel that a trigger excites has a large Lipschitz constant. Its upper bound for channel c of a convolution and the
batch normalization behind it is the spectral norm of K_c·|γ_c| / √(σ²_c + ε), K_c the kernel as a matrix of inputs ×
positions, as in the published code. Channels above mean + u·std of their layer are switched off (γ = β = 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from abd_jax.defenses.base import Rival, Sample
from abd_jax.models import Network
from abd_jax.models.layers import BATCH_NORM_EPSILON
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class CLP(Rival):
    """Settings.

    Attributes:
        deviations: u; the published value for CIFAR-10 is 3. A layer of n channels has none above (n − 1)/√n.
        network: which one is pruned: the `teacher` before its distillation, or the `student` after it.
    """

    deviations: float = 3.0
    network: Literal["teacher", "student"] = "teacher"

    def __post_init__(self) -> None:
        check("rivals.clp", self, positive=("deviations",))

    def harden(self, teacher: Network) -> Network:
        return prune(teacher, self.deviations)[0] if self.network == "teacher" else teacher

    def repair(
        self, key: PRNGKeyArray, student: Network, teacher: Network, sample: Sample
    ) -> tuple[Network, dict[str, float]]:
        if self.network == "teacher":
            return student, {}
        student, count = prune(student, self.deviations)
        return student, {"pruned": count}


def lipschitz_bounds(
    kernel: Float[np.ndarray | Array, "size size inputs channels"],
    scale: Float[np.ndarray | Array, " channels"],
    variance: Float[np.ndarray | Array, " channels"],
) -> Float[np.ndarray, " channels"]:
    """An upper bound of each channel's Lipschitz constant."""
    matrices = np.asarray(kernel, np.float64).transpose(3, 2, 0, 1)
    largest = np.linalg.svd(matrices.reshape(*matrices.shape[:2], -1), compute_uv=False)[:, 0]
    factor = np.abs(np.asarray(scale, np.float64)) / np.sqrt(np.asarray(variance, np.float64) + BATCH_NORM_EPSILON)
    return largest * factor


def bounds(network: Network) -> dict[str, Float[np.ndarray, " _"]]:
    """The bound of every channel of every kernel, by the kernel's path; where none normalizes it, the factor is 1."""
    variables = flatten_dict(dict(network.variables), sep="/")
    norms = network.module.batch_norms
    normalized = dict(zip(network.module.normalized, norms, strict=True)) if norms else {}
    found = {}
    for path in network.module.kernels:
        kernel, norm = variables[f"params/{path}/kernel"], normalized.get(path)
        scale, variance = np.ones(kernel.shape[-1]), np.full(kernel.shape[-1], 1 - BATCH_NORM_EPSILON)
        if norm is not None:
            scale, variance = variables[f"params/{norm}/scale"], variables[f"batch_stats/{norm}/var"]
        found[path] = lipschitz_bounds(kernel, scale, variance)
    return found


def deviations(found: Mapping[str, Float[np.ndarray, " _"]]) -> dict[str, Float[np.ndarray, " _"]]:
    """How many standard deviations each bound lies above the mean of its layer; the published bar is 3."""
    return {path: (values - values.mean()) / max(float(values.std(ddof=1)), 1e-12) for path, values in found.items()}


def prune(network: Network, deviations: float) -> tuple[Network, int]:
    """The network without its most sensitive channels, and how many those are.

    Raises:
        ValueError: the network has no batch normalization.
    """
    network.require_batch_norm("defense clp")
    variables = flatten_dict(dict(network.variables), sep="/")
    pruned = 0
    for norm, kernel in zip(network.module.batch_norms, network.module.normalized, strict=True):
        scale, bias = f"params/{norm}/scale", f"params/{norm}/bias"
        bounds = lipschitz_bounds(
            variables[f"params/{kernel}/kernel"], variables[scale], variables[f"batch_stats/{norm}/var"]
        )
        keep = bounds <= bounds.mean() + deviations * bounds.std(ddof=1)
        pruned += int((~keep).sum())
        for name in (scale, bias):
            variables[name] = variables[name] * keep.astype(variables[name].dtype)
    return dataclasses.replace(network, variables=unflatten_dict(variables, sep="/")), pruned
