"""PyTorch's files without PyTorch and without trust: a pickle reader that can build tensors and nothing else.

A pickle is a program for a stack machine, and Python's own runs whatever the program names. This one knows the opcodes
that a state dict needs, calls nothing, and refuses every name outside a short list; so the worst that a file can do is
be refused. Sizes are checked against the bytes that are there before memory is taken: zip entries must be stored, not
compressed, and add up to no more than the file; a tensor must lie inside its storage and be no larger than it.

Both of PyTorch's formats are read: the zip archive (since 1.6) and the sequence of pickles before it.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import jax.numpy as jnp
import numpy as np

from abd_jax.interop.stored import Stored

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_BYTES = 32 * 2**20
"""Of a pickle, tensors' contents apart; a state dict of 10 000 entries has 2 MiB."""
_MOST_OPCODES = 1_000_000
_MOST_AXES = 8
_STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_INERT = {
    "_codecs.encode",
    "argparse.Namespace",
    "collections.defaultdict",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "torch.Size",
    "torch.device",
}
"""Names that training scripts leave beside the weights; what would be made of them is left out."""
_DICT = "collections.OrderedDict"
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETER = "torch._utils._rebuild_parameter"
_ALLOWED = {_DICT, _PARAMETER, *_TENSORS, *_STORAGES, *_INERT}
_ATOMS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_PROGRAMS = {
    "/constants.pkl": "a TorchScript archive (torch.jit.save)",
    "/archive_format": "an exported program (torch.export.save)",
    "/serialized_exported_program.json": "an exported program (torch.export.save)",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


class _Mark:
    pass


class _Inert:
    """What a file would have had made; nothing was."""


Locate = Callable[[_Storage], Callable[[], bytes]]
"""Storage → what reads its bytes, once their number is found to be right."""


class _Machine:
    """The stack machine of one pickle."""

    def __init__(self, locate: Locate):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.locate = locate

    def run(self, file: io.BytesIO | mmap.mmap) -> Any:
        """Runs one pickle and leaves the file behind it.

        Raises:
            ValueError: an opcode or a name that is not allowed, or no pickle at all.
        """
        try:
            for count, (name, argument) in enumerate(_opcodes(file)):
                if count > _MOST_OPCODES:
                    raise ValueError(f"its pickle has more than {_MOST_OPCODES} opcodes")
                self._step(name, argument)
        except (IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error
        if len(self.stack) != 1:
            raise ValueError("its pickle is damaged (not one value at its end)")
        return self.stack[0]

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _ATOMS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(stack) < size:
                raise IndexError
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._marked()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            if not isinstance(stack[-1], _Inert):
                _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._marked()
            if not isinstance(stack[-1], _Inert):
                _of(dict, stack[-1]).update(_pairs(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "GLOBAL":
            stack.append(_allowed(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{_of(str, module)}.{_of(str, attribute)}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._made(_of(_Global, function).name, _of(tuple, arguments)))
        elif name == "BUILD":
            stack.pop()  # attributes, such as a state dict's `_metadata`
        elif name == "BINPERSID":
            stack.append(_storage(_of(tuple, stack.pop())))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle has the opcode {name}, which no state dict needs: refused")

    def _marked(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _Mark:
            at -= 1
            if at < 0:
                raise IndexError
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What calling `name` would give, made without calling it."""
        if name in _INERT:
            return _Inert()
        if name == _DICT:
            return dict() if not arguments else _pairs(list(itertools.chain(*_of(list, arguments[0]))))
        if name == _PARAMETER:
            return _of(Stored, arguments[0])
        if name in _TENSORS:
            return self._tensor(*arguments[:4])
        raise ValueError(f"its pickle calls {name}: refused")

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Stored:
        storage = _of(_Storage, storage)
        for number in (offset, *_of(tuple, size), *_of(tuple, stride)):
            if _of(int, number) < 0 or number > 2**48:
                raise ValueError(f"a tensor declares the size, stride or offset {str(number)[:20]}")
        if len(size) != len(stride) or len(size) > _MOST_AXES:
            raise ValueError(f"a tensor declares {len(size)} axes and {len(stride)} strides")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count and (count > storage.count or last >= storage.count):
            raise ValueError(f"a tensor of shape {size} does not fit into its storage of {storage.count} elements")
        read = self.locate(storage)

        def load() -> np.ndarray:
            if not count:
                return np.zeros(size, storage.dtype)
            flat = np.frombuffer(read(), storage.dtype)[offset:]
            steps = [step * storage.dtype.itemsize for step in stride]
            array = np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)
            return array.astype(np.float32 if storage.dtype == jnp.bfloat16 else storage.dtype)

        return Stored(size, load)


def _opcodes(file: io.BytesIO | mmap.mmap) -> Iterator[tuple[str, Any]]:
    """The opcodes up to the first STOP, with their arguments; they are decoded, not carried out."""
    opcodes = pickletools.genops(cast(IO[bytes], file))
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except ValueError as error:
            raise ValueError(f"its pickle is damaged ({str(error)[:80]})") from error
        if opcode.name == "STOP":
            return
        yield opcode.name, argument


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict of alternating keys and values; only keys whose hash costs nothing, and no recursion."""
    keys = items[::2]
    if len(items) % 2 or not all(isinstance(key, str | int | float | None) for key in keys):
        raise TypeError
    return dict(zip(keys, items[1::2], strict=True))


def _allowed(name: str) -> _Global:
    if name not in _ALLOWED:
        raise ValueError(
            f"its pickle asks for {name[:80]!r}, which is no tensor: refused, nothing was run; "
            "if you trust the file, save `model.state_dict()` alone from PyTorch"
        )
    return _Global(name)


def _storage(identifier: tuple[Any, ...]) -> _Storage:
    word, kind, key, _, count, *view = identifier
    if word != "storage" or any(part is not None for part in view):
        raise ValueError("its pickle refers to something that is no storage: refused")
    name = _of(_Global, kind).name
    if name not in _STORAGES:
        raise ValueError(f"a tensor's storage is a {name}: allowed are {', '.join(sorted(_STORAGES))}")
    if _of(int, count) < 0:
        raise ValueError(f"a storage declares {count} elements")
    return _Storage(_of(str, key), _STORAGES[name], count)


def _check_size(storage: _Storage, there: int) -> None:
    if storage.count * storage.dtype.itemsize != there:
        raise ValueError(f"storage {storage.key[:20]!r} declares {storage.count} elements and has {there} bytes")


@contextmanager
def open_zip(path: Path) -> Iterator[Any]:
    """The content of PyTorch's zip archive, tensors as `Stored` that can be read while the file is open.

    Raises:
        ValueError: no such archive, a name or opcode that is not allowed, or sizes that do not add up.
    """
    whole = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise ValueError("its archive has two entries of one name")
            for name, kind in _PROGRAMS.items():
                if any(name in f"/{entry}" for entry in entries):
                    raise ValueError(
                        f"{kind}, a program and no state dict: load it with PyTorch, torch.save its state_dict()"
                    )
            for info in entries.values():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ValueError(f"its entry {info.filename[:80]!r} is compressed, which PyTorch never does")
            if sum(info.file_size for info in entries.values()) > whole:
                raise ValueError("its entries declare more bytes than the file has")
            pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError("no PyTorch file: a zip archive without one data.pkl")
            top = pickles[0][: -len("data.pkl")]
            if entries[pickles[0]].file_size > _MOST_BYTES:
                raise ValueError(f"its pickle has more than {_MOST_BYTES} bytes")
            order = f"{top}byteorder"
            if order in entries and archive.read(order)[:8] != b"little":
                raise ValueError("its byte order is not little endian")

            def locate(storage: _Storage) -> Callable[[], bytes]:
                name = f"{top}data/{storage.key}"
                if name not in entries:
                    raise ValueError(f"the content of storage {storage.key[:20]!r} is not there")
                _check_size(storage, entries[name].file_size)
                return lambda: archive.read(name)

            yield _Machine(locate).run(io.BytesIO(archive.read(pickles[0])))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"damaged archive ({error})") from error


@contextmanager
def open_legacy(path: Path) -> Iterator[Any]:
    """The content of a PyTorch file from before 1.6, as `open_zip`: five pickles, then the storages one by one.

    Raises:
        ValueError: no such file, a name or opcode that is not allowed, or sizes that do not add up.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        places: dict[str, tuple[int, int]] = {}
        storages: list[_Storage] = []

        def refuse(storage: _Storage) -> Callable[[], bytes]:
            raise ValueError("no PyTorch file: its head refers to a tensor")

        def locate(storage: _Storage) -> Callable[[], bytes]:
            storages.append(storage)

            def read() -> bytes:
                start, end = places[storage.key]
                return view[start:end]

            return read

        magic, protocol, system = (_Machine(refuse).run(view) for _ in range(3))
        if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
            raise ValueError("a pickle, and no PyTorch file")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its byte order is not little endian")
        content = _Machine(locate).run(view)
        keys = _Machine(refuse).run(view)
        declared = {storage.key: storage for storage in storages}
        if not isinstance(keys, list) or len(keys) > len(view) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its list of storages is damaged")
        at = view.tell()
        for key in keys:
            count = int.from_bytes(view[at : at + 8], "little")
            start = at + 8
            if key not in declared:
                raise ValueError(f"its storage {key[:20]!r} belongs to no tensor")
            at = start + count * declared[key].dtype.itemsize
            if at > len(view) or start > len(view):
                raise ValueError(f"truncated: storage {key[:20]!r} declares {count} elements, which are not there")
            _check_size(declared[key], at - start)
            places[key] = (start, at)
        if missing := declared.keys() - places.keys():
            raise ValueError(f"the content of storage {min(missing)[:20]!r} is not there")
        for storage in storages:
            _check_size(storage, places[storage.key][1] - places[storage.key][0])
        yield content
