"""Read a pickle without running it: the standard library's unpickler with every opcode replaced that names or calls.

`pickle._Unpickler` is CPython's own in Python (the same in 3.11, 3.12 and 3.13 but for wording). Its opcodes for
numbers, text and containers serve as they are. Here no class is imported, no function that a file names is called, no
`__reduce__` or `__setstate__` runs: a name gets a meaning from the tables of names.py alone (`CALLS`, our own functions
that build simple values; `TYPES`, which stand for themselves; `INERT`), and every other name ends the reading.

Bounds: the stream lies in memory, so that a length which lies takes nothing; every opcode and every copy is paid from a
budget, so that neither time nor memory grows beyond a small multiple of the file; keys whose hash a file can choose are
limited.
"""

import pickle
import sys
from collections.abc import Callable, Iterable
from struct import unpack

import numpy as np
import torch

from ..errors import UserError, shorten
from . import names
from .names import Global, Inert
from .tensors import BadFile

MAX_OPS = 5_000_000  # a ViT-B with optimizer state takes 20,000
MAX_CHOSEN_KEYS = 20_000  # numbers as keys: unlike str their hash is not salted, so they can be made to collide
SLACK = 1 << 28  # bytes that containers, memo and copies may take beyond twice the pickle's own size
# Bytes that an opcode takes at most beside what it reads; a call also pays for what it copies.
COSTS = {
    **dict.fromkeys(pickle.EMPTY_SET + pickle.FROZENSET, 250),
    **dict.fromkeys(pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE, 100),
    **dict.fromkeys(pickle.REDUCE + pickle.NEWOBJ + pickle.NEWOBJ_EX + pickle.INST + pickle.OBJ, 300),
    **dict.fromkeys(pickle.BINPERSID + pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.LIST + pickle.MARK, 100),
}


def _chosen_keys(key, depth: int = 0) -> int:
    """How many of `key`'s parts have an unsalted hash. Raises BadFile for what no stored file has as a key."""
    if type(key) in (str, bytes):
        return 0
    if type(key) is int and abs(key) < 1 << 60:
        return 1
    if key is None or type(key) in (bool, float, complex) or isinstance(key, np.generic | torch.dtype | Global | Inert):
        return 1
    if type(key) is tuple and depth < 2 and len(key) <= 16:  # hashing a deep tuple overflows the C stack
        return 1 + sum(_chosen_keys(k, depth + 1) for k in key)
    raise BadFile(f"a dictionary key or set member that is a {type(key).__name__}")


