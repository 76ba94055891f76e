"""Workers: their results, their deaths, and the order to stop."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from abd_jax.training.executors import Died, Local, Ray, Slurm, Terminated
from tests.training import chores


def ray(workers=2, retries=1):
    pytest.importorskip("ray")
    return Ray(workers, retries)


EXECUTORS = [
    pytest.param(lambda tmp_path: Local(2), id="local"),
    pytest.param(lambda tmp_path: ray(), marks=pytest.mark.cluster, id="ray"),
    pytest.param(lambda tmp_path: Slurm(tmp_path / "slurm", cluster="local"), marks=pytest.mark.cluster, id="slurm"),
]


@pytest.mark.parametrize("make", EXECUTORS)
def test_every_item_is_done_once(make, tmp_path):
    found = dict(make(tmp_path)(chores.square, [1, 2, 3, 4]))
    assert {item: result[0] for item, result in found.items()} == {1: 1, 2: 4, 3: 9, 4: 16}
    assert os.getpid() not in {result[1] for result in found.values()}


@pytest.mark.parametrize("make", EXECUTORS)
def test_a_killed_worker_is_replaced_and_its_item_tried_again(make, tmp_path):
    once, never, always = ((str(tmp_path / name), times) for name, times in (("once", 1), ("never", 0), ("always", 9)))
    found = dict(make(tmp_path)(chores.die, [once, never, always]))
    assert found[once] == 1 and found[never] == 0
    assert isinstance(found[always], Died) and "died 2 times" in str(found[always])


def test_a_worker_that_dies_while_it_is_idle_is_replaced(tmp_path):
    items = [(what, str(tmp_path / "pid")) for what in ("pid", "kill")]
    assert dict(Local(2)(chores.idle_until, items)) == {item: item[0] for item in items}


def test_a_worker_lives_from_item_to_item():
    assert len({pid for _, (_, pid) in Local(1)(chores.square, [1, 2, 3])}) == 1


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
def test_local_workers_do_not_share_cores():
    (_, one), (_, two) = Local(2)(chores.cores, [1, 2])
    assert one and two and not set(one) & set(two)
    assert sorted(one + two) == sorted(os.sched_getaffinity(0))


def test_how_a_worker_died_is_told(tmp_path):
    ((_, died),) = Local(1, retries=0)(chores.die, [(str(tmp_path / "always"), 9)])
    assert str(died) == "its worker died 1 times, last by SIGKILL (out of memory?)"


def test_on_termination_workers_may_save(tmp_path):
    place = tmp_path / "state"

    def terminate():
        while not place.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate).start()
    with pytest.raises(Terminated):
        list(Local(1)(chores.save_when_told, [str(place)]))
    assert place.read_text() == "saved"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("executor", "package"), [(Ray(), "ray"), (Slurm(Path("slurm")), "submitit")])
def test_a_missing_package_is_one_clear_line(executor, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'abd-jax\["):
        next(executor(chores.square, [1]))


@pytest.mark.cluster
def test_no_slurm_here_is_one_clear_line(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="--executor slurm"):
        next(Slurm(tmp_path)(chores.square, [1]))
