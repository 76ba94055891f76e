"""One image is all (Asano & Saeed, ICLR 2023, arXiv 2112.00725): patches of a single photograph.

Nothing is optimized: every image is a patch of one picture, cut, rotated, sheared, mirrored and recolored on the
device, and then mixed with another by CutMix.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from abd_jax.models import Leaf, Norm
from abd_jax.screening import Screen
from abd_jax.synthesis.base import Classifier, Metrics, SynthesisConfig, Task, check

SAMPLES = ("china", "flower")
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class OODConfig(SynthesisConfig):
    """Settings; CutMix's are published, the others are ours after the published recipe.

    Attributes:
        image: `china` or `flower` (photographs inside scikit-learn), or the path of a picture of any size.
        updates: 0: there is nothing to update.
        smallest: side of a patch before it is resized, in shares of the picture's shorter side.
        largest: as `smallest`.
        rotation: largest angle, in degrees.
        shear: largest shear angle, in degrees.
        flip: whether half of the patches are mirrored.
        brightness: largest offset.
        contrast: largest change of its factor, 1.
        saturation: largest change of its factor, 1.
        hue: largest offset on the hue's circle, whose length is 1.
        cutmix: both parameters of CutMix's Beta distribution; 0: no CutMix.
    """

    image: str = "china"
    updates: int = 0
    smallest: float = 0.05
    largest: float = 0.6
    rotation: float = 35.0
    shear: float = 30.0
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    cutmix: float = 0.25

    def __post_init__(self) -> None:
        check(self, nonnegative=("brightness", "hue", "cutmix"), below_one=("contrast", "saturation"))
        if self.updates:
            raise ValueError(f"synthesis.updates {self.updates}: allowed is 0, method ood has nothing to update")
        if not 0 < self.smallest <= self.largest <= 1:
            raise ValueError(
                f"synthesis.smallest {self.smallest} and synthesis.largest {self.largest}: "
                "allowed are 0 < smallest ≤ largest ≤ 1"
            )
        for name, limit in (("rotation", 180), ("shear", 60)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"synthesis.{name} {getattr(self, name)}: allowed is [0, {limit}] degrees")


def photograph(image: str) -> UInt8[np.ndarray, "height width 3"]:
    """The picture by its name inside scikit-learn, or by its path.

    Raises:
        ValueError: no such file, or no picture.
    """
    if image in SAMPLES:
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{image}.jpg"))
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(Path(image)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(
            f"synthesis.image {image!r}: allowed are {', '.join(SAMPLES)} or the path of a picture ({error})"
        ) from error


def cut_patches(
    key: PRNGKeyArray,
    picture: UInt8[Array, "rows columns 3"],
    count: int,
    image_shape: tuple[int, int, int],
    config: OODConfig,
) -> Float[Array, "count height width 3"]:
    """`count` patches: a random square, rotated, sheared and perhaps mirrored, resized bilinearly; in [0, 1].

    What reaches over the picture's edge is mirrored there.
    """
    height, width, _ = image_shape
    sides = jnp.asarray(picture.shape[:2], jnp.float32)
    shortest = min(picture.shape[:2])
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(-0.5, 0.5, height), jnp.linspace(-0.5, 0.5, width), indexing="ij"))
    source = picture.astype(jnp.float32) / 255.0

    def cut(key: Array) -> Array:
        size_key, angle_key, shear_key, flip_key, place_key = jax.random.split(key, 5)
        side = shortest * jax.random.uniform(size_key, minval=config.smallest, maxval=config.largest)
        angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-config.rotation, maxval=config.rotation))
        shear = jnp.tan(jnp.deg2rad(jax.random.uniform(shear_key, minval=-config.shear, maxval=config.shear)))
        mirror = jnp.where(jax.random.bernoulli(flip_key) & config.flip, -1.0, 1.0)
        rows, columns = grid[0], grid[1] * mirror
        columns = columns + shear * rows
        turned = (
            jnp.cos(angle) * rows - jnp.sin(angle) * columns,
            jnp.sin(angle) * rows + jnp.cos(angle) * columns,
        )
        center = side / 2 + jax.random.uniform(place_key, (2,)) * (sides - 1 - side)
        places = [offset * side + middle for offset, middle in zip(turned, center, strict=True)]
        return jnp.stack([map_coordinates(source[..., c], places, 1, "mirror") for c in range(3)], axis=-1)

    return jax.vmap(cut)(jax.random.split(key, count))


def recolor(
    key: PRNGKeyArray, images: Float[Array, "batch height width 3"], config: OODConfig
) -> Float[Array, "batch height width 3"]:
    """Random brightness, contrast, saturation and hue, each image its own; clipped to [0, 1]."""

    def one(key: Array, image: Array) -> Array:
        brightness, contrast, saturation, hue = jax.random.split(key, 4)
        changes = (
            (config.brightness, functools.partial(pix.random_brightness, brightness, max_delta=config.brightness)),
            (config.contrast, _factor(pix.random_contrast, contrast, config.contrast)),
            (config.saturation, _factor(pix.random_saturation, saturation, config.saturation)),
            (config.hue, functools.partial(pix.random_hue, hue, max_delta=config.hue)),
        )
        for strength, change in changes:
            if strength:
                image = jnp.clip(change(image=image), 0.0, 1.0)
        return image

    return jax.vmap(one)(jax.random.split(key, images.shape[0]), images)


def _factor(change, key: Array, strength: float):
    return functools.partial(change, key, lower=1 - strength, upper=1 + strength)


def cutmix(
    key: PRNGKeyArray, images: Float[Array, "batch height width channels"], beta: float
) -> Float[Array, "batch height width channels"]:
    """Pastes one random rectangle of a permuted batch into all images (Yun et al., 2019).

    Its area is a share 1 − λ of the image, λ ~ Beta(β, β), less what lies outside; its center is uniform.
    """
    share_key, center_key, order_key = jax.random.split(key, 3)
    batch, height, width, _ = images.shape
    side = jnp.sqrt(1 - jax.random.beta(share_key, beta, beta))
    center = jax.random.uniform(center_key, (2,)) * jnp.asarray([height, width], jnp.float32)
    inside = [
        jnp.abs(jnp.arange(size) + 0.5 - center[axis]) < side * size / 2 for axis, size in enumerate((height, width))
    ]
    mask = (inside[0][:, None] & inside[1][None, :])[..., None]
    return jnp.where(mask, images[jax.random.permutation(order_key, batch)], images)


@struct.dataclass
class OODState:
    """The picture.

    Attributes:
        picture: `[rows, columns, 3]`, uint8.
    """

    picture: Leaf


@dataclasses.dataclass(frozen=True)
class OOD:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: OODConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "batch"

    def init(self, key: PRNGKeyArray) -> OODState:
        """The picture on the device."""
        del key
        return OODState(jnp.asarray(photograph(self.config.image)))

    def update(
        self, key: PRNGKeyArray, state: OODState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[OODState, Metrics]:
        """Nothing to do."""
        del key, teacher, student, screen
        return state, {}

    def sample(self, key: PRNGKeyArray, state: OODState, count: int) -> Float[Array, "count height width channels"]:
        """`count` patches of the picture, recolored, mixed; in gray for a teacher of one channel."""
        config = self.config
        cut, color, mix = jax.random.split(key, 3)
        images = cut_patches(cut, state.picture, count, self.task.image_shape, config)
        images = self.task.shard(recolor(color, images, config))
        if self.task.image_shape[2] == 1:
            images = (images @ jnp.asarray(_LUMA))[..., None]
        return cutmix(mix, images, config.cutmix) if config.cutmix else images
