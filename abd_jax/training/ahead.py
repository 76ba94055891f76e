"""Compiles a run's functions for accelerators that are not here, from shapes alone, and reads what the compiler says.

The functions are those of `training.dispatch`, with the same donation and the same shardings as in a run; only the
arguments are abstract and the devices come from a description (`jax.experimental.topologies`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from abd_jax import data, models
from abd_jax.training import dispatch, lockstep, sharding, speed
from abd_jax.training.config import Preset
from abd_jax.training.distill import Distillation, Parts


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at best.

    Attributes:
        flops: bfloat16 operations per second, dense.
        bandwidth: bytes per second to its memory.
        memory: bytes.
        clock: cycles per second, where the compiler counts cycles: `flops` over the operations of all matrix units in a
            cycle, 2 · 128² each, of which a v5e has 4, a v4 and a v5p twice 4.
    """

    flops: float
    bandwidth: float
    memory: float
    clock: float | None = None


CHIPS = {
    # https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
    "v4": Chip(speed.PEAKS["TPU v4"], 1228e9, 32 * 2**30, 1.05e9),
    "v5e": Chip(speed.PEAKS["TPU v5e"], 819e9, 16 * 2**30, 1.5e9),
    "v5p": Chip(speed.PEAKS["TPU v5p"], 2765e9, 95 * 2**30, 1.75e9),
    "v6e": Chip(speed.PEAKS["TPU v6e"], 1640e9, 32 * 2**30),
    # https://www.nvidia.com/en-us/data-center/h100: SXM5, dense
    "h100": Chip(speed.PEAKS["NVIDIA H100 80GB HBM3"], 3350e9, 80 * 2**30),
}
"""Name → its makers' figures."""

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", re.MULTILINE)
_NAME = re.compile(r"%([\w.-]+)")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id")
"""Instructions that move nothing."""
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*?^}", re.MULTILINE | re.DOTALL)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)(?:.*\"known_trip_count\":{\"n\":\"(\d+)\"})?")
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_LIBRARY = re.compile(r"custom_call_target=\"(__(?:cudnn|cublas)[^\"]*)\"")
_HOST = re.compile(r" (infeed|outfeed|send|recv)\(|custom_call_target=\"[^\"]*(callback|HostTransfer)[^\"]*\"")


def topology_mesh(name: str, devices: int | None = None) -> tuple[Chip, Mesh]:
    """The chip and a mesh of the first `devices` of a described machine, e.g. `v5e:2x2` or `h100:1x1x8`.

    A TPU's shape is its topology; a GPU's is slices × hosts × devices.

    Raises:
        ValueError: unknown chip or shape, or no compiler for it here.
    """
    chip, _, shape = name.partition(":")
    gpu = chip == "h100"
    if chip not in CHIPS or not re.fullmatch(r"\d+x\d+x\d+" if gpu else r"\d+x\d+(x\d+)?", shape):
        raise ValueError(
            f"--topology {name!r}: allowed are CHIP:SHAPE with CHIP of {', '.join(CHIPS)}, e.g. v5e:2x2, h100:1x1x8"
        )
    library, package = ("jax_cuda12_plugin", "jax-cuda12-pjrt jax-cuda12-plugin") if gpu else ("libtpu", "abd-jax[tpu]")
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"--topology {name}: its compiler, {library}, is not installed: pip install {package}")
    options = {"platform": "tpu", "topology_name": name}
    if gpu:
        target = Path(__file__).with_name("h100.txtpb").read_text()
        options = {"platform": "cuda", "topology_name": chip, "target_config": target, "topology": shape}
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks Google Cloud which machine this is
    try:
        found = topologies.get_topology_desc(**options).devices
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"--topology {name}: {error}") from None
    if devices is not None and not 1 <= devices <= len(found):
        raise ValueError(f"--devices {devices}: allowed are 1 … {len(found)}, the devices of {name}")
    chosen: np.ndarray = np.array(found[:devices])
    return CHIPS[chip], Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))


def with_batch(preset: Preset, batch: int) -> Preset:
    """The preset with another batch for the student and, where the method has one of its own, for synthesis."""
    own = {"batch": batch} if hasattr(preset.synthesis, "batch") else {}
    synthesis = dataclasses.replace(preset.synthesis, **own)
    return dataclasses.replace(preset, student=dataclasses.replace(preset.student, batch=batch), synthesis=synthesis)


