"""PyTorch's file formats, written byte by byte: no PyTorch needed, and what it would never write can be written."""

import zipfile

import numpy as np

KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def word(text):
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value):
    data = int(value).to_bytes(int(value).bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(dotted):
    module, _, attribute = dotted.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def storage(key, count, kind="torch.FloatStorage", legacy=False):
    tail = b"N" if legacy else b""
    return b"(" + word("storage") + name(kind) + word(key) + word("cpu") + number(count) + tail + b"tQ"


def tensor(key, count, size, stride, offset=0, **options):
    head = name("torch._utils._rebuild_tensor_v2") + b"(" + storage(key, count, **options)
    return head + number(offset) + numbers(size) + numbers(stride) + b"\x89" + name("collections.OrderedDict") + b")RtR"


def mapping(items):
    """A dict of text and opcodes."""
    return b"}(" + b"".join(word(key) + value for key, value in items.items()) + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


def tensors(state, legacy=False):
    """Opcodes of a state dict's tensors, and their bytes by storage key."""
    items, contents = {}, {}
    for index, (path, array) in enumerate(state.items()):
        array = np.ascontiguousarray(array)
        key, steps = str(index), [step // array.itemsize for step in array.strides]
        kind = f"torch.{KINDS[array.dtype.name]}"
        items[path] = tensor(key, array.size, array.shape, steps, kind=kind, legacy=legacy)
        contents[key] = array.tobytes()
    return items, contents


def write_zip(path, body, contents, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        archive.writestr("archive/byteorder", byteorder)
        for key, data in contents.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, body, contents, itemsize=4, little_endian=b"\x88", keys=None):
    head = [
        number(0x1950A86A20F9469CFC6C),
        number(1001),
        mapping({"protocol_version": number(1001), "little_endian": little_endian}),
        body,
    ]
    head += [b"](" + b"".join(map(word, keys or contents)) + b"e"]
    data = b"".join(program(part) for part in head)
    for content in contents.values():
        data += (len(content) // itemsize).to_bytes(8, "little") + content
    path.write_bytes(data)
    return path


def save(path, state, legacy=False, wrap=lambda items: items):
    items, contents = tensors(state, legacy)
    write = write_legacy if legacy else write_zip
    return write(path, mapping(wrap(items)), contents)


def save_as(path, state, kind):
    return save(path, {name: array.astype(kind) for name, array in state.items()})
