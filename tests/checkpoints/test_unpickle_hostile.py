"""Checkpoint files that are damaged, lie or attack: a UserError in one line, nothing run, no memory taken."""

import argparse
import gzip
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from checkpoint_files import (
    Rebuild,
    in_legacy,
    in_zip,
    legacy,
    patched,
    read_all,
    read_refs,
    records,
    reference,
    refused,
    rich_tree,
    same,
    same_values,
    save,
    write,
)
from mutations import mutate_bytes
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.reading import files, flatten
from selfpatch_bench.pretrain.common.reading.files import read_tree

# -- what must be refused

TOUCH = b"touch pwned"
RAW = {
    "reduce": (b"cos\nsystem\n(S'touch pwned'\ntR.", "os.system"),
    "posix": (b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R.", "posix.system"),
    "inst": (b"(S'touch pwned'\nios\nsystem\n.", "os.system"),
    "obj": (b"(cos\nsystem\nS'touch pwned'\no.", "os.system"),
    "newobj": (b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch pwned\x85\x81.", "os.system"),
    "newobj_ex": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch pwned\x85}\x92.", "os.system"),
    "stack_global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch pwned\x85R.", "os.system"),
    "memo": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x0btouch pwned\x85R.", "os.system"),
    "eval": (b'c__builtin__\neval\n(S\'open("pwned","w")\'\ntR.', "__builtin__.eval"),
    "import": (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'touch pwned'\ntR.",
        "__import__",
    ),
    "getattr of a function": (
        b"c__builtin__\ngetattr\n(c_codecs\nencode\nS'__self__'\ntR.",
        "_codecs.encode",
    ),
    "getattr of a dict": (b"c__builtin__\ngetattr\n(ccollections\nOrderedDict\nS'__init__'\ntR.", "getattr"),
    "getattr of text": (b"c__builtin__\ngetattr\n(S'a'\nS'__class__'\ntR.", "getattr"),
    "call of a method": (
        b"c__builtin__\ngetattr\n(cargparse\nNamespace\nS'__init__'\ntR(S'__globals__'\ntR.",
        "getattr",
    ),
    "dotted chain": (b"\x80\x04\x8c\x08argparse\x8c\x1eNamespace.__init__.__globals__\x93.", "__globals__"),
    "build on a class": (b"cargparse\nNamespace\n}S'x'\nI1\nsb.", "Global"),
    "build on a list": (b"]}S'append'\nI1\nsb.", "list"),
    "call of a list": (b"](tR.", "list"),
    "call of a type": (b"c__builtin__\nint\n(S'1'\ntR.", "builtins.int"),
    "codec": (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "rot13"),
    "decode": (b"c_codecs\ndecode\n(S'x'\nS'zip'\ntR.", "_codecs.decode"),
    "factory": (b"ccollections\ndefaultdict\n(S'x'\ntR.", "defaultdict"),
    "torch.load": (b"ctorch\nload\n(S'x'\ntR.", "torch.load"),
    "nested load": (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "torch.storage._load_from_bytes"),
    "sparse": (b"ctorch._utils\n_rebuild_sparse_tensor\n(tR.", "_rebuild_sparse_tensor"),
    "numpy.load": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
    "argparse.FileType": (b"cargparse\nFileType\n(S'w'\ntR(S'pwned'\ntR.", "argparse.FileType"),
    "persid": (b"Pabc\n.", "id"),
    "binpersid": (b"\x80\x02K\x01Q.", "id"),
    "extension": (b"\x80\x02\x82\x01.", "extension"),
    "buffer": (b"\x80\x05\x97.", "buffer"),
    "read-only buffer": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a\x98.", "buffer"),
    "frame with more": (b"\x80\x04\x95" + struct.pack("<Q", 4) + b"N.N.", "unfinished"),
    "array of a class": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cargparse\nNamespace\n(I0\ntS'b'\ntR.",
        "argparse.Namespace",
    ),
    "escape": (b"c\x1b[31mos\nsystem\n.", "x1b"),
}
LIVE = ["reduce", "posix", "inst", "obj", "stack_global", "memo", "eval", "import", "argparse.FileType"]


