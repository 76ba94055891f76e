"""Data-free quantization and distillation (Choi et al., CVPR workshops 2020, arXiv 2005.04136).

A generator that keeps to the teacher's batch normalization statistics, clear decisions and all classes, while it looks
for images on which the student still differs.
"""

from __future__ import annotations

import dataclasses

from abd_jax.synthesis.generative import Generative, GenerativeConfig

DFQ = Generative


@dataclasses.dataclass(frozen=True)
class DFQConfig(GenerativeConfig):
    """Settings; the defaults are those of CMI's CIFAR-10 comparison."""

    learning_rate: float = 1e-4
    one_hot: float = 0.5
    balance: float = 20.0
    batch_norm: float = 1.0
    adversarial: float = 0.5
