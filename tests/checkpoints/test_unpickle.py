"""Reading checkpoint files without unpickling them: equal to torch.load where that is safe."""

import argparse
import gc
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from checkpoint_files import (
    Rebuild,
    legacy,
    read_all,
    read_refs,
    reference,
    refused,
    rich_tree,
    same,
    same_values,
    save,
    write,
)
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.reading.state import load_state

FORMATS = [(True, 2), (True, 4), (False, 2), (False, 4)]
SHOULD_FAIL = ("malicious", "truncated")  # checkpoints/README.md: files that must be refused


@pytest.mark.parametrize(("zipped", "protocol"), FORMATS)
def test_equal_to_torch_load(tmp_path, zipped, protocol):
    tree = rich_tree()
    with_attribute = torch.nn.Parameter(torch.randn(3))
    with_attribute.tag = "x"  # saved by _rebuild_parameter_with_state
    tree["attribute"] = with_attribute
    path = save(tree, tmp_path / "a.pth", zipped, protocol)
    tensors, meta = read_refs(path)
    same(tensors, reference(tree))
    if zipped:  # torch reads back no float8 and uint16 of its own old format
        same(tensors, reference(torch.load(path, weights_only=False)))
    # stride and sharing survive too
    assert tensors["views.0"].load().stride() == (1, 8)
    assert len({tensors[f"views.{i}"].storage.key for i in range(5)}) == 1
    assert meta["args"] == {"arch": "vit_small", "lr": 0.5, "sizes": [1, 2], "nested": {"deep": None}}
    assert meta["optimizer"] == {"state": {"0": {"step": 7}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    assert meta["numpy"].pop("array").tolist() == [0, 1, 2, 3]
    assert meta["numpy"] == {"scalar": 2.5, "flag": True, "text": "ab"}
    assert [type(v) for v in meta["numpy"].values()] == [float, bool, str]
    plain = [1, -(2**70), 1e300, "é\n", b"\x00\xff", None, True, [1, 2], ["a"], bytearray(b"xy"), 2j]
    assert meta["plain"] == plain
    assert meta["kinds of dict"] == [{"a": 1}, {"a": 2, "b": 1}, {"b": 2}]
    assert meta["torch"] == ["torch.float16", "cuda:1", (2, 3), ["torch.strided"]]
    assert meta["empty"] == [{}, [], ()]
    assert set(meta) == {"optimizer", "args", "numpy", "plain", "kinds of dict", "torch", "empty"}


def test_loading_is_lazy_private_and_outlives_the_checkpoint(tmp_path):
    path = save({"a": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "a.pth")
    before = path.read_bytes()
    tensors, _ = read_refs(path)
    a = tensors["a"].load()
    a += 1  # copy-on-write
    assert path.read_bytes() == before
    del tensors
    gc.collect()
    assert a.tolist() == [1, 2, 3, 4, 5, 6]
    assert read_all(save(torch.ones(2), tmp_path / "bare.pth"))[0]["tensor"].tolist() == [1, 1]


def test_storages_that_are_not_aligned(tmp_path):
    """Another tool has packed the file again: records lie at odd offsets."""
    path = save({"odd": torch.arange(5, dtype=torch.float64), "other": torch.arange(4)}, tmp_path / "a.pth")
    expected = reference(torch.load(path, weights_only=False))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    tensors, _ = read_refs(tmp_path / "b.pth")
    assert any(t.storage.offset % t.dtype.itemsize for t in tensors.values())
    same(tensors, expected)
    assert tensors["odd"].load().data_ptr() == tensors["odd"].load().data_ptr()  # one copy, not one per call
    assert all(t.load().data_ptr() % t.dtype.itemsize == 0 for t in tensors.values())


def test_crc_not_computed(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(3.0)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_refs(path)[0]["a"].load().tolist() == [0, 1, 2]


def test_view_of_a_storage_in_an_old_file(tmp_path):
    def make(storage):
        root = storage("storage", torch.FloatStorage, "7", "cuda:0", 4, None)
        view = storage("storage", torch.FloatStorage, "7", "cuda:0", 4, ("8", 1, 2))
        hooks = OrderedDict()
        return [Rebuild(root, 0, (4,), (1,), False, hooks), Rebuild(view, 0, (2,), (1,), False, hooks)]

    path = legacy(tmp_path / "a.pth", make)
    tensors, _ = read_refs(path)
    same(tensors, reference(torch.load(path, map_location="cpu", weights_only=False)))
    assert tensors["1"].load().tolist() == [1, 2]

    def outside(storage):
        view = storage("storage", torch.FloatStorage, "7", "cpu", 4, ("8", 3, 2))
        return Rebuild(view, 0, (2,), (1,), False, OrderedDict())

    refused(legacy(tmp_path / "b.pth", outside), "leaves its storage")


def test_bools_are_0_or_1(tmp_path):
    """A file may hold any byte; torch's kernels expect 0 and 1 in memory."""

    def make(storage):
        ident = ("storage", torch.BoolStorage, "7", "cpu", 16, None)
        return Rebuild(storage(*ident), 0, (16,), (1,), False, OrderedDict())

    flags = read_all(legacy(tmp_path / "a.pth", make, numel=16))[0]["tensor"]
    assert flags.dtype == torch.bool
    assert flags.tolist() == [byte != 0 for byte in torch.arange(4.0).numpy().tobytes()]
    assert flags.view(torch.uint8).max() == 1


# -- plain pickles of arrays


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_arrays(tmp_path, protocol):
    """detectron2's .pkl files."""
    arrays = {
        "stem.conv1.weight": np.random.default_rng(0).standard_normal((4, 3, 2)).astype("f4"),
        "fortran": np.asfortranarray(np.arange(6, dtype="i8").reshape(2, 3)),
        "half": np.arange(3, dtype="f2"),
        "flag": np.array([True, False]),
        "zero": np.array(2.5),
        "none": np.empty((0, 3), "f4"),
    }
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path = write(tmp_path / "R-50.pkl", pickle.dumps(content, protocol))
    tensors, meta = read_refs(path)
    assert meta == {"__author__": "someone", "matching_heuristics": True}
    same(tensors, {f"model.{k}": torch.from_numpy(v.copy()) for k, v in arrays.items()})


def test_pickled_arrays_of_python_2(tmp_path):
    """Python 2 wrote bytes as text: BINSTRING (U)."""
    raw = np.array([1, 2], "<f4").tobytes()
    data = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n"
        b"(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + raw + b"tbs."
    )
    assert pickle.loads(data, encoding="latin1")["w"].tolist() == [1, 2]
    tensors, _ = read_refs(write(tmp_path / "a.pkl", data))
    assert tensors["w"].load().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([1.0], ">f4"), "big-endian"),
        (np.array([None]), "not supported"),
        (np.array([(1, 2.0)], "i4,f8"), "not supported"),
        (np.array(["a"]), "no number"),
        (np.array(["2020-01-01"], "M8[D]"), "not supported"),
    ],
)
def test_arrays_that_are_no_weights(tmp_path, array, words):
    refused(write(tmp_path / "a.pkl", pickle.dumps(array, 4)), words)


