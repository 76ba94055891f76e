"""Files made to do harm: refused in one line, with nothing run and no memory taken for what is not there."""

import json
import pickle
import resource
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from abd_jax.interop import read_teacher, readers
from tests.interop.torch_files import (
    mapping,
    name,
    number,
    numbers,
    program,
    save,
    storage,
    tensor,
    word,
    write_legacy,
    write_zip,
)

OPTIONS = dict(input_shape=(8, 8, 1), mean=(0.45,), std=(0.3,))
VALUES = np.arange(4, dtype=np.float32).tobytes()


def opened(path):
    with readers.open_arrays(path) as contents:
        return {key: stored.load() for key, stored in contents.arrays.items()}


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        opened(path)
    said = str(error.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 500, said


class Attack:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.fixture(params=["zip", "legacy", "bare"])
def place(request, tmp_path):
    """Writes a whole pickle as each of the formats that hold one."""

    def write(pickled):
        path = tmp_path / "teacher.pth"
        if request.param == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
        elif request.param == "legacy":
            write_legacy(path, b"}", {})
            head = path.read_bytes()
            at = head.index(program(b"}"))
            path.write_bytes(head[:at] + pickled + head[at + len(program(b"}")) :])
        else:
            path.write_bytes(pickled)
        return path

    return write


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_calls_are_refused_and_not_made(place, tmp_path, protocol):
    import os

    traces = [tmp_path / trace for trace in ("system", "eval", "open", "exec")]
    attacks = [
        Attack(os.system, f"touch {traces[0]}"),
        Attack(eval, f"open({str(traces[1])!r}, 'w')"),
        Attack(open, str(traces[2]), "w"),
        Attack(exec, f"open({str(traces[3])!r}, 'w')"),
    ]
    for attack in attacks:
        for tree in (attack, {"state_dict": {"conv1.weight": attack}}, [attack, {}]):
            refused(place(pickle.dumps(tree, protocol)), "refused, nothing was run|no PyTorch file|damaged")
    assert not any(trace.exists() for trace in traces)
    pickle.loads(pickle.dumps(attacks[2], protocol)).close()  # the same bytes do harm where they are trusted
    assert traces[2].exists()


@pytest.mark.parametrize(
    "body",
    [
        name("posix.system") + b"(" + word("true") + b"tR",
        name("os.system") + b"(" + word("true") + b"tR",
        name("torch.hub.load") + b")R",
        name("torch.storage._load_from_bytes") + b")R",
        name("torch._utils._rebuild_tensor_v2.__globals__") + b")R",
        word("os") + word("system") + b"\x93" + b")R",
        b"(" + word("touch /tmp/no") + b"ios\nsystem\n",  # INST
        b"(" + name("os.system") + word("touch /tmp/no") + b"o",  # OBJ
        b"\x82\x01",  # EXT1
        word("id") + b"Q",  # a persistent id that is no storage
        b"Pid\n",
    ],
)
def test_other_ways_to_call(place, body):
    refused(place(program(body)), "refused|no PyTorch file|damaged")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"u",
        b"t",
        b"R",
        b"0",
        b"h\x05",
        b"b",
        b"}]s",
        b"}}Ns",  # a dict as key
        b"}(N)u" + b"(",
        b"(" * 10,
        b"]" + number(1) + b"\x81",
        name("torch._utils._rebuild_tensor_v2") + b")R",
        name("torch._utils._rebuild_parameter") + b"(Nt" + b"R",
        name("torch.FloatStorage") + b")R",
    ],
)
def test_nonsense(place, body):
    refused(place(program(body)), "damaged|refused|no PyTorch file|holds a")


def test_deep_nesting_does_not_exhaust_the_stack(place):
    deep = b"N" + b"\x85" * 200_000
    refused(place(program(deep)), "holds a tuple|damaged")
    refused(place(program(b"}" + deep + b"Ns")), "damaged")  # as a key it would be hashed, level by level


def test_numbers_too_long_to_read(place):
    refused(place(program(b"L" + b"9" * 100_000 + b"L\n")), "digits|damaged|no PyTorch file")


