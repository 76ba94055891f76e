"""`digits` with the defense in the released code's form.

    python -m experiments reproduce digits-released --out runs/digits-released

SPEC §4's column "released code": T~ is the first draw; the penalty is averaged over suspicious images, the KL over
classes; δ is found on the teacher from zeros by Adam, ⌊0.02·B⌋ images are perturbed in the outer loss, whose clean
branch is not differentiated. Hardware and time: as `digits`.

Faults of the published code that are not repeated, here or anywhere (SPEC §5):

- Images went through PNG files and DataLoader workers; here they never leave the device (a ring buffer of uint8).
- CMI's memory lay on the host, drawn by Python's `random.sample` and copied each iteration; at the step where it was
  exactly full there were no negatives, and the loss was NaN for that epoch.
- Every step waited for the device to read its losses.
- ZSKT's ten student updates made the same images and teacher outputs ten times; here they are made once.
- DeepInversion's best inputs were an alias of the last ones.
- Self-Retrospection was a second run that began with an empty image pool and new shuffles; here there is one run.
- In its passes running statistics moved 6–7 times an update, perturbed batches included; here once, with distillation.
- The clean baseline normalized with another standard deviation than its teacher.
- GTSRB's clean baseline measured ASR for class 0 while class 1 was poisoned; its split had no seed.
- Epochs were picked by accuracy on the test set; here the last one counts, and the best is kept apart.
- Self-Retrospection dropped the clipping of gradients; here it stays.
- Kernels to shuffle were found by a substring of their names: of a VGG none, silently; here each network lists its own.
"""

import dataclasses

from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-released",
    vaccine=VaccineConfig(alpha=0.1, reduction="class_mean", normalize="masked", select=False),
    retrospection=RetrospectionConfig(
        perturb="teacher",
        start="zeros",
        ascent="adam",
        ascent_rate=0.1,
        portion=0.02,
        round_down=True,
        clean_gradient=False,
    ),
)
