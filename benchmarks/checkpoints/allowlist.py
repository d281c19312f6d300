"""What the names in a pickle may mean (see `unpickle`): the whole list, and our own functions behind it.

Read this file to know everything a checkpoint can make the reader do. The functions of `CALLS` take the machine and the
arguments that the file gives, check them, and build plain values; none of them is the function the name belongs to.
"""

import re
from collections.abc import Callable

import numpy as np
import torch

from .tensorref import BadFile, Global, Inert, Source, Storage, StorageView, TensorRef, shorten, tensor_ref

_DTYPES = (
    "float64 float32 float16 bfloat16 complex64 complex128 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
DTYPES: dict[str, torch.dtype] = {n: getattr(torch, n) for n in _DTYPES.split() if hasattr(torch, n)}
_TYPED = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexDouble": "complex128", "ComplexFloat": "complex64",
}  # fmt: skip
STORAGES: dict[str, torch.dtype | None] = {f"torch.{n}Storage": DTYPES[d] for n, d in _TYPED.items()}
STORAGES |= dict.fromkeys(["torch.UntypedStorage", "torch._UntypedStorage"])  # dtype None: the tensor says it

_DCP = "Metadata MetadataIndex StorageMeta TensorStorageMetadata TensorProperties ChunkStorageMetadata "
_DCP += "BytesStorageMetadata _MEM_FORMAT_ENCODING"
# Harmless names of the field: they become `Inert`.
PLACEHOLDERS = {
    "argparse.Namespace",
    "builtins.slice",
    "builtins.range",
    "torch.device",
    "torch.serialization._get_layout",
    "yacs.config.CfgNode",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
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


def canonical(name: str) -> str:
    """One spelling for what Python 2, NumPy 2 and old torch call differently."""
    for old, new in _MODULES:
        # torch's two aliases hold for storages only: torch.storage._load_from_bytes is torch.load in disguise
        if name.startswith(old) and (new != "torch." or new + name[len(old) :] in STORAGES):
            name = new + name[len(old) :]
    return _SAME.get(name, name)


_NUMPY_CODE = re.compile(r"[|<=]?[biufcSU][0-9]{1,9}")


# -- plain containers and values


def pairs(m, items) -> dict:
    """A dict of a dict, or of a list of pairs (Python 2 wrote pairs as lists)."""
    if type(items) is dict:
        items = list(items.items())
    if type(items) not in (list, tuple) or any(type(p) not in (list, tuple) or len(p) != 2 for p in items):
        raise BadFile("damaged pickle: a dictionary of what is no pairs")
    m.spend(200 * len(items))
    out: dict = {}
    m.fill(out, [p[0] for p in items], [p[1] for p in items])
    return out


def _sequence(kind: type) -> Callable:
    def make(m, items=(), _maxlen=None):
        if type(items) not in (list, tuple, set, frozenset):
            raise BadFile(f"damaged pickle: a {kind.__name__} of what is no list")
        m.spend(16 * len(items))
        return kind(items)

    return make


def _bytes(kind: type) -> Callable:
    def make(m, data=b"", encoding="latin-1"):
        if type(data) not in (str, bytes, bytearray):
            raise BadFile(f"damaged pickle: {kind.__name__} of what is no text")
        m.spend(len(data))
        return kind(_encode(m, data, encoding) if type(data) is str else data)

    return make


def _encode(m, text, encoding="latin1") -> bytes:
    """`_codecs.encode`, by which protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        m.refuse(f"_codecs.encode to {shorten(encoding)}")
    return m.latin1(text)


def _default_dict(m, factory=None, items=()) -> dict:
    if factory is not None and not (
        isinstance(factory, Global) and factory.name.startswith(("builtins.", "collections."))
    ):
        m.refuse(f"a defaultdict of {factory}")
    return pairs(m, items)


def _complex(m, real=0.0, imag=0.0) -> complex:
    if not all(type(x) in (int, float) for x in (real, imag)):
        raise BadFile("damaged pickle: a complex number of what is no number")
    return complex(real, imag)


def _getattr(m, owner, name, *_):
    if not (isinstance(owner, Inert) or (isinstance(owner, Global) and owner.inert)) or type(name) is not str:
        m.refuse(f"getattr of {owner if isinstance(owner, Global) else 'a ' + type(owner).__name__}")
    return Inert("builtins.getattr", (owner, name))


def _reconstructor(m, cls, _base=None, _state=None):
    """`copyreg._reconstructor`: how protocols 0 and 1 begin an object."""
    if not (isinstance(cls, Global) and cls.inert):
        m.refuse(f"an object of {cls}")
    return Inert(cls.name)


# -- NumPy


def _dtype(m, code, _align=False, _copy=True) -> np.dtype:
    if type(code) is not str or not _NUMPY_CODE.fullmatch(code):
        raise BadFile(f"NumPy dtype {shorten(code)!r} is not supported: only little-endian numbers and short text are")
    return np.dtype(code)


def check_dtype_state(state):
    """state: (version, byte order, sub-dtype, names, fields, ...) of a dtype that is a plain little-endian one."""
    if (
        type(state) is not tuple
        or len(state) < 5
        or state[1] not in ("<", "|", "=")
        or any(x is not None for x in state[2:5])
    ):
        raise BadFile("a NumPy dtype that is big-endian or structured: save the file again as plain tensors")


def _scalar(m, dtype, raw=b""):
    raw = m.latin1(raw) if type(raw) is str else raw
    if not isinstance(dtype, np.dtype) or type(raw) is not bytes or len(raw) != dtype.itemsize or not raw:
        raise BadFile("damaged pickle: a NumPy scalar")
    m.spend(len(raw))
    return np.frombuffer(raw, dtype, 1)[0]


def _empty_array(m, cls, _shape=(0,), _code=b"b") -> TensorRef:
    if not (isinstance(cls, Global) and cls.name == "numpy.ndarray"):
        m.refuse(f"an array of class {cls}")
    array = TensorRef(None, None, 0, (), (), is_array=not m.array_tensors)
    m.unfilled[id(array)] = array
    return array


def fill_array(m, array: TensorRef, state):
    """BUILD of an empty array. state: (version, shape, dtype, is_fortran, raw bytes), or without the version."""
    if type(state) is not tuple or len(state) not in (4, 5):
        raise BadFile("damaged pickle: the state of a NumPy array")
    shape, dtype, fortran, raw = state[-4:]
    made = _array(m, raw, dtype, shape, "F" if fortran else "C")
    array.storage, array.dtype, array.shape, array.stride = made.storage, made.dtype, made.shape, made.stride


def _array(m, raw, dtype, shape, order="C") -> TensorRef:
    """`_frombuffer`, how protocol 5 writes an array: `raw` is bytes (text if by Python 2), referred to, not copied."""
    kind = DTYPES.get(dtype.name) if isinstance(dtype, np.dtype) else None
    if kind is None:
        raise BadFile(f"a NumPy array of type {shorten(dtype)}, which is no number")
    shape = (shape,) if type(shape) is int else shape
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise BadFile("damaged pickle: the shape of a NumPy array")
    if id(raw) not in m.raws:  # the same bytes for two arrays are the same storage
        data = m.latin1(raw) if type(raw) is str else raw
        if type(data) not in (bytes, bytearray):
            raise BadFile("damaged pickle: a NumPy array without bytes")
        m.raws[id(raw)] = raw, Storage(Source(m.path, data), f"array {len(m.raws)}", len(data), 0)
    storage = m.raws[id(raw)][1]
    strides, step = [], 1
    for n in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    strides = strides if order == "F" else strides[::-1]
    ref = tensor_ref(StorageView(storage, None, 0, storage.nbytes), kind, 0, shape, strides)
    if ref.nbytes != storage.nbytes:
        raise BadFile(f"a NumPy array of shape {shorten(shape)} with {storage.nbytes} bytes")
    ref.is_array = not m.array_tensors
    return ref


# -- torch


def _rebuild(m, view, dtype, offset, size, stride, metadata) -> TensorRef:
    if not isinstance(view, StorageView) or not isinstance(dtype, torch.dtype):
        raise BadFile("damaged pickle: a tensor without a storage")
    if metadata is not None and (type(metadata) is not dict or any(v is not False for v in metadata.values())):
        raise BadFile("a conjugated or negated view: save the tensor with resolve_conj().resolve_neg()")
    m.spend(200)
    return tensor_ref(view, dtype, offset, size, stride)


def _tensor(m, view, offset, size, stride, _requires_grad=False, _hooks=None, metadata=None) -> TensorRef:
    return _rebuild(m, view, getattr(view, "dtype", None), offset, size, stride, metadata)


def _tensor_v3(m, view, offset, size, stride, _requires_grad, _hooks, dtype, metadata=None) -> TensorRef:
    return _rebuild(m, view, dtype, offset, size, stride, metadata)


def _parameter(m, data, *_) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise BadFile("damaged pickle: a parameter without a tensor")
    return data


def _tensor_with_attributes(m, func, cls, args, _state=None) -> TensorRef:
    """`_rebuild_from_type_v2`: a tensor somebody has set attributes on; they are left out."""
    if not (isinstance(func, Global) and func.name.startswith("torch._utils._rebuild_")):
        m.refuse(f"a tensor made by {func}")
    if not (isinstance(cls, Global) and cls.name in TYPES):
        m.refuse(f"a tensor of class {cls}")
    return m.call(func, args)


CALLS: dict[str, Callable] = {
    "builtins.dict": lambda m, items=(): pairs(m, items),
    "builtins.list": _sequence(list),
    "builtins.tuple": _sequence(tuple),
    "builtins.set": lambda m, items=(): m.new_set(set, items),
    "builtins.frozenset": lambda m, items=(): m.new_set(frozenset, items),
    "builtins.bytes": _bytes(bytes),
    "builtins.bytearray": _bytes(bytearray),
    "builtins.complex": _complex,
    "builtins.getattr": _getattr,
    "collections.OrderedDict": lambda m, items=(): pairs(m, items),
    "collections.Counter": lambda m, items=(): pairs(m, items),
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
