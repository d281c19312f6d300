"""What the names in a pickle may mean (see unpickle.py): the whole list, and our own functions behind it.

Read this file to know everything a stored file can make the reader do. The functions of `CALLS` take the unpickler and
the arguments that the file gives, check them, and build simple values; none of them is the function the name belongs
to.
"""

import re
from collections.abc import Callable
from math import prod

import numpy as np
import torch

from ..errors import shorten
from .tensors import DTYPES, MAX_DIM, BadFile, StorageView, TensorRef, tensor_ref

_TYPED = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexDouble": "complex128", "ComplexFloat": "complex64",
}  # fmt: skip
STORAGES: dict[str, torch.dtype | None] = {f"torch.{n}Storage": DTYPES[d] for n, d in _TYPED.items()}
STORAGES |= dict.fromkeys(["torch.UntypedStorage", "torch._UntypedStorage"])  # dtype None: the tensor says it

# The dict subclasses of the field: what `BUILD` gives them are attributes, not members.
DICT_LIKE = {
    "yacs.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
}
_DCP = "Metadata MetadataIndex StorageMeta TensorStorageMetadata TensorProperties ChunkStorageMetadata "
_DCP += "BytesStorageMetadata _MEM_FORMAT_ENCODING"
# Harmless names of the field: they become `Inert`.
INERT = DICT_LIKE | {
    "argparse.Namespace",
    "builtins.slice",
    "builtins.range",
    "torch.device",
    "torch.serialization._get_layout",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"torch.distributed.checkpoint.metadata.{n}" for n in _DCP.split()),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "pathlib.PosixPath",
    *(f"omegaconf.base.{n}" for n in ("ContainerMetadata", "Metadata", "Node", "UnionNode")),
    *(f"omegaconf.nodes.{n}Node" for n in ("Any", "String", "Path", "Integer", "Bytes", "Float", "Boolean", "Enum")),
}
# Classes that appear as values (type annotations of configs, arguments of the calls below); never called.
TYPES = {f"builtins.{n}" for n in ("int", "float", "str", "bool", "object")}
TYPES |= {"typing.Any", "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}

_SAME = {"builtins.long": "builtins.int", "builtins.unicode": "builtins.str", "builtins.xrange": "builtins.range"}
_MODULES = [("__builtin__.", "builtins."), ("copy_reg.", "copyreg."), ("numpy._core.", "numpy.core.")]
_MODULES += [("torch.cuda.", "torch."), ("torch.storage.", "torch.")]
_NUMPY_CODE = re.compile(r"[|<=]?[biufcSU][0-9]{1,9}")


class Global:
    """A name of the allow-list, standing for itself. Nothing was imported."""

    __slots__ = ("inert", "name")

    def __init__(self, name: str, inert: bool = False):
        self.name, self.inert = name, inert

    def __repr__(self):
        return self.name


class Inert:
    """What an allowed class of the field would have become: its name and what the pickle gave it, never the object.

    name: dotted name; args: constructor arguments; state: what `BUILD` gave (dict, list, tuple or None); items,
    members: what was put in where the class is a kind of dict or list.
    """

    __slots__ = ("args", "items", "members", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items, self.members = name, args, None, {}, []

    def __repr__(self):
        return f"<{self.name}>"

    def append(self, member) -> None:
        self.members.append(member)

    def content(self):
        """A dict, a list, a value, or its name where there is nothing else."""
        given = [a for a in self.args if isinstance(a, dict)]
        state = self.state if isinstance(self.state, dict) else None
        if self.name == "torch.device":
            return ":".join(shorten(a) for a in self.args if type(a) in (str, int))
        if self.name.startswith("omegaconf.") and state is not None:
            return state.get("_content", state.get("_val", state))
        if self.items or given:  # a dict's subclass: its attributes are of no interest
            return {**(given[0] if given else {}), **self.items}
        if self.members:
            return self.members
        if self.name in DICT_LIKE:
            return {}
        if state is not None or self.name == "argparse.Namespace":
            return state or {}
        if self.name == "builtins.getattr":
            return f"<{shorten(self.args[0])}.{shorten(self.args[1])}>"
        return list(self.args) if self.args else repr(self)


def meaning(name: str) -> torch.dtype | Global | None:
    """What a dotted name stands for; None for every name that is not on the list."""
    for old, new in _MODULES:  # one spelling for what Python 2, NumPy 2 and old torch call differently
        # torch's two aliases hold for storages only: torch.storage._load_from_bytes is torch.load in disguise
        if name.startswith(old) and (new != "torch." or new + name[len(old) :] in STORAGES):
            name = new + name[len(old) :]
    name = _SAME.get(name, name)
    if name.startswith("torch.") and name[6:] in DTYPES:
        return DTYPES[name[6:]]
    if name in CALLS or name in TYPES or name in STORAGES:
        return Global(name)
    if name in INERT or name.rpartition(".")[0] in INERT:  # or a method of one
        return Global(name, inert=True)
    return None


# -- containers and values


def _dict(reader, items=()) -> dict:
    """A dict of a dict, or of a list of pairs (Python 2 wrote pairs as lists)."""
    if type(items) is dict:
        items = list(items.items())
    if type(items) not in (list, tuple) or any(type(p) not in (list, tuple) or len(p) != 2 for p in items):
        raise BadFile("damaged pickle: a dictionary of what is no pairs")
    reader.spend(200 * len(items))
    out: dict = {}
    reader.fill(out, [p[0] for p in items], [p[1] for p in items])
    return out


def _default_dict(reader, factory=None, items=()) -> dict:
    named = isinstance(factory, Global) and factory.name.startswith(("builtins.", "collections."))
    if factory is not None and not named:
        reader.refuse(f"a defaultdict of {factory}")
    return _dict(reader, items)


def _sequence(container: type, cost: int = 16) -> Callable:
    def build(reader, items=(), _maxlen=None):
        if type(items) not in (list, tuple, set, frozenset):
            raise BadFile(f"damaged pickle: a {container.__name__} of what is no list")
        reader.spend(cost * len(items))
        if container in (set, frozenset):
            reader.check_keys(items)
        return container(items)

    return build


def _bytes(buffer: type) -> Callable:
    def build(reader, data=b"", encoding="latin-1"):
        if type(data) not in (str, bytes, bytearray):
            raise BadFile(f"damaged pickle: {buffer.__name__} of what is no text")
        reader.spend(len(data))
        return buffer(_encode(reader, data, encoding) if type(data) is str else data)

    return build


def _encode(reader, text, encoding="latin1") -> bytes:
    """`_codecs.encode`, by which protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        reader.refuse(f"_codecs.encode to {shorten(encoding)}")
    reader.spend(len(text))
    return text.encode("latin-1")


def _complex(reader, real=0.0, imag=0.0) -> complex:
    if not all(type(x) in (int, float) for x in (real, imag)):
        raise BadFile("damaged pickle: a complex number of what is no number")
    return complex(real, imag)


def _getattr(reader, owner, name, *_) -> Inert:
    if not (isinstance(owner, Inert) or (isinstance(owner, Global) and owner.inert)) or type(name) is not str:
        reader.refuse(f"getattr of {owner if isinstance(owner, Global) else 'a ' + type(owner).__name__}")
    return Inert("builtins.getattr", (owner, name))


def _reconstructor(reader, cls, _base=None, _state=None) -> Inert:
    """`copyreg._reconstructor`: how protocols 0 and 1 begin an object."""
    if not (isinstance(cls, Global) and cls.inert):
        reader.refuse(f"an object of {cls}")
    return Inert(cls.name)


# -- NumPy


def _dtype(reader, code, _align=False, _copy=True) -> np.dtype:
    if type(code) is not str or not _NUMPY_CODE.fullmatch(code):
        raise BadFile(f"NumPy dtype {shorten(code)!r} is not supported: only little-endian numbers and short text are")
    return np.dtype(code)


def check_dtype_state(state) -> None:
    """state: (version, byte order, sub-dtype, names, fields, ...) of a dtype that is a simple little-endian one."""
    simple = type(state) is tuple and len(state) >= 5 and state[1] in ("<", "|", "=") and state[2:5] == (None,) * 3
    if not simple:
        raise BadFile("a NumPy dtype that is big-endian or structured: save the file again as simple tensors")


def _scalar(reader, dtype, raw=b""):
    raw = _encode(reader, raw) if type(raw) is str else raw
    if not isinstance(dtype, np.dtype) or type(raw) is not bytes or len(raw) != dtype.itemsize or not raw:
        raise BadFile("damaged pickle: a NumPy scalar")
    return np.frombuffer(raw, dtype, 1)[0]


def _empty_array(reader, cls, _shape=(0,), _code=b"b") -> np.ndarray:
    """`_reconstruct`: an array that BUILD will fill."""
    if not (isinstance(cls, Global) and cls.name == "numpy.ndarray"):
        reader.refuse(f"an array of class {cls}")
    return np.empty(0, np.int8)


def fill_array(reader, array: np.ndarray, state) -> None:
    """BUILD of an array. state: (version, shape, dtype, is_fortran, raw bytes), or without the version."""
    if type(state) is not tuple or len(state) not in (4, 5):
        raise BadFile("damaged pickle: the state of a NumPy array")
    shape, dtype, fortran, raw = state[-4:]
    raw = _encode(reader, raw) if type(raw) is str else raw  # text by Python 2
    _check_array(reader, raw, dtype, shape)
    array.__setstate__((1, shape, dtype, bool(fortran), bytes(raw)))


def _array(reader, raw, dtype, shape, order="C") -> np.ndarray:
    """`_frombuffer`, how protocol 5 writes an array: `raw` is referred to, not copied."""
    shape = (shape,) if type(shape) is int else shape
    _check_array(reader, raw, dtype, shape)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C")


def _check_array(reader, raw, dtype, shape) -> None:
    if not isinstance(dtype, np.dtype) or dtype.name not in DTYPES:
        raise BadFile(f"a NumPy array of type {shorten(dtype)}, which is no number")
    if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and 0 <= n < MAX_DIM for n in shape):
        raise BadFile("damaged pickle: the shape of a NumPy array")
    if type(raw) not in (bytes, bytearray) or prod(shape) * dtype.itemsize != len(raw):
        raise BadFile(f"a NumPy array of shape {shorten(shape)} with other bytes")
    reader.spend(len(raw))


# -- torch


def _tensor(
    reader, view, offset, size, stride, _requires_grad=False, _hooks=None, metadata=None, dtype=None
) -> TensorRef:
    """`_rebuild_tensor` and `_v2`, where the storage knows the dtype."""
    dtype = getattr(view, "dtype", None) if dtype is None else dtype
    if not isinstance(view, StorageView) or not isinstance(dtype, torch.dtype):
        raise BadFile("damaged pickle: a tensor without a storage")
    if metadata is not None and (type(metadata) is not dict or any(v is not False for v in metadata.values())):
        raise BadFile("a conjugated or negated view: save the tensor with resolve_conj().resolve_neg()")
    return tensor_ref(view, dtype, offset, size, stride)


def _tensor_v3(reader, view, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> TensorRef:
    return _tensor(reader, view, offset, size, stride, requires_grad, hooks, metadata, dtype)


def _parameter(reader, data, *_) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise BadFile("damaged pickle: a parameter without a tensor")
    return data


def _tensor_with_attributes(reader, func, cls, args, _state=None) -> TensorRef:
    """`_rebuild_from_type_v2`: a tensor somebody has set attributes on; they are left out."""
    if not (isinstance(func, Global) and func.name.startswith("torch._utils._rebuild_")):
        reader.refuse(f"a tensor made by {func}")
    if not (isinstance(cls, Global) and cls.name in TYPES):
        reader.refuse(f"a tensor of class {cls}")
    return reader.call(func, args)


CALLS: dict[str, Callable] = {
    "builtins.dict": _dict,
    "builtins.list": _sequence(list),
    "builtins.tuple": _sequence(tuple),
    "builtins.set": _sequence(set, 60),
    "builtins.frozenset": _sequence(frozenset, 60),
    "builtins.bytes": _bytes(bytes),
    "builtins.bytearray": _bytes(bytearray),
    "builtins.complex": _complex,
    "builtins.getattr": _getattr,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    "collections.deque": _sequence(list),
    "copyreg._reconstructor": _reconstructor,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.numeric._frombuffer": _array,
    "torch.Size": _sequence(tuple),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
}
