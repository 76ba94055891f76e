"""The grid: its cells, what is skipped, what a crash leaves, and that equal shapes compile once."""

import dataclasses
import json

import jax
import pytest

from abd_jax.report import write_matrix_page
from abd_jax.training import cells, dispatch, evaluate, matrix, stage
from abd_jax.training.distill import Distillation
from abd_jax.training.executors import Died
from abd_jax.training.run_directory import RunDirectory, write_json
from tests.training import small

OTHER = small.PRESET.with_method("dfad")


def grid(top, presets=(small.PRESET,), defenses=("none", "abd"), seeds=(0, 1)):
    top.mkdir(exist_ok=True)
    return matrix.cells(top, presets, ("badnet_sq",), defenses, seeds)


def here(work, items):
    """An executor without processes."""
    return ((item, work(item)) for item in items)


@pytest.fixture
def trained(monkeypatch):
    """Names of the cells that were trained; those in `broken` raise."""
    names, broken = [], set()

    def train(cell, log, compile_rounds):
        names.append(cell.name)
        directory = RunDirectory.open(cell.path, cell.facts(("0", "1")), "resume")
        if cell.name in broken:
            print("just before")
            raise RuntimeError("a bad\nday")
        (cell.path / "network").mkdir(exist_ok=True)
        write_json(cell.path / "network" / "network.json", {"digest": "d"})
        rates = evaluate.Rates(0.5, 0.25, 0.125)
        row = stage.row(
            cell.preset,
            cell.trigger,
            cell.seed,
            "student" if cell.defense else "teacher",
            cell.defense or "none",
            0.0,
            rates,
        )
        return directory.finish(row | {"seconds": 1.0})

    monkeypatch.setattr(cells, "train", train)
    for user in (cells, matrix):
        monkeypatch.setattr(user, "load_dataset", lambda name: dataclasses.replace(small.dataset(), classes=("0", "1")))
    return names, broken


def states(top):
    return {entry["name"]: entry["state"] for entry in json.loads((top / "grid.json").read_text())}


def test_cells_are_the_whole_product_and_the_baseline_with_data_is_trained_once(tmp_path):
    teachers, students = grid(tmp_path, (small.PRESET, OTHER), ("none", "clean_kd"))
    assert [cell.name for cell in teachers] == ["teachers/badnet_sq-seed0", "teachers/badnet_sq-seed1"]
    assert [cell.name for cell in students] == [
        *(f"students/zskt/badnet_sq-seed{seed}-{defense}" for defense in ("none", "clean_kd") for seed in (0, 1)),
        *(f"students/dfad/badnet_sq-seed{seed}-none" for seed in (0, 1)),
    ]
    assert len({cell.log for cell in (*teachers, *students)}) == 8
    with pytest.raises(ValueError, match="need one teacher, but their presets small and small differ in teacher"):
        grid(tmp_path, (small.PRESET, dataclasses.replace(OTHER, teacher=dataclasses.replace(OTHER.teacher, epochs=3))))


def test_what_is_done_is_skipped_and_a_crash_is_one_cell(tmp_path, trained, capfd):
    names, broken = trained
    top = tmp_path / "m"
    teachers, students = grid(top)
    broken.update({"students/zskt/badnet_sq-seed0-abd", "teachers/badnet_sq-seed1"})
    told = []
    matrix.run(top, teachers, students, here, lambda cell, outcome, done, total: told.append((done, total)))
    assert states(top) == {
        "teachers/badnet_sq-seed0": "done",
        "teachers/badnet_sq-seed1": "failed",
        "students/zskt/badnet_sq-seed0-none": "done",
        "students/zskt/badnet_sq-seed1-none": "failed",
        "students/zskt/badnet_sq-seed0-abd": "failed",
        "students/zskt/badnet_sq-seed1-abd": "failed",
    }
    assert told[-1] == (6, 6) and len(names) == 4
    entry = json.loads((top / "grid.json").read_text())[4]
    assert entry["error"] == "RuntimeError: a bad day"
    log = (top / entry["log"]).read_text()
    assert "just before" in log and "Traceback" in log and "just before" not in capfd.readouterr().out
    assert [row["role"] for row in json.loads((top / "results.json").read_text())] == ["teacher", "student"]
    write_json(top / "config.json", {"command": "python -m experiments matrix", "started": "", "device": "a desk"})
    page = write_matrix_page(top).read_text()
    assert "RuntimeError: a bad day" in page and "just before" in page and "4 failed" in page

    broken.clear()
    names.clear()
    teachers, students = grid(top, seeds=(0, 1, 2))
    matrix.run(top, teachers, students, here)
    assert set(states(top).values()) == {"done"} and len(states(top)) == 9 and len(names) == 7
    matrix.run(top, *grid(top), here)  # asks for less: nothing is trained, nothing is forgotten
    assert len(states(top)) == 9 and len(names) == 7


