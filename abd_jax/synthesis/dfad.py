"""Data-free adversarial distillation (Fang et al., 2019, arXiv 1912.11006).

A generator maximizes the L1 distance of teacher's and student's logits, which the student minimizes.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from abd_jax.synthesis.generative import Generative, GenerativeConfig

DFAD = Generative


@dataclasses.dataclass(frozen=True)
class DFADConfig(GenerativeConfig):
    """Settings; the defaults are the published ones for CIFAR-10."""

    adversarial: float = 1.0
    divergence: Literal["kl", "l1"] = "l1"
