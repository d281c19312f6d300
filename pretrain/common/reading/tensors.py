"""Tensors that still lie in a file: `Storage` (a run of bytes) and `TensorRef` (a checked view of one).

Nothing here allocates from a number that a file declares: a `TensorRef` exists only if all its elements lie inside
bytes that are present, and `TensorRef.load` views the mapped file, or copies at most that storage.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch

from ..errors import UserError, shorten

_DTYPES = (
    "float64 float32 float16 bfloat16 complex64 complex128 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
DTYPES: dict[str, torch.dtype] = {n: getattr(torch, n) for n in _DTYPES.split() if hasattr(torch, n)}
MAX_DIM = 1 << 40  # bounds the products below; more elements than any file holds


class BadFile(ValueError):
    """What is wrong with a file, without its name; becomes a `UserError` that begins with the name."""


@contextlib.contextmanager
def one_error(where: str) -> Iterator[None]:
    """Whatever goes wrong in the block becomes a UserError of one line, which begins with `where`, the file."""
    try:
        yield
    except UserError:
        raise
    except BadFile as error:
        raise UserError(f"{where}: {error}") from error
    except OSError as error:
        raise UserError(f"{error.filename or where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a crafted file makes the parsers raise is the file's fault
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise UserError(f"{where}: damaged, or not a checkpoint file ({reason})") from error


@dataclass(frozen=True)
class Source:
    """A file's bytes: the private mapping of the whole file, or a part of it in memory."""

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
        whole = np.frombuffer(self.source.buffer, np.uint8, self.nbytes, self.offset)
        if self.crc is not None and zlib.crc32(whole) != self.crc:
            where = f"{self.source.path}: storage {shorten(self.key)}"
            raise UserError(f"{where} is damaged (CRC-32 differs): download again")
        self.crc = None  # checked once
        if not whole.flags.writeable or self.offset % dtype.itemsize:
            if self.copy is None:
                self.copy = whole.copy()  # one aligned copy for all tensors of this storage
            whole = self.copy
        return torch.from_numpy(whole[: self.nbytes // dtype.itemsize * dtype.itemsize]).view(dtype)


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

    `offset` and `stride` count elements.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

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
    shape, stride, item = tuple(shape), tuple(stride), dtype.itemsize
    what = f"a tensor of shape {shorten(shape)}, stride {shorten(stride)}, offset {shorten(offset)}"
    if len(shape) != len(stride) or len(shape) > 64:
        raise BadFile(f"{what}: {len(stride)} strides and {len(shape)} dimensions (at most 64)")
    if type(offset) is not int or not all(0 <= i < MAX_DIM for i in (offset, *shape, *stride)):
        raise BadFile(f"{what}: a number is negative or absurd")
    if 0 in shape:
        if prod(i for i in shape if i) >= MAX_DIM:
            raise BadFile(f"{what} is absurd")
        return TensorRef(view.storage, dtype, 0, shape, stride)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if (last + 1) * item > view.nbytes:
        raise BadFile(f"{what}, {dtype} leaves its storage of {view.nbytes} bytes")
    if view.start % item:
        raise BadFile(f"{what} begins inside an element")
    return TensorRef(view.storage, dtype, view.start // item + offset, shape, stride)


def dense_ref(storage: Storage, dtype: torch.dtype, shape: Sequence[int]) -> TensorRef:
    """A checked `TensorRef` of all of `storage`, in C order. Raises BadFile where the sizes differ."""
    if len(shape) > 64:
        raise BadFile(f"a tensor of {len(shape)} dimensions")
    strides = [prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape))]
    ref = tensor_ref(StorageView(storage, None, 0, storage.nbytes), dtype, 0, shape, strides)
    if ref.nbytes != storage.nbytes:
        raise BadFile(f"a tensor of shape {shorten(shape)} with {storage.nbytes} bytes")
    return ref


def array_ref(array: np.ndarray, path: str) -> TensorRef:
    """A NumPy array that was read from `path`."""
    array = np.asarray(array, order="C")
    return dense_ref(Storage(Source(path, array), "array", array.nbytes, 0), DTYPES[array.dtype.name], array.shape)
