"""Neural attention distillation (Li et al., ICLR 2021, arXiv 2101.05930) of the student, on synthesized images.

A fine-tuned copy of the student is less backdoored than the student; its attention maps then guide the student:
`E CE + Σ βₗ · mean|A(sₗ) − A(gₗ)|²`, A as in attention transfer (p = 2).
"""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from abd_jax.defenses.base import Rival, Sample, Tuning, fine_tune
from abd_jax.models import Network
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class NAD(Rival):
    """Settings.

    Attributes:
        tuning_steps: batches of the copy's fine-tuning; published: 10 epochs of 5 % of CIFAR-10.
        tuning_rate: its learning rate.
        steps: batches of the student's.
        learning_rate: its learning rate.
        attention: β of the stages in forward order; published: 500, 1000, 1000.
    """

    tuning_steps: int = 200
    tuning_rate: float = 0.1
    steps: int = 200
    learning_rate: float = 0.1
    attention: tuple[float, ...] = (500.0, 1000.0, 1000.0)

    def __post_init__(self) -> None:
        check("rivals.nad", self, positive=("tuning_steps", "tuning_rate", "steps", "learning_rate"))
        if not self.attention or min(self.attention) < 0:
            raise ValueError(f"rivals.nad.attention {self.attention}: allowed are numbers from 0, at least one")

    def repair(
        self, key: PRNGKeyArray, student: Network, teacher: Network, sample: Sample
    ) -> tuple[Network, dict[str, float]]:
        guide, first = fine_tune(Tuning(self.tuning_steps, self.tuning_rate), student, teacher, sample)
        later = lambda index: sample(self.tuning_steps + index)  # noqa: E731
        guided = Tuning(self.steps, self.learning_rate, self.attention)
        student, second = fine_tune(guided, student, teacher, later, guide)
        return student, {"guide_loss": first, "loss": second}
