"""`digits` with the defense in the paper's form.

    python -m experiments reproduce digits-paper --out runs/digits-paper

SPEC §4's column "paper": the vaccine's penalty averaged over the batch with the KL summed over classes, T~ chosen by
Algorithm 2; Self-Retrospection by plain gradient ascent in an ε-ball on the student, on the whole batch. The ascent's
rate, σ, ε and λ are not printed in the paper; those here are ours. Hardware and time: as `digits`.
"""

import dataclasses

from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-paper",
    vaccine=VaccineConfig(alpha=0.1, reduction="sum", normalize="batch", select=True),
    retrospection=RetrospectionConfig(
        perturb="student", start="noise", ascent="sgd", ascent_rate=10.0, epsilon=6.0, portion=1.0, clean_gradient=True
    ),
)
