"""Data-free learning (Chen et al., ICCV 2019, arXiv 1904.01186): a generator of what the teacher is sure of.

Images shall be decided clearly (one-hot), excite the teacher's embedding, and be of all classes alike.
"""

from __future__ import annotations

import dataclasses

from abd_jax.synthesis.generative import Generative, GenerativeConfig

DAFL = Generative


@dataclasses.dataclass(frozen=True)
class DAFLConfig(GenerativeConfig):
    """Settings; the weights are those of CMI's CIFAR-10 comparison, the latent dimension is the authors'."""

    latent: int = 512
    one_hot: float = 1.0
    activation: float = 0.1
    balance: float = 20.0