SIZES = {
    "no bytes": (tensor("1", 4, [4], [1]), "content of storage '1' is not there"),
    "more elements": (tensor("0", 5, [5], [1]), "storage '0' declares 5 elements and has 16 bytes"),
    "another type": (tensor("0", 4, [4], [1], kind="torch.DoubleStorage"), "declares 4 elements and has 16 bytes"),
    "larger than its storage": (tensor("0", 4, [5], [1]), r"shape \(5,\) does not fit into its storage of 4"),
    "strides past the end": (tensor("0", 4, [2], [4]), "does not fit"),
    "offset past the end": (tensor("0", 4, [2], [1], offset=3), "does not fit"),
    "all of memory by stride 0": (tensor("0", 4, [2**40], [0]), "does not fit"),
    "all of memory": (tensor("0", 2**40, [2**40], [1]), "declares 1099511627776 elements and has 16 bytes"),
    "negative size": (tensor("0", 4, [-1], [1]), "declares the size, stride or offset -1"),
    "negative stride": (tensor("0", 4, [4], [-1], offset=3), "declares the size, stride or offset -1"),
    "negative offset": (tensor("0", 4, [1], [1], offset=-9), "offset -9"),
    "absurd size": (tensor("0", 4, [2**60], [1]), "declares the size"),
    "many axes": (tensor("0", 4, [1] * 70, [1] * 70), "declares 70 axes and 70 strides"),
    "axes without strides": (tensor("0", 4, [2, 2], [1]), "declares 2 axes and 1 strides"),
    "a quantized storage": (tensor("0", 4, [4], [1], kind="torch.QInt8Storage"), "'torch.QInt8Storage'.* refused"),
    "a way out of the archive": (tensor("../../x", 4, [4], [1]), "is not there"),
    "a size that is true": (name("torch._utils._rebuild_tensor_v2") + b"(" + storage("0", 4) + b"\x88" + numbers([1])
                            + numbers([1]) + b"\x89NtR", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_declared_sizes_are_checked_first(tmp_path, case):
    body, message = SIZES[case]
    path = write_zip(tmp_path / "teacher.pth", mapping({"conv1.weight": body}), {"0": VALUES})
    tracemalloc.start()
    refused(path, message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_many_tensors_of_one_storage_take_memory_only_when_read(tmp_path):
    """1000 tensors of 4 MB each in a file of 5 MB: names that no network has are told before any is read."""
    count = 1_000_000
    body = mapping({f"w{i}": tensor("0", count, [count], [1]) for i in range(1000)})
    path = write_zip(tmp_path / "teacher.pth", body, {"0": bytes(4 * count)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"teacher.pth: the state dict is no wrn-10-1 .*: missing .* and \d+ more"):
        read_teacher(path, architecture="wrn-10-1", num_classes=4, **OPTIONS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


def test_zip_bombs(tmp_path):
    items = mapping({"w": tensor("0", 2**26, [2**26], [1])})
    path = write_zip(tmp_path / "bomb.pth", items, {"0": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, "is compressed, which PyTorch never does")
    # entries over each other: every one claims the bytes of the first
    whole = write_zip(tmp_path / "quine.pth", mapping({}), {str(i): bytes(2**16) for i in range(4)}).read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", whole[end + 16 : end + 20])[0]
    records = whole[start:end]
    pieces = [b"PK\x01\x02" + piece for piece in records.split(b"PK\x01\x02")[1:]]
    data = [piece for piece in pieces if b"archive/data/" in piece]
    copies = [data[0].replace(b"archive/data/0", f"archive/data{i:02}".encode()) for i in range(99)]
    directory = b"".join([piece for piece in pieces if b"archive/data/" not in piece] + copies)
    count = struct.pack("<HH", len(pieces) - len(data) + 99, len(pieces) - len(data) + 99)
    tail = whole[end : end + 8] + count + struct.pack("<II", len(directory), start) + whole[end + 20 :]
    (tmp_path / "quine.pth").write_bytes(whole[:start] + directory + tail)
    refused(tmp_path / "quine.pth", "declare more bytes than the file has")


def test_a_zip_archive_that_is_no_file_of_pytorchs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.zip", "without one data.pkl")
    for entry, kind in (("net/constants.pkl", "TorchScript archive"), ("net/archive_format", "exported program")):
        with zipfile.ZipFile(tmp_path / "program.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("net/data.pkl", program(b"}"))
            archive.writestr(entry, b"")
        refused(tmp_path / "program.pt", rf"{kind} \(torch.* torch.save its state_dict\(\)")
    refused(write_zip(tmp_path / "b.pth", mapping({}), {}, byteorder=b"big"), "byte order is not little endian")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program(b"}"))
        archive.writestr("archive/data.pkl", program(b"N"))
    refused(tmp_path / "c.pth", "two entries of one name")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_refused(tmp_path, legacy):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    whole = save(tmp_path / "whole.pth", state, legacy).read_bytes()
    path = tmp_path / "cut.pth"
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, ".")


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_never_do_more_than_fail(tmp_path, legacy):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    whole = bytearray(save(tmp_path / "whole.pth", state, legacy).read_bytes())
    path, rng = tmp_path / "flipped.pth", np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            opened(path)
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors, PyTorch or Flax msgpack file"),
        (b"", "but an empty one"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "no safetensors, PyTorch or Flax msgpack file, but a PNG image"),
        (b"\xff\xd8\xff\xe0", "but a JPEG image"),
        (b"\x89HDF\r\n\x1a\n", "but an HDF5 file"),
        (b"\x93NUMPY\x01", "but a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a pointer of Git LFS"),
        (b"\x08\x08\x12\x07pytorch", "but an ONNX file"),
        (b"\x1c\0\0\0TFL3", "but a TensorFlow Lite file"),
        (b"<!DOCTYPE html>", "but a web page"),
        (b"hello, world", "no safetensors, PyTorch or Flax msgpack file"),
        (b"\x81\xa6params\x81\xa1a\x01", "is no array"),
        (b"\x81\xa1a\x01", "a msgpack file without params: it has a"),
        (b"\x91" * 5000, "msgpack"),  # lists in lists
        (b"\xdd\xff\xff\xff\xff", "msgpack"),  # a list of 4 billion
        (b"\xc6\xff\xff\xff\xff", "msgpack"),  # 4 GiB of bytes
        (struct.pack("<Q", 2**62) + b"{}", "damaged safetensors"),
        (struct.pack("<Q", 2) + b"{]", "damaged safetensors"),
        (
            (lambda head: struct.pack("<Q", len(head)) + head)(
                b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
            ),
            "damaged safetensors",
        ),
    ],
)
def test_other_formats(tmp_path, content, message):
    path = tmp_path / "teacher.bin"
    path.write_bytes(content)
    refused(path, message)


def safetensors_file(entries, metadata=None):
    """Entries: name → (dtype, shape, bytes)."""
    head, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for key, (dtype, shape, data) in entries.items():
        head[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_file({"a": ("F8_E4M3", [4], bytes(4))}), "a has dtype F8_E4M3: allowed are F64, F32"),
        (safetensors_file({"a": ("C64", [1], bytes(8))}), "a has dtype C64: allowed are"),
        (safetensors_file({"a": ("F32", [2**30], bytes(4))}), "damaged safetensors"),
        (safetensors_file({"a": ("F32", [-1], bytes(4))}), "damaged safetensors"),
        (safetensors_file({"a": ("F32", [1], bytes(4))}, {"b": 3}), "damaged safetensors"),
        (safetensors_file({"a": ("F32", [1], bytes(4))})[:-1], "damaged safetensors"),
        (safetensors_file({"a": ("F32", [1], bytes(4))}) + b"x", "damaged safetensors"),
    ],
)
def test_headers_of_safetensors_that_lie(tmp_path, content, message):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(content)
    refused(path, message)