@pytest.mark.parametrize("wrap", [write, in_zip, in_legacy])
@pytest.mark.parametrize("name", RAW)
def test_refused_by_name_and_nothing_happens(tmp_path, monkeypatch, name, wrap):
    data, word = RAW[name]
    monkeypatch.chdir(tmp_path)
    path = wrap(tmp_path / "bad.pth", data)
    refused(path, word)
    assert os.listdir(tmp_path) == ["bad.pth"]


@pytest.mark.parametrize("name", LIVE)
def test_those_pickles_are_live(tmp_path, monkeypatch, name):
    """Python's own unpickler does run them: the test above would see a reader that does."""
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(RAW[name][0]) is not Ellipsis
    assert os.listdir(tmp_path) == ["pwned"]


@pytest.mark.parametrize(
    "args",
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (1000, 1000), (0, 0)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2**62,), (0,)),
        (0, (2**39, 2**39), (0, 0)),
        (0, (0, 2**39, 2**39), (1, 1, 1)),
        (0, (2, 2), (1,)),
        (0, (1,) * 65, (1,) * 65),
        (0, (2.0,), (1,)),
        (0, 4, 1),
        (2**63, (2,), (1,)),
    ],
)
def test_tensors_that_leave_their_storage(tmp_path, args):
    def make(storage):
        return Rebuild(storage("storage", torch.FloatStorage, "7", "cpu", 4, None), *args, False, OrderedDict())

    refused(legacy(tmp_path / "a.pth", make), "tensor")


def test_old_files_that_lie(tmp_path):
    def make(storage, numel=4):
        ident = ("storage", torch.FloatStorage, "7", "cpu", numel, None)
        return Rebuild(storage(*ident), 0, (2,), (1,), False, OrderedDict())

    path = tmp_path / "a.pth"
    assert read_refs(legacy(path, make))[0]["tensor"].load().tolist() == [0, 1]
    refused(legacy(path, make, numel=5), "storage 7")
    refused(legacy(path, make, numel=-1), "storage 7")
    refused(legacy(path, make, data=3), "storage 7")
    refused(legacy(path, make, data=5), "4 bytes")
    refused(legacy(path, make, keys=[]), "storages")
    refused(legacy(path, make, keys=["7", "7"]), "storages")
    refused(legacy(path, make, keys=["7", "8"]), "storages")
    refused(legacy(path, lambda s: make(s, 2**60), numel=2**60), "storage 7")
    refused(legacy(path, lambda s: make(s, -1)), "size")
    refused(legacy(path, lambda s: s("module", argparse.Namespace, "f.py", "code")), "module")
    refused(legacy(path, lambda s: s("storage", argparse.Namespace, "7", "cpu", 4, None)), "Namespace")
    refused(legacy(path, lambda s: s("storage", torch.FloatStorage, 7, "cpu", 4, None)), "key")
    refused(legacy(path, lambda s: [s("storage", torch.FloatStorage, "7", "cpu", 4, None)]), "storage")
    refused(legacy(path, lambda s: [make(s), make(s, 3)]), "storage 7")


# -- zip files


