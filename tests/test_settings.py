"""The checks that every config makes of itself: names, bounds, and finite numbers whether bounded or not."""

import dataclasses
import math

import pytest

from abd_jax.defenses.rivals import Rivals
from abd_jax.settings import check, check_seeds, one_of
from abd_jax.synthesis import METHODS, lookup
from abd_jax.training.config import Preset

CONFIGS = [
    field.default
    for holder in (Preset, Rivals)
    for field in dataclasses.fields(holder)
    if dataclasses.is_dataclass(field.default)
] + [lookup(name).config() for name in METHODS]


@dataclasses.dataclass
class Settings:
    count: int = 3
    rate: float = 0.5
    weights: tuple[float, ...] = (1.0, 2.0)
    name: str = "x"


@pytest.mark.parametrize(
    ("bound", "name", "good", "bad", "allowed"),
    [
        ("positive", "rate", [1e-9, 1e9], [0.0, -1.0, math.nan], "are numbers above 0"),
        ("positive", "count", [1], [0, -5], "are whole numbers from 1"),
        ("nonnegative", "rate", [0.0, 7.0], [-1e-9, math.nan], "are numbers from 0"),
        ("nonnegative", "count", [0], [-1], "are whole numbers from 0"),
        ("shares", "rate", [0.0, 1.0], [-0.1, 1.1, math.nan], "is [0, 1]"),
        ("up_to_one", "rate", [0.1, 1.0], [0.0, 1.1, math.nan], "is (0, 1]"),
        ("below_one", "rate", [0.0, 0.9], [-0.1, 1.0, math.nan], "is [0, 1)"),
    ],
)
def test_bounds(bound, name, good, bad, allowed):
    for value in good:
        check("some", Settings(**{name: value}), **{bound: (name,)})
    for value in bad:
        with pytest.raises(ValueError) as caught:
            check("some", Settings(**{name: value}), **{bound: (name,)})
        assert str(caught.value) == f"some.{name} {value}: allowed {allowed}"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_must_be_finite_in_a_tuple_too(value):
    for settings in (Settings(rate=value), Settings(weights=(1.0, value))):
        with pytest.raises(ValueError, match="allowed are finite numbers"):
            check("some", settings)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_no_config_takes_a_number_that_is_not_finite(config):
    """Every float of every config: one that forgets to check itself is found here."""
    for field in dataclasses.fields(config):
        if isinstance(getattr(config, field.name), float):
            for value in (math.inf, math.nan):
                with pytest.raises(ValueError, match=rf"\.{field.name} {value}"):
                    dataclasses.replace(config, **{field.name: value})


def test_seeds_are_those_of_numpy_and_jax():
    check_seeds("--seed", 0, 2**32 - 1)
    for seed in (-1, 2**32, 10**20):
        with pytest.raises(ValueError, match=rf"--seed {seed}: allowed are whole numbers 0 … 4294967295"):
            check_seeds("--seed", 5, seed)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("blnd", " (did you mean 'blend'?)"),
        ("BLEND", " (did you mean 'blend'?)"),
        ("badnet", " (did you mean 'badnet_square_of_pixels'?)"),
        ("blend,sig", " (several values are separated by spaces, where several are allowed)"),
        ("", ""),
        ("mosaic", ""),
    ],
)
def test_a_name_that_is_not_allowed(value, hint):
    allowed = ("sig", "blend", "badnet_square_of_pixels")
    assert one_of("--trigger", "sig", allowed) == "sig"
    with pytest.raises(ValueError) as caught:
        one_of("--trigger", value, iter(allowed))
    assert str(caught.value) == f"--trigger {value!r}{hint}: allowed are sig, blend, badnet_square_of_pixels"
