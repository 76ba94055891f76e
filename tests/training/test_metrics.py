import json
import time

import jax.numpy as jnp
import pytest

from abd_jax.training.metrics import METRICS_FILE, MetricsWriter, NonFiniteError, began, read


def test_lines_are_written_one_step_late(tmp_path):
    writer = MetricsWriter(tmp_path, began(tmp_path))
    assert writer.write(1, {"a": jnp.asarray(0.5)}) is None
    assert read(tmp_path) == []
    assert writer.write(2, {"a": jnp.asarray(0.25)}) == {"a": 0.5}
    assert [line["step"] for line in read(tmp_path)] == [1]
    assert writer.close() == {"a": 0.25}
    assert [line["a"] for line in read(tmp_path)] == [0.5, 0.25]


def test_a_resumed_run_drops_what_it_repeats_and_lines_cut_short(tmp_path):
    (tmp_path / METRICS_FILE).write_text(
        "".join(json.dumps({"step": step, "seconds": 1.0 * step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "sec'
    )
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    writer = MetricsWriter(tmp_path, began(tmp_path), first_step=3)
    writer.write(3, {})
    writer.close()
    lines = read(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["seconds"] >= 3.0  # the clock goes on


def test_a_kill_while_lines_are_dropped_leaves_them_all(tmp_path, monkeypatch):
    text = "".join(json.dumps({"step": step, "seconds": 1.0 * step}) + "\n" for step in (1, 2, 3))
    (tmp_path / METRICS_FILE).write_text(text)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, began(tmp_path), first_step=2)
    assert (tmp_path / METRICS_FILE).read_text() == text


def test_a_stage_that_goes_on_counts_what_was_spent_before(tmp_path):
    def spent():
        start = began(tmp_path, tmp_path / "normal")
        return time.perf_counter() - start

    assert spent() < 100
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / METRICS_FILE).write_text('{"step": 1, "seconds": 1000.0}\n')
    assert 999 < spent() < 1100
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "seconds": 2000.0}\n{"step"')
    assert 1999 < spent() < 2100


def test_a_value_that_is_not_finite_is_named(tmp_path):
    writer = MetricsWriter(tmp_path, began(tmp_path))
    writer.write(7, {"good": jnp.ones(()), "bad": jnp.asarray(jnp.nan)})
    with pytest.raises(NonFiniteError, match="step 7: bad is not finite"):
        writer.write(8, {})
    writer.close()
    assert [line["step"] for line in read(tmp_path)] == [8]  # the bad step left no line
