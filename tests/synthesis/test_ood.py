"""Patches of one picture: where they are cut, how they are recolored and mixed, whose picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from abd_jax.synthesis import ood
from abd_jax.synthesis.ood import OOD, OODConfig
from tests.synthesis import small

pytestmark = pytest.mark.optax  # dm-pix and the Beta distribution have no strict dtype promotion either

STILL = {
    "rotation": 0.0,
    "shear": 0.0,
    "flip": False,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "cutmix": 0.0,
}


def plane(rows=40, columns=60):
    """A picture whose red is the row and whose green is the column, in units of a 255th."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return jnp.asarray(np.stack([row, column, 0 * row], axis=-1), jnp.uint8)


def cut(count=64, shape=(8, 8, 3), seed=0, **options):
    config = OODConfig(**(STILL | options))
    return 255 * np.asarray(ood.cut_patches(jax.random.key(seed), plane(), count, shape, config))


def test_a_patch_is_a_square_of_the_picture():
    patches = cut(smallest=0.2, largest=0.5)
    rows, columns = patches[..., 0], patches[..., 1]
    np.testing.assert_allclose(rows, rows[:, :, :1].repeat(8, axis=2), atol=1e-3)
    np.testing.assert_allclose(columns, columns[:, :1].repeat(8, axis=1), atol=1e-3)
    height, width = rows[:, -1, 0] - rows[:, 0, 0], columns[:, 0, -1] - columns[:, 0, 0]
    np.testing.assert_allclose(height, width, atol=1e-3)
    assert height.min() >= 0.2 * 40 - 1e-3 and height.max() <= 0.5 * 40 + 1e-3
    assert height.max() - height.min() > 8
    assert rows.min() >= 0 and rows.max() <= 39 and columns.min() >= 0 and columns.max() <= 59
    assert columns.max() - columns.min() > 50, "patches come from everywhere"


def test_patches_are_rotated_sheared_and_mirrored():
    def slopes(patches):
        """Of row and column along the patch's own rows and columns, per image."""
        center = patches[:, 3:5, 3:5, :2]
        down, across = center[:, 1, 0] - center[:, 0, 0], center[:, 0, 1] - center[:, 0, 0]
        return down, across

    # Small patches in the middle of the picture would do; those at its edge are mirrored there, so take medians.
    down, across = slopes(cut(rotation=90.0, smallest=0.3, largest=0.3))
    length = np.linalg.norm(across, axis=-1)
    assert np.abs(across[:, 0]).max() > 0.9 * np.median(length), "some are turned by about 90°"
    np.testing.assert_allclose(np.median(length), 0.3 * 40 / 7, rtol=0.05)
    down, across = slopes(cut(shear=45.0, smallest=0.3, largest=0.3))
    assert np.abs(across[:, 0]).max() < 1e-3 < 0.5 < np.abs(down[:, 1]).max()
    _, across = slopes(cut(flip=True, smallest=0.3, largest=0.3))
    assert 15 < (across[:, 1] < 0).sum() < 49


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_every_change_of_color_changes_and_stays_within_bounds(name):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(16, 8, 8, 3)), jnp.float32)
    same = ood.recolor(jax.random.key(0), images, OODConfig(**STILL))
    np.testing.assert_array_equal(same, images)
    changed = np.asarray(ood.recolor(jax.random.key(0), images, OODConfig(**(STILL | {name: 0.3}))))
    assert np.abs(changed - np.asarray(images)).mean(axis=(1, 2, 3)).max() > 0.02
    assert changed.min() >= 0 and changed.max() <= 1


def test_cutmix_pastes_one_rectangle_of_other_images():
    images = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 16, 16, 1))
    shares = []
    for seed in range(40):
        mixed = np.asarray(ood.cutmix(jax.random.key(seed), images, 0.25))[..., 0]
        order = np.array(
            [image[image != index][0] if (image != index).any() else index for index, image in enumerate(mixed)]
        )
        pasted = mixed != np.arange(6)[:, None, None]
        moved = order != np.arange(6)
        if moved.any():
            mask = pasted[moved][0]
            assert (pasted[moved] == mask).all(), "the same place in every image"
            rows, columns = mask.any(axis=1), mask.any(axis=0)
            assert (mask == rows[:, None] & columns[None, :]).all(), "a rectangle"
            assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
            shares.append(mask.mean())
    assert min(shares) < 0.2 and max(shares) > 0.6


def test_samples_of_the_shipped_photographs():
    for image in ood.SAMPLES:
        own = OOD(OODConfig(image=image), dataclasses.replace(small.task(), image_shape=(8, 8, 3)))
        state = own.init(jax.random.key(0))
        assert state.picture.dtype == jnp.uint8 and state.picture.shape == (427, 640, 3)
        images = np.asarray(jax.jit(own.sample, static_argnums=2)(jax.random.key(1), state, 32))
        assert images.shape == (32, 8, 8, 3) and images.min() >= 0 and images.max() <= 1
        assert np.ptp(images.mean(axis=(1, 2, 3))) > 0.2, "patches differ"
        assert images.std(axis=(1, 2)).mean() > 0.03, "patches have content"


def test_a_teacher_of_grey_images_gets_grey_ones(tmp_path):
    color = np.zeros((20, 20, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    Image.fromarray(color).save(tmp_path / "orange.png")
    own = OOD(OODConfig(**(STILL | {"image": str(tmp_path / "orange.png")})), small.task())
    images = own.sample(jax.random.key(1), own.init(jax.random.key(0)), 4)
    assert images.shape == (4, 8, 8, 1)
    np.testing.assert_allclose(images, (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, rtol=1e-4)


def test_a_picture_of_any_size_and_mode_serves(tmp_path):
    for name, mode, size in (("grey.png", "L", (9, 700)), ("clear.png", "RGBA", (50, 8)), ("palette.gif", "P", (3, 3))):
        Image.new(mode, size, 7).save(tmp_path / name)
        own = OOD(OODConfig(image=str(tmp_path / name)), small.task())
        images = np.asarray(own.sample(jax.random.key(1), own.init(jax.random.key(0)), 4))
        assert images.shape == (4, 8, 8, 1) and np.isfinite(images).all()


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "none.png", tmp_path / "text.png", tmp_path):
        own = OOD(OODConfig(image=str(path)), small.task())
        with pytest.raises(ValueError, match=r"synthesis.image .*: allowed are china, flower or the path of a picture"):
            own.init(jax.random.key(0))


def test_there_is_nothing_to_update():
    own = OOD(OODConfig(), small.task())
    state = own.init(jax.random.key(0))
    assert own.config.updates == 0
    new, metrics = own.update(jax.random.key(0), state, *small.networks_at_odds(), small.accept_all)
    assert new is state and not metrics


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("smallest", 0.0),
        ("largest", 1.5),
        ("rotation", 200.0),
        ("shear", 80.0),
        ("cutmix", -1.0),
        ("contrast", 1.0),
        ("updates", 1),
    ],
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"synthesis.{name} .*allowed"):
        OODConfig(**{name: value})