# -- placeholders


def fake_module(monkeypatch, name, **members):
    for i in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:i])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    for key, value in members.items():
        value.__module__, value.__qualname__ = name, key
        for method in [v for v in vars(value).values() if isinstance(v, types.FunctionType)]:
            method.__module__, method.__qualname__ = name, f"{key}.{method.__name__}"
        setattr(sys.modules[name], key, value)


@pytest.mark.parametrize(("zipped", "protocol"), FORMATS)
def test_placeholders(tmp_path, monkeypatch, zipped, protocol):
    """Config classes of the field come out as plain content, with no module of theirs present when reading."""
    omegaconf = pytest.importorskip("omegaconf")

    class CfgNode(dict):  # yacs
        def __init__(self, **content):
            super().__init__(**content)
            self.__dict__["__immutable__"] = False

    class ConfigDict(dict):  # mmengine
        def __reduce_ex__(self, proto):
            return ConfigDict, (dict(self),), None, None, None

    class Dict(dict):  # addict: its state is itself
        def __getstate__(self):
            return self

    class HistoryBuffer:  # mmengine: pickles a method of its class
        def __init__(self):
            self._log_history, self.statistics_methods = np.array([1.5]), {"mean": HistoryBuffer.mean}

        def mean(self):
            pass

    fake_module(monkeypatch, "yacs.config", CfgNode=CfgNode)
    fake_module(monkeypatch, "mmengine.config.config", ConfigDict=ConfigDict)
    fake_module(monkeypatch, "addict.addict", Dict=Dict)
    fake_module(monkeypatch, "mmengine.logging.history_buffer", HistoryBuffer=HistoryBuffer)
    plain = {"a": 1, "b": [1, 2.5, "x", None, True], "c": {"d": "${a}", "e": {}}}
    tree = {
        "yacs": CfgNode(MODEL=CfgNode(NAME="vit"), EMPTY=CfgNode()),
        "mm": ConfigDict(model=ConfigDict(type="x")),
        "addict": Dict(a=Dict(b=1)),
        "history": HistoryBuffer(),
        "omega": omegaconf.OmegaConf.create(plain),
        "odd": [slice(1, 2), range(3)],
        "weight": torch.ones(1),
    }
    path = save(tree, tmp_path / "a.pth", zipped, protocol)
    for name in ("yacs", "mmengine", "addict"):
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "omegaconf", None)  # importing it again would fail
    tensors, meta = read_refs(path)
    assert list(tensors) == ["weight"]
    assert meta["yacs"] == {"MODEL": {"NAME": "vit"}, "EMPTY": {}}
    assert meta["mm"] == {"model": {"type": "x"}}
    assert meta["addict"] == {"a": {"b": 1}}
    assert meta["omega"] == plain
    assert meta["history"].pop("_log_history").tolist() == [1.5]
    assert "HistoryBuffer.mean" in meta["history"]["statistics_methods"]["mean"]
    assert meta["odd"][0][:2] == [1, 2]


