"""Facts of the compiled functions: what moves between devices, and what may not grow unnoticed."""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
from pathlib import Path

import jax
import pytest
from flax.traverse_util import flatten_dict

from abd_jax.synthesis.cmi import CMIConfig
from abd_jax.training import ahead, dispatch, distill, sharding
from abd_jax.training.distill import Distillation, Parts
from tests.training import small

pytestmark = pytest.mark.optax

INVERTED = [("inverted", small.INVERTED, "abd")]
GOLDEN = Path(__file__).with_name("facts.json")
HLO = """
  %all-reduce.1 = (f32[16]{0}, f32[10,64]{1,0}) all-reduce(%a, %b), channel_id=1
  %all-reduce-start = bf16[3,3]{1,0} all-reduce-start(%c), channel_id=2
  %all-reduce-done = bf16[3,3]{1,0} all-reduce-done(%all-reduce-start)
  %all-gather.2 = f32[8]{0:T(256)} all-gather(%d), channel_id=3
  %loss = f32[] add(%all-reduce.1, %e)
"""


def test_collectives_of_a_program():
    assert ahead.collectives(HLO) == {"all-reduce": (2, 4 * (16 + 640) + 2 * 9), "all-gather": (1, 32)}


def test_traffic_is_what_the_entrys_instructions_read_and_write():
    """A fusion of 4 and 8 numbers to 4; a loop's condition and a fusion's inside are no instructions of the entry."""
    hlo = """HloModule jit_f
%fused (p: f32[4]) -> f32[4] {
  %inside = f32[4]{0} add(%p, %p)
}

ENTRY %main (a: f32[4], b: bf16[8]) -> (f32[4]) {
  %a = f32[4]{0} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %fusion.1 = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused
  %call = (f32[2]{0}, u8[16]{0}) custom-call(%fusion.1), custom_call_target="__cudnn$convForward"
  ROOT %tuple = (f32[4]{0}) tuple(%fusion.1)
}
"""
    assert ahead.traffic(hlo) == (16 + 16 + 16) + (8 + 16 + 16)


def test_fixed_are_the_arguments_of_another_number():
    """Of an entry's parameters, those whose first axis is not one of the images; a scalar is fixed."""
    hlo = """HloModule jit_f
ENTRY %main (a: f32[4,2], b: bf16[8], c: s32[]) -> f32[4] {
  %a = f32[4,2]{1,0} parameter(0)
  %b = bf16[8]{0} parameter(1), sharding={replicated}
  %c = s32[] parameter(2)
  ROOT %d = f32[4]{0} add(%a, %c)
}
"""
    assert ahead.fixed_bytes(hlo, 4) == 16 + 4
    assert ahead.fixed_bytes(hlo, 8) == 32 + 4


def test_cycles_are_the_entrys_and_a_loops_as_often_as_it_runs():
    hlo = """HloModule jit_f
%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  ROOT %fusion.2 = (s32[], f32[4]{0}) fusion(%p), kind=kLoop, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%condition.1 (p.1: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%p.1, %p.1), direction=LT
}

ENTRY %main.3 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %fusion.1 = f32[4]{0} fusion(%a), kind=kLoop, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %w = s32[] while(%t), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
}
"""
    assert ahead.cycles(hlo) == 100 + 10 * 7
    unsaid = hlo.replace(', backend_config={"known_trip_count":{"n":"10"}}', "")
    assert ahead.cycles(unsaid) == 100 + 7
    assert (
        ahead.cycles(unsaid.replace("  ROOT %less", "  %bound = s32[]{:T(128)} constant(5)\n  ROOT %less"))
        == 100 + 5 * 7
    )
    assert ahead.cycles(HLO) == 0
    chip = ahead.Chip(flops=1.0, bandwidth=1.0, memory=1.0, clock=1000.0)
    facts = ahead.Facts("f", 1, 8, 0.0, 0.0, 0.0, {}, 0, None, 0.0, cycles=170)
    assert facts.by_cycles(chip) == 0.17
    assert facts.by_cycles(dataclasses.replace(chip, clock=None)) is None


def test_eight_devices_exchange_gradients_and_statistics_and_no_more():
    """One student update: every gradient once, a mean and a variance per channel, and the metrics' scalars."""
    facts = next(ahead.compiled_facts(part) for part in _parts("none", 8) if part.name == "student update")
    student = Distillation.make(small.PRESET, "none", small.teacher()).init(small.key(), small.teacher()).student
    statistics = flatten_dict(student.variables["batch_stats"])
    numbers = sum(leaf.size for leaf in (*jax.tree.leaves(student.params), *statistics.values()))
    scalars = 4 * len(("student/kl", "student/attention"))
    assert facts.collectives.keys() == {"all-reduce"}
    assert facts.collectives["all-reduce"][1] == 4 * numbers + scalars
    assert facts.collectives["all-reduce"][0] <= 3 * len(statistics) // 2 + 1
    assert facts.host_transfers == 0