def test_zip_files_that_lie(tmp_path):
    path = tmp_path / "archive.pth"
    good = save({"a": torch.arange(64.0), "b": torch.arange(64.0)}, path).read_bytes()
    at, tail = records(good), len(good) - 22
    a, b = at["archive/data/0"], at["archive/data/1"]
    z64 = tail - 20 - 56
    assert good[z64 : z64 + 4] == b"PK\x06\x06"

    def bad(*words, data):
        return refused(write(path, data), *words)

    bad("archive/data/0", data=patched(good, a + 10, "<H", 8))
    bad("archive/data/0", data=patched(good, a + 8, "<H", 1))
    bad("archive/data/0", data=patched(good, a + 24, "<I", 2**31))
    bad("archive/data/0", data=patched(good, a + 20, "<II", 2**31, 2**31))
    bad(data=patched(good, a + 20, "<II", 0xFFFFFFFF, 0xFFFFFFFF))  # zip64 without the field
    bad("storage 0", data=patched(good, a + 20, "<II", 252, 252))
    bad("archive/data/0", data=patched(good, a + 42, "<I", 5))
    bad("archive/data/", data=patched(good, a + 42, "<I", struct.unpack_from("<I", good, b + 42)[0]))
    bad(data=patched(good, z64 + 32, "<Q", 2**40))
    bad(data=patched(good, z64 + 32, "<Q", 3))
    bad(data=patched(good, z64 + 48, "<Q", 2**63))
    bad(data=patched(good, tail - 12, "<Q", 2**63))
    bad(data=good + b"x")
    start = good.index(torch.arange(64.0).numpy().tobytes())
    bad("storage 0", data=patched(good, start + 20, "<B", 1))
    bad("data.pkl", data=good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", 1))
    for cut in (10, 100, len(good) // 2, len(good) - 1):
        bad(data=good[:cut])

    def repacked(change, mode=zipfile.ZIP_STORED):
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(path, "w", mode) as new:
            for info in old.infolist():
                for name, data in change(info.filename, old.read(info)):
                    new.writestr(name, data)

    repacked(lambda n, d: [(n, d)], zipfile.ZIP_DEFLATED)
    refused(path, "archive/data.pkl")
    with pytest.warns(UserWarning, match="Duplicate name"):
        repacked(lambda n, d: [(n, d)] * (1 + n.endswith("data/0")))
    refused(path, "archive/data/0")
    repacked(lambda n, d: [] if n.endswith("data/1") else [(n, d)])
    refused(path, "storage 1")
    repacked(lambda n, d: [(n, b"big")] if n.endswith("byteorder") else [(n, d)])
    refused(path, "big-endian")
    repacked(lambda n, d: [(n, d + b"xx")] if n.endswith("data.pkl") else [(n, d)])
    refused(path, "data.pkl")
    repacked(lambda n, d: [(n, d), ("other/data.pkl", d)] if n.endswith("data.pkl") else [(n, d)])
    refused(path, "data.pkl")
    repacked(lambda n, d: [(n, d), ("archive/code/x.py", b"")] if n.endswith("data.pkl") else [(n, d)])
    refused(path, "TorchScript")
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("a.pth", good)
    refused(path, "data.pkl")


# -- safetensors


def st(header, data=b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    tree = {k: v for k, v in reference(rich_tree()).items() if not k.startswith("views")}
    tree = {k: v.clone() for k, v in tree.items() if v.dtype != torch.complex64}
    save_file(tree, tmp_path / "a.bin", metadata={"card": '{"x": 1}'})
    tensors, meta = read_refs(tmp_path / "a.bin")
    assert meta == {"__metadata__": {"card": '{"x": 1}'}}
    same({k: tensors[k] for k in tree}, tree)
    assert set(tensors) == set(tree)
    save_file({}, tmp_path / "empty.safetensors")
    assert read_refs(tmp_path / "empty.safetensors") == ({}, {})


@pytest.mark.parametrize(
    "data",
    [
        st({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}),
        st({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}),
        st({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}),
        st({"a": {"dtype": "F32", "shape": [2]}}),
        st({"a": 3}),
        st({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
        st({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}),
        st(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'),
        st({"__metadata__": {"a": 1}}),
        st(b'{"a": '),
        st(b'{"a":' + b"[" * 200000),
        struct.pack("<Q", 2**63) + b'{"a": 1}',
        struct.pack("<Q", 1000) + b'{"a": 1}',
        struct.pack("<Q", files.MAX_HEADER + 1) + b"{" + b" " * files.MAX_HEADER,
    ],
)
def test_safetensors_that_lie(tmp_path, data):
    refused(write(tmp_path / "a.safetensors", data))


# -- everything else a user may point at


def test_files_that_are_no_checkpoints(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    refused(tmp_path / "absent.pth", "No such file")
    refused(tmp_path, "a folder", ".safetensors")
    refused("/dev/zero", "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    refused(write(path, b""), "empty file")
    refused(write(path, b"Some notes.\n"), "a text file", ".pth")
    refused(write(path, b"\n <!DOCTYPE html>\n<html>"), "HTML page", "download")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    refused(write(path, pointer), "git-lfs pointer", "git lfs pull")
    refused(write(path, gzip.compress(pickle.dumps({}))), "gzip", "unpack")
    refused(write(path, random.Random(0).randbytes(1000)), "not a checkpoint file")
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "storages")
    refused(path, "a tar archive", "torch 0.1")
    np.save(tmp_path / "a.npy", np.ones(2))
    refused(tmp_path / "a.npy", "one NumPy array")
    np.savez(tmp_path / "a.npz", np.ones(2))
    refused(tmp_path / "a.npz", "a NumPy archive")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "empty zip")
    refused(write(path, pickle.dumps({"a": 1}) + b"junk"), "4 bytes after the end")
    for cut in (1, 5, 20):
        refused(write(path, pickle.dumps({"a": "some longer text"}, 4)[:cut]), "truncated")
    model = torch.nn.Linear(2, 2)
    refused(save(model, path), "refuses to unpickle torch.nn.modules.linear.Linear")

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    save({}, path)
    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(UserError, match=r"weights\.pth: cannot be read: Permission denied"):
        read_tree(path)


def test_trees_that_cannot_be_flattened(tmp_path, monkeypatch):
    def bad(tree, *words):
        return refused(write(tmp_path / "a.pkl", pickle.dumps(tree, 2)), *words)

    ones = np.ones(1)
    loop = {}
    loop["a"] = [loop]
    bad(loop, "contains itself")
    args = argparse.Namespace()
    args.me = args
    bad(args, "contains itself")
    deep = []
    for _ in range(200):
        deep = [deep]
    bad(deep, "100 nested")
    many = []
    for _ in range(90):
        many = [many] * 2
    with monkeypatch.context() as patch:
        patch.setattr(flatten, "MAX_NODES", 10_000)
        bad(many, "absurdly many members")
    bad({"a": {"b": ones}, "a.b": ones}, "one dotted name", "a.b")
    bad({1: ones, "1": 2}, "two keys")
    bad({"a\x1b[2J": ones}, "cannot be printed")
    bad([np.ones(10_000)] * 1000, "share absurdly little")
    tree = [[[{"x": 1}] for _ in range(3)]] * 3  # shared, but harmless
    assert read_refs(write(tmp_path / "a.pkl", pickle.dumps(tree)))[1] == tree


def test_keys_that_a_file_must_not_have(tmp_path):
    def bad(data, *words):
        return refused(write(tmp_path / "a.pkl", data), *words)

    bad(b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.", "key", "tuple")  # hashing it would overflow the C stack
    bad(pickle.dumps({2**61: 1}, 2), "key", "int")
    bad(pickle.dumps(dict.fromkeys(range(30_000)), 2), "keys that are not text")
    bad(b"\x80\x02}(K\x01NK\x01Nu.", "one key twice")
    bad(b"\x80\x02}]Ns.", "key", "list")


# -- bounds


def test_memory_does_not_follow_what_a_file_declares(tmp_path):
    """Address space is limited: to 128 MB beyond what is in use for files that only declare sizes (they ask for GB, and
    need nothing; the rest is the allocator's), to 400 MB for pickles that multiply what they hold.
    """
    bombs, heavy = tmp_path / "bombs", tmp_path / "heavy"
    bombs.mkdir(), heavy.mkdir()

    def v2(*args):
        def make(storage):
            ident = ("storage", torch.FloatStorage, "7", "cpu", 2**55, None)
            return Rebuild(storage(*ident), *args, False, OrderedDict())

        return make

    legacy(bombs / "storage", v2(0, (2,), (1,)), numel=2**55)
    legacy(bombs / "tensor", v2(0, (2**35,), (1,)), numel=2**55)
    pickled = {
        "text": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        "long": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "array": pickle.dumps(np.ones(4, "f4"), 2).replace(b"K\x04\x85", b"J\x00\x00\x00\x7f\x85"),
        "dtype": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'S999999999'\nI0\nI1\ntRS'x'\ntR.",
        "protocol 1": b"(lp0\n0" + b"(" * 10000 + b".",
    }
    for name, data in pickled.items():
        write(bombs / name, data)
        in_zip(bombs / f"{name}.zip", data)
    write(bombs / "safetensors", struct.pack("<Q", 2**50) + b'{"a":1}')
    good = save({"a": torch.zeros(4)}, bombs / "archive").read_bytes()
    at = records(good)["archive/data/0"]
    write(bombs / "archive", patched(good, at + 20, "<II", 0xFFFFFFF0, 0xFFFFFFF0))

    write(heavy / "sets", b"\x80\x04(" + b"\x8f" * 1_200_000 + b"t.")
    encode = b"\x80\x02c_codecs\nencode\nq\0X" + struct.pack("<I", 10**6) + b"a" * 10**6
    write(heavy / "encode", encode + b"X\x06\0\0\0latin1\x86q\x02(" + b"h\0h\x02R" * 100_000 + b"t.")
    copy = b"\x80\x02](" + b"N" * 10**5 + b"e\x85q\x010c__builtin__\nlist\nq\0("
    write(heavy / "copies", copy + b"h\0h\x01R" * 100_000 + b"t.")
    code = f"""
        import resource, sys
        from pathlib import Path
        from selfpatch_bench.pretrain.common.errors import UserError
        from selfpatch_bench.pretrain.common.reading.files import read_tree
        from selfpatch_bench.pretrain.common.reading.flatten import flatten
        now = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
        for folder, limit in (({str(bombs)!r}, 128 << 20), ({str(heavy)!r}, 400 << 20)):
            resource.setrlimit(resource.RLIMIT_AS, (now + limit, resource.RLIM_INFINITY))
            for path in sorted(Path(folder).iterdir()):
                try:
                    tensors, _ = flatten(read_tree(path), str(path))
                    [t.load() for t in tensors.values()]
                    sys.exit(f"{{path}} was read")
                except UserError as error:
                    assert "MemoryError" not in str(error), error
                    print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len([*bombs.iterdir(), *heavy.iterdir()])


def test_a_read_takes_no_copy_of_the_weights(tmp_path):
    """64 MB of weights: reading and flattening allocate a small part of it, loading maps it (peak heap by tracemalloc
    counts Python's and NumPy's allocations; torch's own would show as data pointers outside the mapping)."""
    path = save({f"w{i}": torch.ones(1 << 20) for i in range(16)}, tmp_path / "a.pth")
    tracemalloc.start()
    tensors, _ = read_refs(path)
    loaded = [t.load() for t in tensors.values()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    span = max(t.data_ptr() for t in loaded) - min(t.data_ptr() for t in loaded)
    assert span < path.stat().st_size


# -- fuzzing


def small_files(folder) -> dict:
    tree = {
        "model": {"blocks.0.w": torch.arange(12.0).view(3, 4), "blocks.1.w": torch.arange(12.0).view(4, 3).t()},
        "args": argparse.Namespace(arch="vit", lr=0.1),
        "np": np.float64(3),
    }
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in tree["model"].items()}, folder / "safetensors", metadata={"a": "b"})
    save(tree, folder / "zip")
    save(tree, folder / "legacy", zipped=False)
    arrays = {k: v.contiguous().numpy() for k, v in tree["model"].items()}
    write(folder / "pickle", pickle.dumps({"model": arrays, "author": "x"}, 4))
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_300_damaged_files(tmp_path, monkeypatch, kind):
    """Each is refused in one line or read within its bounds; a zip, whose records carry checksums, only as it was."""
    (tmp_path / "good").mkdir()
    data = small_files(tmp_path / "good")[kind]
    expected, meta = read_all(tmp_path / "good" / kind)
    monkeypatch.chdir(tmp_path)
    rng = random.Random(f"{kind} 1")
    path, counts = tmp_path / "bad.pth", Counter()
    for _ in range(300):
        write(path, mutate_bytes(data, rng))
        message = None
        try:
            loaded, found = read_all(path)
        except UserError as error:
            message = str(error)
        counts["read" if message is None else "refused"] += 1
        if message is not None:
            assert message.startswith(f"{path}: ")
            continue
        assert sum(t.nbytes for t in loaded.values()) <= 64 * len(data)
        assert [t.clone().shape for t in loaded.values()] == [
            t.shape for t in loaded.values()
        ]  # every byte can be read
        if kind == "zip":
            assert found == meta
            same_values(loaded, expected)
    assert counts["refused"] > 100, counts
    assert sorted(os.listdir(tmp_path)) == ["bad.pth", "good"]