class Unpickler(pickle._Unpickler):
    """Reads one pickle of `stream` (mmap or BytesIO, at the pickle's first byte); `load` leaves it behind the pickle.

    size: bytes of the stream; path: the file in messages; persistent: turns a persistent id into a `StorageView`, None
    where there are none.
    """

    def __init__(self, stream, size: int, path: str, persistent: Callable | None = None):
        super().__init__(stream, encoding="latin1")  # text of Python 2 may be bytes
        self.path, self.persistent = path, persistent
        self.bytes_left, self.ops_left, self.keys_left = 2 * size + SLACK, MAX_OPS, MAX_CHOSEN_KEYS

    def load(self):
        """The object. Raises UserError for a name that is refused, BadFile for anything else."""
        try:
            value = super().load()
            frame = self._unframer.current_frame
            if self.metastack or self.stack or (frame and frame.read(1)):
                raise BadFile("damaged pickle: it ends with an unfinished value")
            return value
        except (UserError, BadFile):
            raise
        except Exception as error:  # whatever bytes make the opcodes raise
            raise BadFile(f"damaged or truncated pickle ({type(error).__name__}: {shorten(error)})") from error

    # -- bounds and refusal

    def refuse(self, what: str):
        package, name = what.partition(".")[0], what.rpartition(".")[2]
        if name[:1].isupper() and package not in sys.stdlib_module_names:  # a class: a module, a config, a dataset
            raise UserError(
                f"{self.path}: refuses to unpickle {shorten(what)}, an object that its own code makes; nothing in it "
                "was run. If you trust it as you trust a program: `selfpatch convert FILE OUT.safetensors "
                "--trust-pickle` takes its tensors out"
            )
        raise UserError(
            f"{self.path}: refuses to unpickle {shorten(what)}: "
            "not a tensor file, or an unsafe one; nothing in it was run"
        )

    def spend(self, nbytes: int) -> None:
        self.bytes_left -= nbytes
        if self.bytes_left < 0:
            raise BadFile("a pickle that would take far more memory than the file's size")

    def count(self, cost: int) -> None:
        """One opcode of `cost` bytes."""
        self.ops_left -= 1
        if self.ops_left < 0:
            raise BadFile(f"more than {MAX_OPS} opcodes")
        self.spend(cost)

    def check_keys(self, keys: Iterable) -> None:
        self.keys_left -= sum(_chosen_keys(key) for key in keys)
        if self.keys_left < 0:
            raise BadFile(f"more than {MAX_CHOSEN_KEYS} keys that are not text")

    # -- names and calls

    def find_class(self, module: str, name: str):
        """What a name stands for here: a torch.dtype or a `Global`."""
        found = names.meaning(f"{module}.{name}")
        return self.refuse(f"{module}.{name}") if found is None else found

    def call(self, func, args, kwargs=None):
        """What `func(*args)` means here; used for REDUCE, NEWOBJ, NEWOBJ_EX, OBJ and INST alike."""
        if not isinstance(func, Global) or type(args) is not tuple:
            self.refuse(f"a call of {func if isinstance(func, Global | Inert) else 'a ' + type(func).__name__}")
        if func.inert:
            return Inert(func.name, (*args, kwargs) if kwargs else args)
        if func.name not in names.CALLS or kwargs:
            self.refuse(f"a call of {func.name}")
        return names.CALLS[func.name](self, *args)

    def _instantiate(self, klass, args: list) -> None:  # of INST and OBJ
        self.append(self.call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args, func = self.stack.pop(), self.stack.pop()
        self.append(self.call(func, args))

    load_newobj = load_reduce

    def load_newobj_ex(self) -> None:
        kwargs, args, func = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(self.call(func, args, kwargs))

    def persistent_load(self, pid):
        if self.persistent is None:
            self.refuse("a persistent id")
        return self.persistent(pid)

    def get_extension(self, code: int):
        self.refuse(f"extension code {code}")

    def load_next_buffer(self) -> None:
        self.refuse("an out-of-band buffer")

    load_readonly_buffer = load_next_buffer

    def load_build(self) -> None:
        state, obj = self.stack.pop(), self.stack[-1]
        if isinstance(obj, Inert):
            if isinstance(obj.state, dict) and isinstance(state, dict):
                self.spend(100 * len(obj.state))
                state = {**obj.state, **state}
            obj.state = state
        elif isinstance(obj, np.ndarray):
            names.fill_array(self, obj, state)
        elif isinstance(obj, np.dtype):
            names.check_dtype_state(state)
        elif type(obj) is not dict or not isinstance(state, dict):  # attributes of a dict (`_metadata`) are not used
            self.refuse(f"a state for a {type(obj).__name__}")

    # -- containers with keys, and bytes

    def set_items(self, items: list) -> None:
        obj = self.stack[-1]
        target = obj.items if isinstance(obj, Inert) else obj
        if type(target) is not dict or len(items) % 2:
            raise BadFile(f"damaged pickle: it sets items of a {type(obj).__name__}")
        self.fill(target, items[::2], items[1::2])

    def fill(self, target: dict, keys: list, values: list) -> None:
        """Put items into a dict. Raises BadFile for a key that is there already."""
        self.check_keys(keys)
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise BadFile("a dictionary with one key twice")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def load_additems(self) -> None:
        self.check_keys(self.stack)  # since the mark
        super().load_additems()

    def load_frozenset(self) -> None:
        self.check_keys(self.stack)  # since the mark
        super().load_frozenset()

    def load_frame(self) -> None:  # the standard one takes a frame that the file cuts short
        (size,) = unpack("<Q", self.read(8))
        self._unframer.load_frame(size)
        if self._unframer.current_frame.getbuffer().nbytes != size:
            raise BadFile(f"truncated pickle: a frame of {size} bytes leaves the file")

    def load_bytearray8(self) -> None:  # the standard one makes room for the declared length first
        (length,) = unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))


def _counted(load: Callable, cost: int) -> Callable:
    def counted(self) -> None:
        self.count(cost)
        load(self)

    return counted


# Opcodes by the names of the standard library's methods, of which the class above has its own.
Unpickler.dispatch = {
    code: _counted(getattr(Unpickler, load.__name__), COSTS.get(code, 50))
    for code, load in pickle._Unpickler.dispatch.items()
}
