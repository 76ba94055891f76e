"""A file is written whole or not at all, whoever writes it."""

import json
import os

import numpy as np
import pytest

from abd_jax.training.run_directory import write_arrays, write_json
from abd_jax.writing import write_whole

WRITERS = {
    "text": lambda path, index: write_whole(path, f"ε = {index}"),
    "bytes": lambda path, index: write_whole(path, bytes([index])),
    "json": lambda path, index: write_json(path, {"index": index}),
    "arrays": lambda path, index: write_arrays(path, index=np.asarray(index)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_is_replaced_whole_or_stays(write, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    write(tmp_path / "file", 1)
    old = (tmp_path / "file").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "file", 2)
    assert (tmp_path / "file").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write(tmp_path / "file", 2)
    assert (tmp_path / "file").read_bytes() != old
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_written_is_what_is_read(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name, 3)
    assert (tmp_path / "text").read_text(encoding="utf-8") == "ε = 3"
    assert (tmp_path / "bytes").read_bytes() == b"\x03"
    assert json.loads((tmp_path / "json").read_text()) == {"index": 3}
    with (tmp_path / "arrays").open("rb") as file, np.load(file) as stored:
        assert int(stored["index"]) == 3
