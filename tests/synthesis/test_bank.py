"""The image bank: a ring, what it gives, and what it shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from abd_jax.synthesis import bank as banks
from abd_jax.synthesis.bank import BankConfig

SHAPE = (4, 4, 1)


def batch(*values):
    return jnp.stack([jnp.full(SHAPE, value / 255) for value in values])


def bank(capacity=5):
    return banks.empty(jax.random.key(0), BankConfig(capacity=capacity), SHAPE)


def held(bank):
    return np.asarray(bank.images)[:, 0, 0, 0].tolist()


add = jax.jit(banks.add)


def test_a_ring_overwrites_the_oldest():
    own = add(add(bank(), batch(1, 2)), batch(3, 4))
    assert own.size == 4 and held(own)[:4] == [1, 2, 3, 4]
    own = add(own, batch(5, 6))
    assert own.size == 5 and held(own) == [6, 2, 3, 4, 5]
    for value in range(10, 30, 2):
        own = add(own, batch(value, value + 1))
    assert own.size == 5 and sorted(held(own)) == [25, 26, 27, 28, 29]


def test_exactly_full_is_full():
    own = add(add(bank(4), batch(1, 2)), batch(3, 4))
    assert own.size == 4 and held(own) == [1, 2, 3, 4]
    assert own.written == 4
    for _ in range(50):
        own = add(own, batch(7, 8))
        assert own.size == 4 and own.written < 8


def test_nothing_changes_unless_told():
    before = add(bank(), batch(1, 2))
    after = add(before, batch(3, 4), jnp.asarray(False))
    np.testing.assert_array_equal(after.images, before.images)
    assert after.written == before.written
    assert held(add(before, batch(3, 4), jnp.asarray(True)))[:4] == [1, 2, 3, 4]


def test_images_are_clipped_and_rounded():
    images = jnp.stack([jnp.full(SHAPE, value) for value in (-0.5, 1.7, 100.4 / 255, 100.6 / 255)])
    assert held(add(bank(4), images)) == [0, 255, 100, 101]


def test_a_batch_larger_than_the_bank_is_refused():
    with pytest.raises(ValueError, match=r"synthesis.bank.capacity 2: allowed are whole numbers from the batch's 3"):
        banks.add(bank(2), batch(1, 2, 3))


def test_samples_are_of_what_was_written():
    own = add(bank(50), batch(10, 20, 30))
    images = banks.sample(jax.random.key(1), own, 200, BankConfig(capacity=50, crop=0, flip=False))
    values, counts = np.unique(np.round(np.asarray(images)[:, 0, 0, 0] * 255), return_counts=True)
    assert values.tolist() == [10, 20, 30]
    assert counts.min() > 40


def test_an_empty_bank_gives_noise():
    images = np.asarray(banks.sample(jax.random.key(1), bank(50), 64, BankConfig(capacity=50, crop=0)))
    assert 0.4 < images.mean() < 0.6 and images.std() > 0.2


def test_samples_are_augmented():
    ramp = jnp.broadcast_to(jnp.linspace(0.2, 1.0, 4)[None, :, None], SHAPE)[None]
    own = add(bank(1), ramp)
    plain = BankConfig(capacity=1, crop=0, flip=False)
    np.testing.assert_allclose(
        banks.sample(jax.random.key(1), own, 8, plain), jnp.repeat(ramp, 8, axis=0), atol=1 / 255
    )
    flipped = np.asarray(banks.sample(jax.random.key(1), own, 64, BankConfig(capacity=1, crop=0, flip=True)))
    mirrored = flipped[:, 0, 0, 0] > flipped[:, 0, 3, 0]
    assert 15 < mirrored.sum() < 49
    cropped = np.asarray(banks.sample(jax.random.key(1), own, 64, BankConfig(capacity=1, crop=1, flip=False)))
    assert 0.2 < (cropped == 0).any(axis=(1, 2, 3)).mean() < 1


def test_the_grid_shows_the_newest_first(tmp_path):
    own = add(add(bank(), batch(10, 20)), batch(30, 40))
    assert banks.write_grid(own, tmp_path / "grid.png", columns=3) == 4
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (8, 12)
    assert grid[::4, ::4].tolist() == [[40, 30, 20], [10, 0, 0]]
    with pytest.raises(ValueError, match="the image bank is empty"):
        banks.write_grid(bank(), tmp_path / "none.png")


def test_colors_and_wrapping_in_the_grid(tmp_path):
    own = banks.empty(jax.random.key(0), BankConfig(capacity=2), (4, 4, 3))
    colors = jnp.asarray([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    for color in colors:
        own = banks.add(own, jnp.broadcast_to(color, (1, 4, 4, 3)))
    assert banks.write_grid(own, tmp_path / "grid.png", columns=2) == 2
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid[0, ::4].tolist() == [[0, 0, 255], [0, 255, 0]]


@pytest.mark.parametrize(("name", "value"), [("capacity", 0), ("crop", -1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"synthesis.bank.{name} {value}: allowed are"):
        BankConfig(**{name: value})