def test_a_dead_worker_is_marked_and_a_stopped_cell_waits(tmp_path, trained):
    top = tmp_path / "m"
    teachers, students = grid(top, seeds=(0,))

    def execute(work, items):
        for item in items:
            ends = {"none": Died("killed"), "abd": (cells.Outcome(),)}
            yield item, ends.get(item[0].defense) or work(item)

    matrix.run(top, teachers, students, execute)
    assert list(states(top).values()) == ["done", "failed", "waiting"]
    assert json.loads((top / "grid.json").read_text())[1]["error"] == "killed"


def test_a_lot_whose_worker_died_is_tried_again_cell_by_cell(tmp_path, trained):
    """Without those that were done before it died."""
    top, given = tmp_path / "m", []
    teachers, students = grid(top, defenses=("none",))

    def execute(work, items):
        for item in items:
            given.append([cell.seed for cell in item])
            if len(item) > 1:
                work(item[:1])
            yield item, Died("killed") if len(item) > 1 else work(item)

    matrix.run(top, teachers, students, execute, size=2)
    assert given == [[0], [1], [0, 1], [1]]
    assert set(states(top).values()) == {"done"} and len(json.loads((top / "results.json").read_text())) == 4


def test_students_of_a_teacher_that_was_stopped_wait_for_it(tmp_path, trained):
    top = tmp_path / "m"
    matrix.run(top, *grid(top, seeds=(0,)), lambda work, items: ((item, (cells.Outcome(),)) for item in items))
    assert set(states(top).values()) == {"waiting"}


def test_other_settings_are_refused_where_they_matter_and_only_there(tmp_path, trained):
    names, _ = trained
    top = tmp_path / "m"
    matrix.run(top, *grid(top), here)
    names.clear()
    vaccine = dataclasses.replace(small.PRESET.vaccine, copies=2)
    with pytest.raises(ValueError, match=r"started with preset\.vaccine\.copies = 3, now 2"):
        matrix.run(top, *grid(top, (dataclasses.replace(small.PRESET, vaccine=vaccine),)), here)
    matrix.run(top, *grid(top, (dataclasses.replace(small.PRESET, vaccine=vaccine),), ("none",)), here)
    assert not names


@pytest.mark.optax
def test_cells_of_equal_shape_share_compiled_code(tmp_path, caplog):
    """Another seed and another trigger: the static part is equal, and nothing is compiled again."""
    _, students = grid(tmp_path, defenses=("none",))
    first, second = (Distillation.make(cell.preset, cell.defense, small.teacher()) for cell in students)
    assert first == second and hash(first) == hash(second) and first is not second

    def rounds(run, seed):
        key = jax.random.key(seed)
        return dispatch.compile_rounds(run, key, run.init(key, small.teacher()), small.teacher())

    rounds(first, 0)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        rounds(second, 1)
    assert not [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


@pytest.mark.optax
def test_a_cell_is_trained_in_its_directory(tmp_path, monkeypatch):
    from abd_jax.training import checkpoint

    monkeypatch.setattr(cells, "load_dataset", lambda name: small.dataset())
    _, (student,) = grid(tmp_path / "m", (small.preset(cycles=1),), ("none",), (3,))
    checkpoint.save_network(student.teacher.path / "network", small.teacher(), "wrn-10-1", {})
    (outcome,) = cells.attempt((student,))
    assert outcome.error is None and outcome.row["defense"] == "none" and outcome.row["seed"] == 3
    assert student.done and "0 of 1 steps are done" in student.log.read_text()
