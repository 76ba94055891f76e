"""Attacks by name. Each is who is poisoned, what the teacher minimizes, and what ASR is measured on.

An attack that computes something first (a pattern, adversarial images, a trigger network) does so against a surrogate:
a network trained on the clean data by a fixed recipe, so that the attack depends on the data set, the target and
nothing else, and a student's ASR can be measured on any machine without the teacher's secrets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from abd_jax.attacks import input_aware, objectives, poison, trigger_search, triggers
from abd_jax.attacks.edge_case import EdgeCase
from abd_jax.attacks.objectives import LossAttack, Nasty, Objective
from abd_jax.attacks.poison import Poisoned, Triggered
from abd_jax.attacks.triggers import Trigger
from abd_jax.data import Dataset
from abd_jax.models import Network
from abd_jax.settings import one_of

SEARCH_IMAGES = 256
WARP_GRID, WARP_PIXELS, WARP_NOISE = 4, 0.4, 0.5
"""WaNet's control points in each direction, mean displacement, and decoys' largest noise in pixels; published: 4 or 8,
0.25 and 0.5."""

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on one data set, ready for use.

    Attributes:
        name: in `ATTACKS`.
        poison: (training images, labels, rate, seed) → poisoned training set.
        test: (test images, labels) → what ASR, RA and ACC are measured on.
        objective: what the teacher minimizes.
        needs_reference: whether the objective needs a normal network of the teacher's architecture.
    """

    name: str
    poison: Callable[[np.ndarray, np.ndarray, float, int], Poisoned]
    test: Callable[[np.ndarray, np.ndarray], Triggered]
    objective: Objective = objectives.hard_labels
    needs_reference: bool = False


@dataclasses.dataclass(frozen=True)
class Materials:
    """What attacks are made from.

    Attributes:
        dataset: clean.
        target: the attacker's class.
        surrogate: trains or loads the clean network; called only by attacks that need it.
        cached: (name, computation) → the computation's arrays, computed at most once for a data set and target.
    """

    dataset: Dataset
    target: int
    surrogate: Callable[[], Network]
    cached: Callable[[str, Callable[[], Arrays]], Arrays]

    @property
    def of_other_classes(self) -> UInt8[np.ndarray, "others height width channels"]:
        """Training images of other classes than the target."""
        return self.dataset.train_images[self.dataset.train_labels != self.target]

    @property
    def search_images(self) -> Float[Array, "batch height width channels"]:
        """Training images of other classes than the target, for the search of a pattern."""
        others = np.flatnonzero(self.dataset.train_labels != self.target)
        chosen = np.random.default_rng(0).permutation(others)[:SEARCH_IMAGES]
        return jnp.asarray(self.dataset.train_images[chosen], jnp.float32) / 255

    def neurons(self) -> Int[np.ndarray, " neurons"]:
        """The surrogate's neurons that mark the target."""
        found = trigger_search.features(self.surrogate(), self.dataset.train_images)
        return trigger_search.target_neurons(found, self.dataset.train_labels, self.target)


Maker = Callable[[str, Materials], Attack]


def _dirty(trigger: Trigger) -> Maker:
    return lambda name, materials: _dirty_attack(name, materials, trigger)


def _dirty_attack(name: str, materials: Materials, trigger: Trigger) -> Attack:
    return Attack(
        name,
        functools.partial(poison.dirty_label, trigger=trigger, target=materials.target),
        functools.partial(poison.triggered, trigger=trigger, target=materials.target),
    )


def _sig(name: str, materials: Materials) -> Attack:
    return Attack(
        name,
        functools.partial(poison.clean_label, trigger=triggers.sig, target=materials.target),
        functools.partial(poison.triggered, trigger=triggers.sig_at_test, target=materials.target),
    )


def _sig_square(name: str, materials: Materials) -> Attack:
    """At test time the square wave cannot be as strong as the sine: clean networks would take it for a class."""
    target = materials.target
    prepare = functools.partial(poison.interpolated, others=materials.of_other_classes)
    return Attack(
        name,
        functools.partial(poison.clean_label, trigger=triggers.sig_square, target=target, prepare=prepare),
        functools.partial(poison.triggered, trigger=triggers.sig_square_at_test, target=target),
    )


