"""Tensors that still lie in a checkpoint file: `Storage` (a run of bytes), `TensorRef` (a checked view), `flatten`.

Nothing here allocates from a number that a file declares: a `TensorRef` exists only if all its elements lie inside
bytes that are present, and `TensorRef.load` views the mapped file, or copies at most that storage.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from ...pretrain.common.errors import UserError, shorten

MAX_DEPTH = 100  # nested containers; DINO's files have 4
MAX_NODES = 2_000_000  # members of all containers (a container as 8) along every path: shared references multiply
MAX_NAME_CHARS = 1 << 26  # dotted names of all tensors together
# Times that all tensors, were each copied, may exceed their storages: tied blocks share a dozen times, and an expanded
# tensor has one element for many. Tensors of a megabyte in all may share as they like.
MAX_SHARING, SMALL = 64, 1 << 20
MAX_DIM = 1 << 40  # bounds the products below; more elements than any file holds


class BadFile(ValueError):
    """What is wrong with a file, without its name; becomes a `UserError` that begins with the name."""


@dataclass(frozen=True)
class Source:
    """A file's bytes: the private mapping of the whole file, or one bytes object from a pickle in it."""

    path: str
    buffer: object = field(repr=False)


@dataclass(eq=False)
class Storage:
    """`nbytes` bytes of `source` from `offset` (None until known). `crc`: the CRC-32 a zip record promises, or None."""

    source: Source
    key: str
    nbytes: int
    offset: int | None = None
    crc: int | None = None
    copy: np.ndarray | None = field(default=None, repr=False)

    def flat(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it as a 1-d tensor of `dtype` (a remainder is cut off). Views where it can, else shares one copy.

        Raises UserError where the bytes are not those that were written (CRC-32).
        """
        if self.nbytes < dtype.itemsize:
            return torch.empty(0, dtype=dtype)
        if self.crc is not None:
            with memoryview(self.source.buffer) as view, view[self.offset : self.offset + self.nbytes] as part:
                if zlib.crc32(part) != self.crc:
                    raise UserError(
                        f"{self.source.path}: storage {shorten(self.key)} is damaged (CRC-32 differs): download again"
                    )
            self.crc = None  # checked once
        count = self.nbytes // dtype.itemsize
        whole = np.frombuffer(self.source.buffer, np.uint8, self.nbytes, self.offset)
        if self.copy is None and whole.flags.writeable and self.offset % dtype.itemsize == 0:
            return torch.frombuffer(self.source.buffer, dtype=dtype, count=count, offset=self.offset)
        if self.copy is None:
            self.copy = whole.copy()  # one aligned copy for all tensors of this storage
        return torch.frombuffer(self.copy, dtype=dtype, count=count)


@dataclass(eq=False)
class StorageView:
    """What a pickle's storage id stands for. `dtype` is None for untyped storages; `start` and `nbytes` in bytes."""

    storage: Storage
    dtype: torch.dtype | None
    start: int
    nbytes: int


@dataclass(eq=False)
class TensorRef:
    """A tensor that has not been read yet; every element is known to lie in `storage`.

    `offset` and `stride` count elements. `is_array`: a NumPy array inside a torch file, which is no weight.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_array: bool = False

    @property
    def key(self) -> str:
        """The storage's id in the file; tensors with one key share memory."""
        return self.storage.key

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def load(self) -> torch.Tensor:
        """The tensor, on the CPU. Views copy-on-write private memory: writing to it never reaches the file.

        The mapping lives as long as any tensor of it; tensors of one storage share memory, as they did when saved, also
        between two calls: clone before changing. The file must not be cut short while it is in use.
        """
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.dtype == torch.bool:  # a byte other than 0 and 1 is no valid bool in memory
            return self.storage.flat(torch.uint8).as_strided(self.shape, self.stride, self.offset) != 0
        return self.storage.flat(self.dtype).as_strided(self.shape, self.stride, self.offset)


def tensor_ref(view: StorageView, dtype: torch.dtype, offset: int, shape: Sequence[int], stride: Sequence[int]):
    """A checked `TensorRef`. Raises BadFile for anything that is not a set of elements inside the storage.

    An expanded tensor (stride 0) may have more elements than its storage; `flatten` bounds how many all of them have.
    """
    if not all(type(x) in (tuple, list) and all(type(i) is int for i in x) for x in (shape, stride)):
        raise BadFile("a tensor's shape or stride is no tuple of integers")
    shape, stride, what = tuple(shape), tuple(stride), f"a tensor of shape {shorten(tuple(shape))}"
    if len(shape) != len(stride) or len(shape) > 64:
        raise BadFile(f"{what} has {len(stride)} strides and {len(shape)} dimensions (at most 64)")
    if type(offset) is not int or not all(0 <= i < MAX_DIM for i in (offset, *shape, *stride)):
        raise BadFile(f"{what}, stride {shorten(stride)}, offset {shorten(offset)}: a number is negative or absurd")
    numel, item = prod(shape), dtype.itemsize
    if numel == 0:
        if prod(i for i in shape if i) >= MAX_DIM:
            raise BadFile(f"{what} is absurd")
        return TensorRef(view.storage, dtype, 0, shape, stride)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if (last + 1) * item > view.nbytes:
        raise BadFile(
            f"{what}, stride {shorten(stride)}, offset {offset}, {dtype} leaves its storage of {view.nbytes} bytes"
        )
    if view.start % item:
        raise BadFile(f"{what} begins inside an element")
    return TensorRef(view.storage, dtype, view.start // item + offset, shape, stride)


class Global:
    """A name of the allow-list, standing for itself. Nothing was imported."""

    __slots__ = ("inert", "name")

    def __init__(self, name: str, inert: bool = False):
        self.name, self.inert = name, inert

    def __repr__(self):
        return self.name

    __str__ = __repr__


# The dict subclasses among the placeholders: what `BUILD` gives them are attributes, not members.
DICT_LIKE = {
    "yacs.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
}


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

    __str__ = __repr__

    def plain(self):
        """Its content: a dict, a list, a value, or its name where there is nothing else."""
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
        if state is not None:
            return {} if self.name in DICT_LIKE else state
        if self.name in DICT_LIKE or self.name == "argparse.Namespace":
            return {}
        if self.name == "builtins.getattr":
            return f"<{shorten(self.args[0])}.{shorten(self.args[1])}>"
        return list(self.args) if self.args else repr(self)


_PLAIN = {int, float, str, bool, type(None)}
_NOTHING = object()  # what `flatten` puts in place of a tensor


def flatten(tree, where: str = "checkpoint", arrays_too: bool = False) -> tuple[dict[str, TensorRef], object]:
    """(tensors by dotted name through dicts, lists, tuples and placeholders; everything else in its nesting).

    Names: `student.module.backbone.cls_token`, `optimizer.state.0.exp_avg`; a bare tensor is called `tensor`. In the
    rest, keys are strings, a Namespace or config is a plain dict, NumPy scalars are Python's, sets are sorted lists,
    dtypes, devices and classes are their names; a container of nothing but tensors is absent, a tensor among other
    things in a list is None. `where` begins the message of the UserError raised for a cycle, more than 100 levels,
    more than 2 million members, two tensors with one dotted name, or a name that cannot be printed. arrays_too: NumPy
    arrays are tensors.
    """
    tensors: dict[str, TensorRef] = {}
    parts: list[str] = []
    active: set[int] = set()
    arrays: dict[int, np.ndarray] = {}
    budget = {"nodes": MAX_NODES, "chars": MAX_NAME_CHARS}

    def stop(text):
        raise UserError(f"{where}: {text}{' at ' + shorten('.'.join(parts[:8])) if parts else ''}")

    def spend(what, amount):
        budget[what] -= amount
        if budget[what] < 0:
            stop(f"absurdly many members ({what})")

    def members(pairs):
        for key, value in pairs:
            if type(value) in _PLAIN:
                yield key, value
                continue
            parts.append(key)
            yield key, walk(value)
            parts.pop()

    def leaf(node):
        if isinstance(node, TensorRef) and node.is_array and not arrays_too:
            if id(node) not in arrays:  # referenced twice, in memory once
                arrays[id(node)] = node.load().numpy()
            return arrays[id(node)]
        if isinstance(node, TensorRef):
            spend("chars", sum(map(len, parts)) + len(parts) + 10)
            name = ".".join(parts) or "tensor"
            if name in tensors:
                stop("two tensors of one dotted name")
            if not name.isprintable():
                stop("a tensor's name has characters that cannot be printed")
            tensors[name] = node
            return _NOTHING
        if isinstance(node, StorageView):
            stop("a storage without a tensor")
        if isinstance(node, Global | torch.dtype):
            return str(node)
        return node.item() if isinstance(node, np.generic) else node

    def walk(node):
        if not isinstance(node, dict | list | tuple | set | frozenset | Inert):
            return leaf(node)
        if id(node) in active:
            stop("a container that contains itself")
        if len(active) >= MAX_DEPTH:
            stop(f"more than {MAX_DEPTH} nested containers")
        spend("nodes", 8 if isinstance(node, Inert) else 8 + len(node))
        active.add(id(node))
        try:
            return content(node)
        finally:
            active.remove(id(node))

    def content(node):
        if isinstance(node, Inert):
            return walk(node.plain())
        if isinstance(node, dict):
            keys = [str(k) for k in node]
            if len(set(keys)) != len(keys):
                stop("two keys that read the same, as 1 and '1'")
            out = {k: v for k, v in members(zip(keys, node.values(), strict=True)) if v is not _NOTHING}
            return out if out or not node else _NOTHING
        if isinstance(node, set | frozenset):
            return [walk(v) for v in sorted(node, key=lambda v: (type(v).__name__, str(v)))]
        out = [v for _, v in members((str(i), v) for i, v in enumerate(node))]
        if out and all(v is _NOTHING for v in out):
            return _NOTHING
        return type(node)(None if v is _NOTHING else v for v in out)

    meta = walk(tree)
    held = sum({id(t.storage): t.storage.nbytes for t in tensors.values()}.values())
    if sum(t.nbytes for t in tensors.values()) > max(MAX_SHARING * held, SMALL):
        stop(f"{len(tensors)} tensors that share absurdly little data ({held} bytes)")
    return tensors, {} if meta is _NOTHING else meta
