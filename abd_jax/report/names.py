"""Defenses and networks as legends, tables and sentences name them."""

from __future__ import annotations

SHORT_NAMES = {
    "none": "vanilla",
    "sv": "SV",
    "sr": "SR",
    "abd": "ABD",
    "clean_kd": "clean KD",
    "clp": "CLP",
    "fine_pruning": "fine-pruning",
    "nad": "NAD",
    "i_bau": "I-BAU",
    "dhbe": "DHBE",
    "abl": "ABL",
}
"""Defense → its name in a legend; one that is not here is named as it is."""

MEANINGS = {
    "none": "distilled without data and without a defense",
    "sv": "with the vaccine: triggers are kept out of what the teacher teaches, as the settings of `vaccine` say",
    "sr": "with Self-Retrospection: the student unlearns what can flip it, as the settings of `retrospection` say",
    "abd": "with both, the vaccine and Self-Retrospection",
    "clp": "with channel Lipschitz pruning: channels of the teacher that react too strongly are switched off",
    "fine_pruning": "fine-pruned: features of the student that synthesized images leave asleep are switched off",
    "nad": "with neural attention distillation on synthesized images after distillation",
    "i_bau": "with I-BAU on synthesized images after distillation",
    "dhbe": "with DHBE’s regularizer: a generator of patches plays against the student",
    "abl": "with ABL-style filtering: the images of lowest loss are left out",
    "clean_kd": "a reference that has real data: distilled on a share of the clean training set",
}
"""Defense → what its student is, in words."""


def short_name(defense: str) -> str:
    """A student's defense as a legend names it."""
    return SHORT_NAMES.get(defense, defense)


def network_name(role: str, defense: str) -> str:
    """A network as a table names it."""
    return "teacher" if role == "teacher" else f"student, {short_name(defense)}"