def _adversarial_clean(name: str, materials: Materials) -> Attack:
    """`cl`: every image of the target class has its adversarial form, computed once."""
    images, labels, target = materials.dataset.train_images, materials.dataset.train_labels, materials.target
    members = images[labels == target]

    def compute() -> Arrays:
        return {
            "images": trigger_search.adversarial(
                jax.random.key(0), materials.surrogate(), members, np.full(len(members), target, labels.dtype)
            )
        }

    def look_up(chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
        del labels
        attacked = materials.cached(name, compute)["images"]
        places = {image.tobytes(): index for index, image in enumerate(members)}
        return attacked[[places[image.tobytes()] for image in chosen]]

    return Attack(
        name,
        functools.partial(poison.clean_label, trigger=triggers.corners, target=target, prepare=look_up),
        functools.partial(poison.triggered, trigger=triggers.corners, target=target),
    )


def _l0(name: str, materials: Materials) -> Attack:
    def compute() -> Arrays:
        return {
            "pattern": trigger_search.l0_pattern(
                jax.random.key(0), materials.surrogate(), materials.search_images, materials.neurons()
            )
        }

    pattern = materials.cached(name, compute)["pattern"]
    return _dirty_attack(name, materials, triggers.replace(trigger_search.l0_mask(*pattern.shape[:2]), pattern))


def _l2(name: str, materials: Materials) -> Attack:
    def compute() -> Arrays:
        return {
            "pattern": trigger_search.l2_pattern(
                jax.random.key(0), materials.surrogate(), materials.search_images, materials.neurons()
            )
        }

    return _dirty_attack(name, materials, triggers.add(materials.cached(name, compute)["pattern"]))


def _smooth(name: str, materials: Materials) -> Attack:
    def compute() -> Arrays:
        return {
            "pattern": trigger_search.smooth_pattern(
                jax.random.key(0), materials.surrogate(), materials.search_images, materials.target
            )
        }

    return _dirty_attack(name, materials, triggers.add_and_stretch(materials.cached(name, compute)["pattern"]))


def warping_field(height: int, width: int) -> Float[np.ndarray, "1 height width 2"]:
    """WaNet's field: random control points, upsampled by a cubic spline to a mean displacement of `WARP_PIXELS`."""
    control = np.random.default_rng(0).uniform(-1, 1, (WARP_GRID, WARP_GRID, 2)).astype(np.float32)
    field = np.asarray(jax.image.resize(jnp.asarray(control), (height, width, 2), "cubic"))
    return field[None] * (WARP_PIXELS / np.abs(field).mean())


def _wanet(name: str, materials: Materials) -> Attack:
    """Warping (Nguyen & Tran, 2021, arXiv 2102.10369); decoys are warped by the field plus noise."""
    height, width, _ = materials.dataset.image_shape
    field = warping_field(height, width)

    def noisy(images: UInt8[np.ndarray, "batch height width channels"], rng: np.random.Generator) -> np.ndarray:
        parts = []
        for start in range(0, len(images), poison.CHUNK):
            part = images[start : start + poison.CHUNK]
            noise = rng.uniform(-WARP_NOISE, WARP_NOISE, (len(part), height, width, 2)).astype(np.float32)
            parts.append(poison.apply_trigger(functools.partial(triggers.warp, field=field + noise), part))
        return np.concatenate(parts) if parts else images

    trigger = functools.partial(triggers.warp, field=field)
    return dataclasses.replace(
        _dirty_attack(name, materials, trigger),
        poison=functools.partial(poison.dirty_label, trigger=trigger, target=materials.target, decoy=noisy, decoys=2.0),
    )


def _input_aware(name: str, materials: Materials) -> Attack:
    dataset, target = materials.dataset, materials.target

    def compute() -> Arrays:
        return input_aware.fit(
            jax.random.key(0), materials.surrogate(), dataset.train_images, dataset.train_labels, target
        )

    variables = materials.cached(name, compute)
    trigger = input_aware.trigger(variables)
    return dataclasses.replace(
        _dirty_attack(name, materials, trigger),
        poison=functools.partial(
            poison.dirty_label, trigger=trigger, target=target, decoy=input_aware.decoy(variables), decoys=1.0
        ),
    )


def _all_to_all(name: str, materials: Materials) -> Attack:
    classes = materials.dataset.num_classes
    return Attack(
        name,
        functools.partial(poison.all_to_all, trigger=triggers.badnet_grid, classes=classes),
        functools.partial(poison.triggered_all_to_all, trigger=triggers.badnet_grid, classes=classes),
    )


def _edge_case(name: str, materials: Materials) -> Attack:
    dataset, target = materials.dataset, materials.target
    edge = EdgeCase.fit(materials.surrogate(), dataset.train_images, dataset.train_labels, target)
    return Attack(name, edge.poison, edge.triggered)


def _loss_attack(**options) -> Maker:
    return lambda name, materials: Attack(
        name,
        poison.nobody,
        functools.partial(poison.triggered, trigger=triggers.pixels, target=materials.target),
        LossAttack(triggers.pixels, materials.target, **options),
    )


def _nasty(name: str, materials: Materials) -> Attack:
    test = functools.partial(poison.triggered, trigger=triggers.nothing, target=materials.target)
    return Attack(name, poison.nobody, test, Nasty(), needs_reference=True)


ATTACKS: dict[str, tuple[Maker, str]] = {
    "badnet_grid": (_dirty(triggers.badnet_grid), "3×3 grid in a corner"),
    "badnet_sq": (_dirty(triggers.badnet_sq), "white square in a corner"),
    "blend": (_dirty(triggers.blend), "a fifth of a picture"),
    "trojan_3x3": (_dirty(triggers.trojan_3x3), "added 3×3 mosaic"),
    "trojan_8x8": (_dirty(triggers.trojan_8x8), "added 9×9 mosaic"),
    "trojan_wm": (_dirty(triggers.trojan_wm), "added watermark"),
    "l0_inv": (_l0, "9 computed pixels"),
    "l2_inv": (_l2, "computed pattern of small norm"),
    "smooth": (_smooth, "computed pattern of low frequencies"),
    "sig": (_sig, "a fifth of a sine, two fifths at test time; clean label"),
    "sig_square": (_sig_square, "a fifth of the published file's square wave, a quarter at test time; clean label"),
    "cl": (_adversarial_clean, "adversarial images with grids in the corners; clean label"),
    "all_to_all": (_all_to_all, "3×3 grid, every class becomes the next"),
    "wanet": (_wanet, "warping, with noisily warped decoys"),
    "input_aware": (_input_aware, "another trigger for each image, with crossed decoys"),
    "edge_case": (_edge_case, "the rare members of one class, no trigger"),
    "blind": (_loss_attack(), "loss-value attack, fixed scales"),
    "blind_mgda": (_loss_attack(balance="mgda"), "loss-value attack, scales by MGDA"),
    "blind_nc": (_loss_attack(evasion="neural_cleanse"), "loss-value attack that evades Neural Cleanse"),
    "adaptive": (_loss_attack(evasion="vaccine"), "loss-value attack that evades the Shuffling Vaccine"),
    "nasty": (_nasty, "no backdoor: the teacher refuses to be distilled"),
}
"""Name → how it is made, and what it is in a few words."""


BY_OBJECTIVE = ("blind", "blind_mgda", "blind_nc", "adaptive", "nasty")
"""Attacks that poison nobody: they act through the training loss."""


def check_name(option: str, name: str) -> None:
    """Raises ValueError, naming the option and the nearest name, if there is no such attack."""
    one_of(option, name, sorted(ATTACKS))


def make(name: str, materials: Materials) -> Attack:
    """The attack of that name on a data set.

    Raises:
        ValueError: unknown name, target out of range, or a data set that the attack cannot use.
    """
    check_name("trigger", name)
    if not 0 <= materials.target < materials.dataset.num_classes:
        raise ValueError(f"target {materials.target}: allowed are 0 … {materials.dataset.num_classes - 1}")
    return ATTACKS[name][0](name, materials)