class Part(NamedTuple):
    """A function that a round calls.

    Attributes:
        name: of the function.
        calls: per round.
        images: in one call, over all devices.
        traced: its traced form.
    """

    name: str
    calls: int
    images: int
    traced: Any


def functions(preset: Preset, defense: str, mesh: Mesh, together: int = 1) -> Iterator[Part]:
    """Everything that the last kind of round consists of; the last, `round`, is all of it as one program.

    With several runs `together`, that one program is of them all, and its images are those of one.
    """
    info = data.info(preset.dataset)
    everywhere, split = NamedSharding(mesh, PartitionSpec()), sharding.batch_sharding(mesh)
    channels = info.image_shape[-1]

    def placed(tree: Any, place: NamedSharding = everywhere) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    root = jax.random.key(0)
    network = models.create(
        root,
        preset.teacher.architecture,
        num_classes=len(info.classes),
        input_shape=info.image_shape,
        mean=info.mean or (0.5,) * channels,
        std=info.std or (0.25,) * channels,
        dtype=preset.dtype,
    )
    # Drawn on the host, where a vaccine looks at what it drew; only the shapes go on.
    drawn = Distillation.make(preset, defense, network, classes=info.classes).init(root, network)
    key, teacher, state = placed(root), placed(network), placed(drawn)
    run = Distillation.make(preset, defense, teacher, split, info.classes)
    index = placed(jax.ShapeDtypeStruct((), np.int32))
    phase = run.phases()[-1]
    updates, batch = preset.student.updates, preset.student.batch
    if preset.synthesis.updates:
        traced = dispatch.synthesize.trace(run, phase, key, state, teacher, index)
        yield Part("synthesis update", preset.synthesis.updates, getattr(preset.synthesis, "batch", batch), traced)
    yield Part("lesson", run.lessons(phase), batch, dispatch.teach.trace(run, phase, key, state, teacher, index))
    lesson = placed(jax.eval_shape(functools.partial(dispatch.teach, run, phase), key, state, teacher, index)[0], split)
    delta = []
    if phase.retrospective and not run.pastes:
        last = placed(jax.ShapeDtypeStruct(run.synthesizer.task.image_shape, np.float32))
        given = (key, state, teacher, lesson, index, last)
        ascent = jax.eval_shape(functools.partial(dispatch.begin_ascent, run), *given)
        yield Part("ascent begun", updates, batch, dispatch.begin_ascent.trace(run, *given))
        images, clean = placed((ascent.images, ascent.clean), split)
        ascent = dataclasses.replace(placed(ascent), images=images, clean=clean)
        steps = updates * preset.retrospection.ascent_steps
        yield Part("ascent step", steps, len(ascent.images), dispatch.ascend.trace(run, ascent, state, teacher))
        delta = [ascent.delta]
    if run.hunts_in(phase):
        traced = dispatch.hunt.trace(run, key, state, lesson, index)
        yield Part("hunt", preset.retrospection.hunt, batch, traced)
    yield Part("student update", updates, batch, dispatch.study.trace(run, phase, key, state, lesson, index, *delta))
    if together == 1:
        whole = dispatch.whole_round.trace(run, phase, Parts(dispatch.repeat_on_device), key, state, teacher)
    else:
        whole = lockstep.whole_rounds.trace(run, phase, (key,) * together, (state,) * together, (teacher,) * together)
    yield Part("round", 1, batch, whole)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a compiler says of one program, per device.

    Attributes:
        name: of the function.
        calls: per round.
        images: in one call, per device.
        flops, bytes: of one call; a loop's body counts once, so of `round` they say little. Where a compiler tells
            none, those of the traced program's products and convolutions, and `traffic` of the compiled one.
        memory: bytes of arguments, results and intermediate values while it runs.
        collectives: kind → (how many, bytes).
        host_transfers: instructions that reach the host.
        library_calls: kernels of cuDNN and cuBLAS → how many; a TPU has none.
        fixed: bytes of the compiled program's arguments that do not grow with the batch.
        cycles: the sum that `cycles` reads; 0 if there is none.
        predicted: the compiler's own estimate of one call in seconds; None where it gives none.
        compile_seconds: how long compiling took here.
    """

    name: str
    calls: int
    images: int
    flops: float
    bytes: float
    memory: float
    collectives: dict[str, tuple[int, int]]
    host_transfers: int
    predicted: float | None
    compile_seconds: float
    library_calls: dict[str, int] = dataclasses.field(default_factory=dict)
    fixed: float = 0.0
    cycles: int = 0

    def by_cycles(self, chip: Chip) -> float | None:
        """The seconds that all the cycles take, one instruction after the other; None if there is no count."""
        return self.cycles / chip.clock if self.cycles and chip.clock else None

    def floor(self, chip: Chip) -> float:
        """The roofline: no program with these flops and bytes takes less, in seconds."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)

    def largest_batch(self, chip: Chip) -> int:
        """An estimate: all memory but the fixed grows with the batch."""
        return math.floor(self.images * (chip.memory - self.fixed) / max(self.memory - self.fixed, 1))


