"""Work for the executors' tests, in a module that imports nothing heavy: workers are new processes."""

import os
import signal
import time
from pathlib import Path


def square(number):
    return number**2, os.getpid()


def idle_until(item):
    """`pid`: this process's, at once. `kill`: kills the process that the file names, then itself, once."""
    what, path = item
    path = Path(path)
    if what == "pid":
        path.write_text(str(os.getpid()))
    elif not (done := path.with_suffix(".done")).exists():
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.3)  # its result is out, and it idles
        done.touch()
        os.kill(int(path.read_text()), signal.SIGKILL)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return what


def die(item):
    """Kills its process as long as the file has fewer lines than asked for."""
    path, times = item
    path = Path(path)
    tries = len(path.read_text().splitlines()) if path.exists() else 0
    if tries < times:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


def save_when_told(path):
    """Works until SIGTERM, then takes its time to save."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    Path(path).write_text("working")
    while not told:
        time.sleep(0.01)
    time.sleep(0.2)
    Path(path).write_text("saved")


def cores(_):
    return sorted(os.sched_getaffinity(0))