@pytest.mark.parametrize("number", ["x", "9" * 5000, ""])
def test_metadata_of_safetensors_that_is_nonsense(tmp_path, number):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(safetensors_file({"a": ("F32", [1], bytes(4))}, {"num_classes": number, "architecture": "vgg-11"}))
    expected = "num_classes '.*': allowed are numbers" if number else "say it with num_classes"
    with pytest.raises(ValueError, match=expected) as error:
        read_teacher(path, **OPTIONS)
    assert len(str(error.value)) < 500


def test_names_reach_no_terminal_as_they_are(tmp_path):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(safetensors_file({"a\x1b[2J\nb": ("F32", [1], bytes(4))}))
    with pytest.raises(ValueError, match=r"left over a\?\[2J b|entries \(a\?\[2J b") as error:
        read_teacher(path, **OPTIONS)
    assert str(error.value).isprintable()


def test_arrays_of_objects_in_msgpack(tmp_path):
    import msgpack

    def array(shape, kind, data):
        return msgpack.ExtType(1, msgpack.packb((shape, kind, data), use_bin_type=True))

    for value in (
        array((1,), "O", bytes(8)),
        array((2**40,), "float32", bytes(8)),
        array((-1,), "float32", bytes(7)),
        array((2,), "os.system", bytes(8)),
    ):
        path = tmp_path / "teacher.msgpack"
        path.write_bytes(msgpack.packb({"params": {"a": value}}))
        refused(path, "damaged one")


def test_files_that_are_not_there(tmp_path):
    refused(tmp_path / "none.pth", "no such file")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"}", "holds no state dict, neither at the top nor under state_dict, model"),
        (b"]", "holds a list: allowed is a state dict"),
        (mapping({"epoch": number(3)}), "holds no state dict"),
        (mapping({"a": tensor("0", 4, [4], [1]), "epoch": number(3)}), "its entry 'epoch' is no tensor"),
        (
            mapping({key: mapping({"a": tensor("0", 4, [4], [1])}) for key in ("model", "state_dict")}),
            "holds several networks, under state_dict and model",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path, body, message):
    refused(write_zip(tmp_path / "teacher.pth", body, {"0": VALUES}), message)


def test_what_training_scripts_leave_beside_the_weights_is_left_out(tmp_path):
    """Arguments, NumPy's numbers, an optimizer's state: read over, not made."""
    scalar = name("numpy.core.multiarray.scalar") + b"(" + name("numpy.dtype") + b"(" + word("f8") + b"\x89\x88tR"
    scalar += b"(" + number(3) + word("<") + b"NNNtb" + word("12345678") + b"tR"
    body = mapping(
        {
            "args": name("argparse.Namespace") + b")\x81" + mapping({"lr": number(1)}) + b"b",
            "best": scalar,
            "optimizer": mapping({"state": mapping({}), "lr": b"G" + struct.pack(">d", 0.1)}),
            "state_dict": mapping({"module.a": tensor("0", 4, [2, 2], [1, 2])}),
        }
    )
    found = opened(write_zip(tmp_path / "teacher.pth", body, {"0": VALUES}))
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], [[0, 2], [1, 3]])  # a transposed view


def test_this_file_names_no_file_outside_its_own_place():
    assert not Path("/tmp/no").exists()