def compiled_facts(part: Part) -> Facts:
    """Compiles and reads."""
    lowered = part.traced.lower()
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    devices = len(jax.tree.leaves(compiled.input_shardings)[0].device_set)
    if cost is None:  # the GPU's compiler tells none
        cost = {"flops": speed.flops(part.traced.jaxpr) / devices, "bytes accessed": traffic(text)}
    predicted = cost.get("optimal_seconds", -1.0)
    images = part.images // devices
    return Facts(
        name=part.name,
        calls=part.calls,
        images=images,
        flops=cost.get("flops", 0.0),
        bytes=cost.get("bytes accessed", 0.0),
        memory=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        collectives=collectives(text),
        host_transfers=len(_HOST.findall(text)),
        predicted=predicted if predicted > 0 else None,  # libtpu's is negative for float32
        compile_seconds=seconds,
        library_calls=dict(collections.Counter(_LIBRARY.findall(text))),
        fixed=fixed_bytes(text, images),
        cycles=cycles(text),
    )


def fixed_bytes(hlo: str, images: int) -> int:
    """Bytes of a compiled program's arguments whose first axis is not one of that many images."""
    entry = hlo[hlo.index("\nENTRY ") :]
    shapes = [_SHAPE.findall(result)[0] for _, result, kind, _ in _INSTRUCTION.findall(entry) if kind == "parameter"]
    return sum(_size(shape) for shape in shapes if shape[1].partition(",")[0] != str(images))


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Kind → how many such instructions a compiled program has, and the bytes that they return together."""
    found: dict[str, tuple[int, int]] = {}
    for match in _COLLECTIVE.finditer(hlo):
        count, total = found.get(match["name"], (0, 0))
        found[match["name"]] = count + 1, total + sum(map(_size, _SHAPE.findall(match["result"])))
    return found


def traffic(hlo: str) -> int:
    """Bytes that a compiled program reads and writes: its entry's instructions, each fusion as one of them."""
    sizes: dict[str, int] = {}
    total = 0
    for name, result, kind, operands in _INSTRUCTION.findall(hlo[hlo.index("\nENTRY ") :]):
        sizes[name] = sum(map(_size, _SHAPE.findall(result)))
        if kind not in _FREE:
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in _NAME.findall(operands))
    return total


def cycles(hlo: str) -> int:
    """The sum of the cycles that a TPU's compiler writes beside the instructions of a program, 0 if it writes none.

    A loop's body counts as often as it runs, by what the program says or by the only number in the loop's condition;
    once where neither tells it. Copies that run beside other instructions have no count.
    """
    bodies = {match[1]: match[0] for match in _COMPUTATION.finditer(hlo)}

    def times(condition: str, known: str) -> int:
        bounds = _BOUND.findall(bodies[condition])
        return int(known or (bounds[0] if len(bounds) == 1 else 1))

    def total(name: str) -> int:
        own = sum(map(int, _CYCLES.findall(bodies[name])))
        loops = _LOOP.findall(bodies[name])
        return own + sum(times(condition, known) * total(body) for condition, body, known in loops)

    entry = re.search(r"^ENTRY %(\S+)", hlo, re.MULTILINE)
    return total(entry[1]) if entry else 0


def _size(shape: Sequence[str]) -> int:
    dtype, sides = shape
    return _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
