"""Several processes that share a run; two real ones, on loopback, in the slow test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from abd_jax.training import metrics, processes

CYCLES = 6


def started(out, cycles=CYCLES):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-m", "tests.training.one_of_two", port]
    return [
        subprocess.Popen(
            [*command, str(index), str(out), str(cycles)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in (0, 1)
    ]


def finish(pair):
    said = [process.communicate(timeout=500)[0].decode() for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(said)


@pytest.mark.slow
def test_two_processes_train_checkpoint_die_and_resume(tmp_path):
    """One is killed after the first checkpoint; both started again end where two that were left alone do."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(started(whole))
    pair = started(broken)
    try:
        while not list((broken / "checkpoints").glob("2")) and pair[1].poll() is None:
            time.sleep(0.02)
        pair[1].send_signal(signal.SIGKILL)
        pair[1].wait()
    finally:
        for process in pair:
            process.kill()
            process.communicate()  # closes its pipe too
    assert not (broken / "result.json").exists()
    finish(started(broken))
    lines = [metrics.read(place) for place in (whole, broken)]
    assert [line["step"] for line in lines[1]] == list(range(1, CYCLES + 1))
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        assert [one[name] for name in one if name != "seconds"] == [other[name] for name in one if name != "seconds"]
    results = [json.loads((place / "result.json").read_text()) for place in (whole, broken)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}
    assert {path.name for path in whole.iterdir()} == {
        *("best", "checkpoints", "config.json", "metrics.jsonl", "network", "result.json", "samples.npz"),
        *("speed.json", "tensorboard", "vaccine.npz"),
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("here", 2, 0), "allowed are HOST:PORT of process 0, and auto"),
        (("here:12", None, 0), "needs --processes and --process-id"),
        (("here:12", 2, 2), r"--process-id 2: allowed are 0 … 1 of --processes 2"),
        (("auto", 2, None), "finds --processes and --process-id by itself"),
    ],
)
def test_bad_options_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.join(*arguments)


def test_a_single_process_agrees_with_itself_and_uses_the_devices_it_is_told_to(tmp_path):
    assert not processes.several() and processes.primary()
    assert processes.agreed(lambda: {"a": 1}) == {"a": 1}
    assert processes.over(0) == 0 and processes.over(3) == 3
    assert processes.own_directory(tmp_path) == tmp_path
    value = jax.numpy.ones(2)
    assert processes.saved_as(value) is value
    np.testing.assert_array_equal(processes.local({"a": value})["a"], [1, 1])
