"""What a file of weights does not say by itself, given by a person or by a small YAML file beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from abd_jax.models import SIZES
from abd_jax.settings import nearest

_MOST_BYTES = 65_536
_MOST_CLASSES = 100_000


@dataclasses.dataclass(frozen=True)
class Description:
    """Facts of a network in a stranger's file; None or empty: not said.

    Attributes:
        architecture: see `models.build`.
        num_classes: size of the logits.
        image_size: height and width of the images, or one number for both.
        mean, std: per-channel normalization of images in [0, 1] that the network was trained with; their number is the
            number of channels.
        classes: names in label order, for methods that read them.
    """

    architecture: str | None = None
    num_classes: int | None = None
    image_size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes is not None and not 2 <= self.num_classes <= _MOST_CLASSES:
            raise ValueError(f"num_classes {self.num_classes}: allowed are 2 … {_MOST_CLASSES}")
        if len(self.image_size) > 2 or any(side not in SIZES for side in self.image_size):
            raise ValueError(f"image_size {_shown(self.image_size)}: allowed are one or two sides of 8–64 pixels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and (len(values) not in (1, 3) or not all(map(math.isfinite, values))):
                raise ValueError(f"{name} {_shown(values)}: allowed are 1 or 3 finite numbers, one per channel")
        if any(not 0 <= value <= 1 for value in self.mean) or any(value > 1 for value in self.std):
            raise ValueError(
                f"mean {_shown(self.mean)}, std {_shown(self.std)}: allowed are at most 1, since they are of images in "
                "[0, 1]; divide what is of 0 … 255 by 255"
            )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {_shown(self.std)}: allowed are numbers above 0")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ValueError(f"mean and std: need as many numbers each, got {len(self.mean)} and {len(self.std)}")
        if self.classes and self.num_classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes: {len(self.classes)} names for num_classes {self.num_classes}")

    def over(self, other: Description) -> Description:
        """This, with the other's facts where nothing is said here."""
        return dataclasses.replace(other, **self.said)

    @property
    def said(self) -> dict[str, Any]:
        """The facts that are said, by name."""
        return {name: value for name, value in vars(self).items() if value not in (None, ())}

    def against(self, other: Description, who: str) -> list[str]:
        """A line for each fact that the other tells differently, where what is said here counts.

        Args:
            other: what is overruled.
            who: tells that, in words.
        """
        return [
            f"{name} {_shown(value)} counts, not {_shown(other.said[name])}, which {who} says"
            for name, value in self.said.items()
            if name in other.said and _comparable(name, value) != _comparable(name, other.said[name])
        ]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, channels.

        Raises:
            ValueError: size or normalization were not said.
        """
        missing = [name for name in ("image_size", "mean", "std") if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"nothing says its {' and '.join(missing)}: say it as an option or in a YAML file beside it "
                "(image_size: 32, mean: [0.49, 0.48, 0.45], std: […])"
            )
        return self.image_size[0], self.image_size[-1], len(self.mean)


def beside(path: Path) -> Description:
    """What the YAML file beside a file of weights says: `FILE.yaml`, or the same name with `.yaml` or `.yml`.

    Raises:
        ValueError: it is no mapping of known facts.
    """
    for name in (path.with_name(f"{path.name}.yaml"), path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if name.is_file() and name != path:
            try:
                return parse(_read(name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return Description()


def from_metadata(metadata: Mapping[str, str]) -> Description:
    """What `export` writes into a safetensors file; a stranger's other entries are passed over.

    Raises:
        ValueError: an entry that is no number, or is outside its bounds.
    """
    facts: dict[str, Any] = {}
    if "architecture" in metadata:
        facts["architecture"] = metadata["architecture"]
    if "num_classes" in metadata:
        (facts["num_classes"],) = _numbers(metadata, "num_classes", int)[:1] or (None,)
    if "input_shape" in metadata:
        facts["image_size"] = _numbers(metadata, "input_shape", int)[:2]
    for name in ("mean", "std"):
        if name in metadata:
            facts[name] = _numbers(metadata, name, float)
    return Description(**facts)


def _numbers(metadata: Mapping[str, str], name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(map(kind, metadata[name].split()))
    except ValueError:
        raise ValueError(f"its metadata's {name} {metadata[name][:40]!r}: allowed are numbers") from None


def parse(content: object) -> Description:
    """A description from what YAML or JSON holds.

    Raises:
        ValueError: a fact that is not known, or of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"expected facts by name, found {type(content).__name__}")
    known = [field.name for field in dataclasses.fields(Description)]
    facts: dict[str, Any] = {}
    if "arch" in content and "architecture" in content:
        raise ValueError("arch and architecture: are the same fact; only one of them is allowed")
    for name, value in content.items():
        name = "architecture" if name == "arch" else name
        if name not in known:
            near = nearest(str(name), known)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise ValueError(f"unknown fact {str(name)[:40]!r}{hint}: allowed are {', '.join(known)}")
        facts[name] = _FACTS[name](name, value)
    return Description(**facts)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {type(value).__name__}")
    return value


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number, found {type(value).__name__}")
    return value


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a number, found {type(value).__name__}")
    return float(value)


def _several(one: Any) -> Any:
    return lambda name, value: tuple(
        one(name, item) for item in (value if isinstance(value, list | tuple) else [value])
    )


_FACTS = {
    "architecture": _text,
    "num_classes": _integer,
    "image_size": _several(_integer),
    "mean": _several(_number),
    "std": _several(_number),
    "classes": _several(lambda name, value: str(value) if isinstance(value, int) else _text(name, value)),
}


def _read(path: Path) -> object:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes: allowed are {_MOST_BYTES}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no YAML ({' '.join(str(error).split())[:120]})") from error


def _comparable(name: str, value: Any) -> Any:
    """Equal for what means the same: one number for both sides, names in small or capital letters."""
    if name == "image_size":
        return value[0], value[-1]
    return value.lower() if name == "architecture" else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value[:6])) if isinstance(value, tuple) else str(value)
