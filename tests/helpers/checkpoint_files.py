"""Checkpoint files for the tests, written by torch or by hand, and what reading them must give."""

import argparse
import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.reading.files import read_tree
from selfpatch_bench.pretrain.common.reading.flatten import flatten
from selfpatch_bench.pretrain.common.reading.torchfile import MAGIC


def save(obj, path, zipped=True, protocol=2):
    torch.save(obj, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def write(path, data: bytes):
    path.write_bytes(data)
    return path


def read_refs(path) -> tuple[dict, object]:
    """({dotted name: TensorRef}, the rest)"""
    return flatten(read_tree(path), str(path))


def read_all(path) -> tuple[dict, object]:
    """({dotted name: loaded tensor}, the rest)"""
    tensors, meta = read_refs(path)
    return {name: tensor.load() for name, tensor in tensors.items()}, meta


def refused(path, *words):
    """Reading (all of) it is refused in one line that names the file and has all the words."""
    with pytest.raises(UserError) as info:
        read_all(path)
    message = str(info.value)
    assert message.startswith(f"{path}: "), message
    assert len(message) < 700, message
    assert message.isprintable(), message
    for word in words:
        assert word in message, message
    return message


def reference(node, name=""):
    """Dotted names of the tensors in a tree of real objects, written anew for the test."""
    if isinstance(node, torch.Tensor):
        return {name: node.detach()}
    if isinstance(node, argparse.Namespace):
        node = vars(node)
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else []
    out = {}
    for key, value in pairs:
        out |= reference(value, f"{name}.{key}" if name else str(key))
    return out


def same(tensors: dict, expected: dict):
    """The references, loaded, equal the tensors: names in order, dtypes, shapes, bits."""
    for name, ref in tensors.items():
        assert (ref.dtype, ref.shape) == (expected[name].dtype, tuple(expected[name].shape)), name
    same_values({name: ref.load() for name, ref in tensors.items()}, expected)


def same_values(loaded: dict, expected: dict):
    assert list(loaded) == list(expected)
    for name, want in expected.items():
        got = loaded[name]
        assert (got.dtype, got.shape, got.device.type) == (want.dtype, want.shape, "cpu"), name
        bits = torch.uint8 if want.dtype.itemsize == 1 else want.dtype
        assert torch.equal(got.contiguous().view(bits), want.contiguous().view(bits)), name


def rich_tree() -> dict:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tree = {
        "teacher": OrderedDict([("module.w", torch.randn(3, 5)), ("module.b", torch.zeros(5))]),
        "kinds": {
            str(d): torch.arange(7).to(d)
            for d in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64)
        },
        "more": [torch.tensor([True, False, True]), torch.tensor(3.5), torch.empty(0, 4), {"z": torch.zeros(2, 0)}],
        "complex": torch.randn(3, dtype=torch.complex64),
        "float8": torch.randn(9).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "byte": torch.arange(255, dtype=torch.uint8),
        "views": (base.t(), base[1:4, ::3], base[5], base, base.view(-1)),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "optimizer": {"state": {0: {"step": 7, "exp_avg": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "args": argparse.Namespace(arch="vit_small", lr=0.5, sizes=[1, 2], nested=argparse.Namespace(deep=None)),
        "numpy": {"scalar": np.float64(2.5), "flag": np.bool_(True), "text": np.str_("ab"), "array": np.arange(4.0)},
        "plain": [1, -(2**70), 1e300, "é\n", b"\x00\xff", None, True, {1, 2}, frozenset("a"), bytearray(b"xy"), 2j],
        "kinds of dict": [defaultdict(list, a=1), Counter("aab"), OrderedDict(b=2)],
        "torch": [torch.float16, torch.device("cuda", 1), torch.Size([2, 3]), torch.strided],
        "empty": [{}, [], ()],
    }
    return tree


def legacy(path, make, *, keys=None, numel=4, data=4):
    """A file older than torch 1.6, by hand: `make(storage)` is the object; storage(...) stands for a storage's id."""

    class Storage:
        def __init__(self, *ident):
            self.ident = ident

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.ident if isinstance(obj, Storage) else None

    with open(path, "wb") as file:
        for value in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump(make(Storage))
        pickle.dump(["7"] if keys is None else keys, file, 2)
        file.write(struct.pack("<q", numel) + torch.arange(float(data)).numpy().tobytes())
    return path


class Rebuild:
    """Pickles as a call of torch's rebuild function with any arguments."""

    def __init__(self, *args, name="_rebuild_tensor_v2"):
        self.args, self.name = args, name

    def __reduce__(self):
        return getattr(torch._utils, self.name), self.args


def in_zip(path, data: bytes):
    """The pickle as the data.pkl of a torch file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
    return path


def in_legacy(path, data: bytes):
    head = (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return write(path, b"".join(pickle.dumps(v, 2) for v in head) + data + pickle.dumps([], 2))


def records(data: bytes) -> dict:
    """{name: offset of its entry in the table of contents}"""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        pos, out = file.start_dir, {}
    while data[pos : pos + 4] == b"PK\x01\x02":
        n, extra, comment = struct.unpack_from("<HHH", data, pos + 28)
        out[data[pos + 46 : pos + 46 + n].decode()] = pos
        pos += 46 + n + extra + comment
    return out


def patched(data: bytes, pos: int, fmt: str, *values) -> bytes:
    packed = struct.pack(fmt, *values)
    return data[:pos] + packed + data[pos + len(packed) :]