# -- the reference files


class ForgivingPickle:
    """A pickle module for torch.load in which a class that is not installed is a dict with attributes."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            try:
                return super().find_class(module, name)
            except ImportError:
                return type(name, (dict,), {})

    load, loads, Pickler = pickle.load, pickle.loads, pickle.Pickler


@pytest.mark.shared
@pytest.mark.parametrize("pattern", ["checkpoints/*/*.pth", "golden/*.pth"])
def test_reference_files(pattern, shared, tmp_path, monkeypatch):
    """Files of other libraries, beside torch's own reading of them; those that must be refused are."""
    monkeypatch.chdir(tmp_path)
    paths = sorted(shared.glob(pattern))
    assert paths
    for path in paths:
        if path.name.startswith(SHOULD_FAIL):
            refused(path, "refuses to unpickle" if path.name.startswith("malicious") else "truncated")
            assert not os.listdir(tmp_path)
            continue
        tensors, meta = read_refs(path)
        real = torch.load(path, map_location="cpu", weights_only=False, pickle_module=ForgivingPickle)
        same(tensors, reference(real))
        args = real.get("args") if isinstance(real, dict) else None
        if isinstance(args, argparse.Namespace):
            assert meta["args"] == vars(args), path


@pytest.mark.shared
def test_reference_safetensors(shared):
    from safetensors.torch import load_file

    paths = sorted((shared / "checkpoints").glob("*/*.safetensors"))
    assert paths
    for path in paths:
        tensors, _ = read_refs(path)
        expected = load_file(path)
        assert set(tensors) == set(expected), path
        same(tensors, expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_expanded_tensors_are_read(zipped, tmp_path):
    """One element, row or plane for many (stride 0), and overlapping windows, as torch saves views of one storage."""
    tree = {
        "scalar": torch.tensor(3.0).expand(4, 5),
        "row": torch.arange(6.0).expand(7, 6),
        "column": torch.arange(6.0)[:, None].expand(6, 9),
        "windows": torch.arange(10.0).unfold(0, 4, 1),
        "half": torch.ones(1).half().expand(48),
        "flag": torch.tensor([True]).expand(3),
        "whole": torch.randn(64),
    }
    tensors, _ = read_refs(save(tree, tmp_path / "a.pth", zipped))
    same(tensors, tree)


def test_expanded_tensors_are_bounded_by_the_file(tmp_path):
    """A megabyte in all is nothing; beyond it 64 times what the file holds."""
    save({"a": torch.ones(1).expand(200_000)}, tmp_path / "a.pth")
    assert read_all(tmp_path / "a.pth")[0]["a"].sum() == 200_000
    for one in (torch.ones(1).expand(300_000), torch.ones(1).expand(2**20, 2**20), torch.ones(9).expand(10**5, 9)):
        refused(save({"a": one}, tmp_path / "a.pth"), "share absurdly little data")
    many = {str(i): torch.ones(1).expand(1000) for i in range(1000)}
    refused(save(many, tmp_path / "a.pth"), "share absurdly little data")


# -- stored states of ours


def state_of_training() -> dict:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    about = {"step": 3, "loss": 0.5, "config": {"list": [1, None, "x"], "betas": (0.9, True)}, 1: b"\x00"}
    return {"student": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), **about}


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    """Keys that are numbers, tuples, and tensors that no longer depend on the file."""
    state = state_of_training()
    path = save(state, tmp_path / "state.pt")
    found = load_state(path)
    write(path, b"another file altogether")
    assert list(found) == list(state)
    same_values(reference(found), reference(state))
    assert found["optimizer"]["state"].keys() == {0, 1}
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert {k: found[k] for k in ("step", "loss", "config", 1)} == {k: state[k] for k in ("step", "loss", "config", 1)}


def test_a_state_that_is_damaged_or_not_ours(tmp_path):
    """A bit of a weight, a class, an array, one element for a billion: refused in one line that names the file."""

    def bad(path, *words):
        with pytest.raises(UserError) as error:
            load_state(path)
        assert all(word in str(error.value) for word in (str(path), *words)), error.value

    path = save(state_of_training(), tmp_path / "state.pt")
    content = path.read_bytes()
    weight = state_of_training()["student"]["weight"].numpy().tobytes()
    bad(write(path, content.replace(weight, weight[:-1] + b"\x00")), "storage")
    bad(write(path, content[:-1]))
    bad(save(state_of_training() | {"more": argparse.Namespace(x=1)}, path), "Namespace")
    bad(save({"more": torch.nn.Linear(1, 1)}, path), "Linear")
    bad(save({"more": np.ones(3)}, path))
    bad(save({"more": torch.ones(1).expand(2**20, 2**10)}, path))
    bad(tmp_path / "absent.pt")
