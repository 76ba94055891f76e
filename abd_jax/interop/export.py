"""A network as one file for elsewhere, with a model card beside it.

Every file but Flax's and safetensors' holds the whole function: images `[batch, height, width, channels]` in [0, 1] in,
logits out, normalization inside. The weights' files hold float32 variables, safetensors' under PyTorch's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import serialization
from jax import export
from jaxtyping import Array

from abd_jax.interop.architectures import variables_to_torch
from abd_jax.models import Network

PLATFORMS = ("cpu", "cuda", "tpu")


def _logits(network: Network) -> Callable[[Array], Array]:
    return lambda images: network(images).logits


def to_safetensors(network: Network, architecture: str) -> bytes:
    """The state dict under PyTorch's names; the metadata holds what `read_teacher` and a person need to know."""
    facts = {
        "architecture": architecture,
        "num_classes": network.module.num_classes,
        "input_shape": " ".join(map(str, network.input_shape)),
        "mean": " ".join(map(str, network.mean)),
        "std": " ".join(map(str, network.std)),
    }
    state = variables_to_torch(network.module, network.variables)
    return safetensors.numpy.save(state, {name: str(value) for name, value in facts.items()})


def to_flax(network: Network, architecture: str) -> bytes:
    """`{"params": …, "batch_stats": …}` in Flax's msgpack."""
    return serialization.msgpack_serialize(jax.tree.map(np.asarray, dict(network.variables)))


def to_stablehlo(network: Network, architecture: str) -> bytes:
    """The compiled-for-later function of `jax.export`, for CPU, CUDA and TPU and a batch of any size."""
    shape = export.symbolic_shape(f"batch, {', '.join(map(str, network.input_shape))}")
    exported = export.export(jax.jit(_logits(network)), platforms=PLATFORMS)
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def to_onnx(network: Network, architecture: str) -> bytes:
    """An ONNX model by jax2onnx, for a batch of any size; its input is `images`, its output `logits`.

    Raises:
        ValueError: jax2onnx is not installed, or onnxruntime computes other logits from what it made.
    """
    try:
        import onnxruntime
        from jax2onnx import to_onnx as convert
    except ImportError as error:
        raise ValueError("format onnx needs the extra `onnx`: pip install 'abd-jax[onnx]'") from error
    model = convert(
        _logits(network),
        [("batch", *network.input_shape)],
        model_name=architecture,
        input_names=["images"],
        output_names=["logits"],
    )
    content = model.SerializeToString()
    images = np.random.default_rng(0).uniform(size=(2, *network.input_shape)).astype(np.float32)
    (there,) = onnxruntime.InferenceSession(content).run(["logits"], {"images": images})
    here = np.asarray(jax.jit(_logits(network))(jnp.asarray(images)))
    if not np.allclose(there, here, rtol=1e-3, atol=1e-3 * np.abs(here).max()):
        raise ValueError(f"format onnx: jax2onnx converted this {architecture} to a network with other logits")
    return content


FORMATS: dict[str, Callable[[Network, str], bytes]] = {
    "safetensors": to_safetensors,
    "stablehlo": to_stablehlo,
    "onnx": to_onnx,
    "flax": to_flax,
}
_LOADING = {
    "safetensors": 'safetensors.torch.load_file("{file}")  # or abd_jax.interop.read_teacher("{file}", …)',
    "stablehlo": 'jax.export.deserialize(bytearray(open("{file}", "rb").read())).call(images)',
    "onnx": 'onnxruntime.InferenceSession("{file}").run(None, {{"images": images}})',
    "flax": 'flax.serialization.msgpack_restore(open("{file}", "rb").read())',
}


def card(network: Network, format: str, file: str, facts: Mapping[str, Any]) -> str:
    """The model card, Markdown.

    Args:
        network: what was exported.
        format: one of `FORMATS`.
        file: name of the exported file.
        facts: what is known of it: `architecture`, `digest`, `role`, `defense`, `acc`, …; nested ones by dotted names.
    """
    height, width, channels = network.input_shape
    about = {
        "architecture": facts.get("architecture"),
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(network.params)):,}",
        "classes": network.module.num_classes,
        "input": f"{height} × {width} pixels, {channels} channel(s), in [0, 1], `[batch, height, width, channels]`",
        "normalization (inside)": f"mean {list(network.mean)}, standard deviation {list(network.std)}",
        "compute dtype": jnp.dtype(network.module.dtype).name,
        "SHA-256 of the variables": facts.get("digest"),
    }
    facts = {"method": facts.get("preset.method"), **facts}
    distilled = () if facts.get("role") == "teacher" else ("method", "defense", "teacher.digest")
    origin = ("role", *distilled, "dataset", "trigger", "target", "seed")
    measured = {"acc": "ACC", "asr": "ASR", "ra": "RA"}
    lines = [f"# {file}", "", *_table({name: value for name, value in about.items() if value is not None})]
    lines += ["", "## Where it comes from", "", *_table({name: _known(facts.get(name)) for name in origin})]
    rates = {shown: f"{100 * facts[name]:.2f} %" for name, shown in measured.items() if facts.get(name) is not None}
    meaning = (
        "ACC: accuracy on clean test images. ASR: triggered ones given the attacker's class. RA: keeping their own."
    )
    lines += ["", "## Measured", "", *([*_table(rates), "", meaning] if rates else ["Nothing is known."])]
    signs = {name: value for name, value in facts.items() if name.startswith("audit.")}
    if signs:
        lines += ["", "## Audit", "", *_table({name.removeprefix("audit."): v for name, v in signs.items()})]
    settings = {name: value for name, value in facts.items() if name.startswith("preset.")}
    if settings:
        lines += ["", "## Settings", "", *_table({name.removeprefix("preset."): v for name, v in settings.items()})]
    lines += ["", "## Loading", "", "```python", _LOADING[format].format(file=file), "```", ""]
    return "\n".join(lines)


def _known(value: Any) -> Any:
    return "not known" if value is None else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one mapping, by dotted names."""
    merged: dict[str, Any] = {}
    for name, value in tree.items():
        merged |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return merged


def _table(rows: Mapping[str, Any]) -> list[str]:
    safe = {name: str(value).replace("|", "\\|").replace("\n", " ") for name, value in rows.items()}
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in safe.items())]


def check_place(path: Path, overwrite: bool, option: str, asks: str) -> Path:
    """Where the model card of a file goes, if both may be written.

    Args:
        path: of the file.
        overwrite: whether what is there may be replaced.
        option: that names the path, for messages.
        asks: how one says `overwrite`, for messages.

    Raises:
        ValueError: one of them exists and may not be replaced, or there is no directory for them.
    """
    beside = path.with_name(f"{path.name}.md")
    for place in (path, beside):
        if place.is_dir() or (place.exists() and not overwrite):
            raise ValueError(f"{option} {place}: exists already; use {asks} to replace it, or another name")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path}: there is no directory {path.absolute().parent}")
    return beside