def test_shuffled_copies_stay_where_their_images_are():
    """The vaccine's copies of an image lie beside it: no device asks another for activations."""
    for part in _parts("sv", 8):
        assert ahead.compiled_facts(part).collectives.keys() <= {"all-reduce"}, part.name


def per_round():
    """Lowered flops and bytes of everything in a round, and how often the host compiles and dispatches."""
    rounds = {}
    for kind, preset, defense in (("none", small.PRESET, "none"), ("abd", small.PRESET, "abd"), *INVERTED):
        cost = [(part.calls, part.traced.lower().cost_analysis()) for part in _parts(defense, 1, preset)]
        rounds[kind] = {
            fact: sum(calls * analysis[fact] for calls, analysis in cost) for fact in ("flops", "bytes accessed")
        }
        rounds[kind]["dispatches"] = sum(calls for calls, _ in cost)
    return rounds


def _parts(defense, devices, preset=small.PRESET):
    """Without the whole round, which comes last."""
    found = ahead.functions(preset, defense, sharding.data_mesh(devices))
    return itertools.takewhile(lambda part: part.name != "round", found)


def test_a_round_costs_no_more_than_it_did():
    """Facts, not seconds: `UPDATE_GOLDEN=1` accepts new ones, and the diff shows them."""
    now = per_round()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(now, indent=2) + "\n")
    then = json.loads(GOLDEN.read_text())
    for defense, facts in now.items():
        for fact, value in facts.items():
            assert value <= 1.01 * then[defense][fact], f"{defense}: {fact} grew"
            assert value >= 0.99 * then[defense][fact], f"{defense}: {fact} fell: accept it with UPDATE_GOLDEN=1"


@pytest.mark.parametrize(
    ("kind", "preset", "defense", "programs"), [("none", small.PRESET, "none", 3), (*INVERTED[0], 4)]
)
def test_the_host_dispatches_as_often_as_the_parts_say(monkeypatch, kind, preset, defense, programs):
    counts = {"compilations": 0, "dispatches": 0}
    compile_, call = jax.stages.Lowered.compile, jax.stages.Compiled.__call__

    def counted(name, function):
        def wrapper(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return wrapper

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted("compilations", compile_))
    monkeypatch.setattr(jax.stages.Compiled, "__call__", counted("dispatches", call))
    run = Distillation.make(preset, defense, small.teacher())
    state = run.init(small.key(), small.teacher())
    last = run.phases()[-1]
    monkeypatch.setattr(Distillation, "phases", lambda self: (last,))
    rounds = dispatch.compile_rounds(run, small.key(), state, small.teacher())
    assert counts == {"compilations": programs, "dispatches": 0}
    rounds[last](small.key(), state, small.teacher())
    assert counts["dispatches"] == json.loads(GOLDEN.read_text())[kind]["dispatches"]


@pytest.mark.parametrize("method", ["zskt", "dafl"])
@pytest.mark.parametrize("defense", ["none", "abd"])
def test_a_round_has_as_many_lessons_as_are_counted(method, defense):
    """One for all updates, or one for each; one more where a trigger is hunted on images that no update shares."""
    run = Distillation.make(small.INVERTED.with_method(method), defense, small.teacher())
    phase, taught = run.phases()[-1], []
    parts = Parts(dispatch.repeat_from_host, teach=lambda *given: taught.append(given) or distill.teach(*given))
    state = run.init(small.key(), small.teacher())
    jax.eval_shape(functools.partial(distill.distill_round, run, phase, parts), small.key(), state, small.teacher())
    assert len(taught) == run.lessons(phase) == {"zskt": 1, "dafl": 2 + (defense == "abd")}[method]


def test_another_batch():
    preset = dataclasses.replace(small.PRESET, method="cmi", synthesis=CMIConfig())
    changed = ahead.with_batch(preset, 24)
    assert changed.student.batch == changed.synthesis.batch == 24
    assert ahead.with_batch(small.PRESET, 24).synthesis == small.PRESET.synthesis


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    chip = ahead.Chip(flops=100.0, bandwidth=10.0, memory=1000.0)
    facts = ahead.Facts("f", 1, 8, 200.0, 10.0, 300.0, {}, 0, None, 0.0, fixed=100.0)
    assert facts.floor(chip) == 2.0
    assert dataclasses.replace(facts, bytes=50.0).floor(chip) == 5.0
    assert facts.largest_batch(chip) == 36


@pytest.mark.parametrize("topology", ["v5x:2x2", "v5e", "v5e:2", "h100:8"])
def test_unknown_topologies_are_refused(topology):
    with pytest.raises(ValueError, match=r"--topology '.*': allowed are CHIP:SHAPE with CHIP of v4, .*, h100"):
        ahead.topology_mesh(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_one_line_says_what_to_install():
    with pytest.raises(ValueError, match=r"libtpu, is not installed: pip install abd-jax\[tpu\]"):
        ahead.topology_mesh("v5e:2x2")
