"""Read a pickle without unpickling it: a small machine of our own over `pickletools.genops`, which only decodes.

No class is imported, no function that a file names is called, no `__reduce__` or `__setstate__` runs. A name (GLOBAL
and its kin) gets meaning only from the tables of `allowlist`: `CALLS` (our own functions that build plain values),
`TYPES` (stand for themselves), `PLACEHOLDERS` (become `Inert`). Every other name ends the reading with a UserError.

Bounds: genops reads lengths through `read(n)` of a stream in memory, so a lying length takes nothing; the number of
opcodes, the bytes copied by calls, and keys whose hash a file can choose are limited, so that neither time nor memory
grows beyond a small multiple of the file.
"""

import pickletools
import struct
from collections.abc import Callable

import numpy as np
import torch

from ...pretrain.common.errors import UserError
from . import allowlist
from .tensorref import BadFile, Global, Inert, Storage, TensorRef, shorten

MAX_OPS = 5_000_000  # a ViT-B with optimizer state takes 20,000
MAX_CHOSEN_KEYS = 20_000  # numbers as keys: unlike str their hash is not salted, so they can be made to collide
SLACK = 1 << 28  # bytes that containers, memo and copies may take beyond twice the pickle's own size

_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, struct.error)


def _chosen_keys(key, depth: int = 0) -> int:
    """How many of `key`'s parts have an unsalted hash. Raises BadFile for what no checkpoint has as a key."""
    if type(key) in (str, bytes):
        return 0
    if type(key) is int and abs(key) < 1 << 60:
        return 1
    if key is None or type(key) in (bool, float, complex) or isinstance(key, np.generic | torch.dtype | Global | Inert):
        return 1
    if type(key) is tuple and depth < 2 and len(key) <= 16:  # hashing a deep tuple overflows the C stack
        return 1 + sum(_chosen_keys(k, depth + 1) for k in key)
    raise BadFile(f"a dictionary key or set member that is a {type(key).__name__}")


class Machine:
    """Interprets one pickle from `stream` (mmap or BytesIO, at the pickle's first byte; `end`: where its bytes end).

    persistent: turns a persistent id into a `StorageView`, None where there are none. array_tensors: NumPy arrays are
    weights (a plain pickle of arrays); False inside torch files. `run()` gives the object and leaves the stream behind
    STOP. Raises UserError for a name that is refused, BadFile for anything else.
    """

    def __init__(self, stream, end: int, path: str, persistent: Callable | None = None, array_tensors: bool = False):
        self.stream, self.end, self.path, self.persistent = stream, end, path, persistent
        self.array_tensors = array_tensors
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}
        self.unfilled: dict[int, TensorRef] = {}  # NumPy arrays whose BUILD has not come yet, by id
        self.raws: dict[int, tuple[object, Storage]] = {}  # array data seen, by id: shared when referenced twice
        self.pos = 0
        self.left = 2 * end + SLACK
        self.keys_left = MAX_CHOSEN_KEYS

    def run(self):
        push, ops = _PUSH, _OPS
        try:
            for n, (op, arg, pos) in enumerate(pickletools.genops(self.stream)):
                if n > MAX_OPS:
                    raise BadFile(f"more than {MAX_OPS} opcodes")
                name = op.name
                if name in push:
                    self.stack.append(arg)
                    continue
                self.pos = pos
                if name == "STOP":
                    break
                if name not in ops:
                    raise BadFile(f"opcode {name} (position {pos}) is not supported")
                ops[name](self, arg)
            if self.marks or len(self.stack) != 1 or self.unfilled:
                raise BadFile("damaged pickle: it ends with an unfinished value")
            return self.stack.pop()
        except BadFile as error:
            raise BadFile(f"{error} (position {self.pos})") from None
        except _DAMAGE as error:
            raise BadFile(f"damaged or truncated pickle behind position {self.pos} ({shorten(error)})") from error

    # -- bounds and refusal

    def refuse(self, what: str):
        raise UserError(
            f"{self.path}: refuses to unpickle {shorten(what)} (position {self.pos}): "
            "not a tensor file, or an unsafe one; nothing in it was run"
        )

    def spend(self, nbytes: int):
        self.left -= nbytes
        if self.left < 0:
            raise BadFile("a pickle that would take far more memory than the file's size")

    def check_keys(self, keys):
        for key in keys:
            if type(key) is not str:
                self.keys_left -= _chosen_keys(key)
        if self.keys_left < 0:
            raise BadFile(f"more than {MAX_CHOSEN_KEYS} keys that are not text")

    # -- the stack

    def give(self, value):
        self.stack.append(value)  # not `m.stack.append(m.since_mark())`: that finds the stack before it is exchanged

    def new(self, value):
        self.spend(64)
        self.stack.append(value)

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _):
        self.marks.append(self.stack)
        self.stack = []

    def last(self, n: int) -> tuple:
        if len(self.stack) < n:
            raise BadFile("damaged pickle: the stack is too short")
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        return items

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def put(self, index):
        self.spend(100)
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    # -- names and calls

    def find(self, name: str):
        """What a dotted name stands for here: a torch.dtype or a `Global`."""
        same = allowlist.canonical(name)
        if same.startswith("torch.") and same[6:] in allowlist.DTYPES:
            return allowlist.DTYPES[same[6:]]
        if same in allowlist.CALLS or same in allowlist.TYPES or same in allowlist.STORAGES:
            return Global(same)
        if same in allowlist.PLACEHOLDERS or same.rpartition(".")[0] in allowlist.PLACEHOLDERS:  # or a method of one
            return Global(same, inert=True)
        return self.refuse(name)

    def global_(self, arg: str):
        self.stack.append(self.find(arg.replace(" ", ".", 1)))

    def stack_global(self, _):
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise BadFile("damaged pickle: a name that is no text")
        self.stack.append(self.find(f"{module}.{name}"))

    def call(self, func, args, kwargs=None):
        """What `func(*args)` means here; used for REDUCE, NEWOBJ, NEWOBJ_EX, OBJ and INST alike."""
        if not isinstance(func, Global) or type(args) is not tuple:
            self.refuse(f"a call of {func if isinstance(func, Global | Inert) else 'a ' + type(func).__name__}")
        self.spend(300)
        if func.inert:
            return Inert(func.name, (*args, kwargs) if kwargs else args)
        if func.name not in allowlist.CALLS or kwargs:
            self.refuse(f"a call of {func.name}")
        return allowlist.CALLS[func.name](self, *args)

    def reduce(self, _):
        self.stack.append(self.call(*self.last(2)))

    def newobj_ex(self, _):
        self.stack.append(self.call(*self.last(3)))

    def obj(self, _):
        func, *args = self.since_mark()
        self.give(self.call(func, tuple(args)))

    def inst(self, arg: str):
        args = tuple(self.since_mark())
        self.stack.append(self.call(self.find(arg.replace(" ", ".", 1)), args))

    def binpersid(self, _):
        if self.persistent is None:
            self.refuse("a persistent id")
        self.spend(100)
        self.stack.append(self.persistent(self.stack.pop()))

    def build(self, _):
        obj, state = self.last(2)
        if isinstance(obj, Inert):
            if isinstance(obj.state, dict) and isinstance(state, dict):
                self.spend(100 * len(obj.state))
                state = {**obj.state, **state}
            obj.state = state
        elif id(obj) in self.unfilled:
            allowlist.fill_array(self, self.unfilled.pop(id(obj)), state)
        elif isinstance(obj, np.dtype):
            allowlist.check_dtype_state(state)
        elif type(obj) is not dict or not isinstance(state, dict):  # attributes of a dict (`_metadata`) are not used
            self.refuse(f"a state for a {type(obj).__name__}")
        self.stack.append(obj)

    # -- containers

    def latin1(self, text: str) -> bytes:
        self.spend(len(text))
        return text.encode("latin-1")

    def add(self, items):
        obj = self.stack[-1]
        if type(obj) is list:
            obj.extend(items)
        elif isinstance(obj, Inert):
            obj.members.extend(items)
        else:
            raise BadFile(f"damaged pickle: it appends to a {type(obj).__name__}")

    def set_items(self, items):
        obj = self.stack[-1]
        target = obj.items if isinstance(obj, Inert) else obj
        if type(target) is not dict or len(items) % 2:
            raise BadFile(f"damaged pickle: it sets items of a {type(obj).__name__}")
        self.fill(target, items[::2], items[1::2])

    def fill(self, target: dict, keys, values):
        self.check_keys(keys)
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise BadFile("a dictionary with one key twice")

    def add_to_set(self, _):
        items = self.since_mark()
        self.check_keys(items)
        if type(self.stack[-1]) is not set:
            raise BadFile("damaged pickle: it adds to what is no set")
        self.stack[-1].update(items)

    def new_set(self, kind: type, items) -> set | frozenset:
        if type(items) not in (list, tuple, set, frozenset):
            raise BadFile("damaged pickle: a set of what is no list")
        self.spend(250 + 60 * len(items))
        self.check_keys(items)
        return kind(items)

    def proto(self, arg):
        if arg > 5:
            raise BadFile(f"pickle protocol {arg} is unknown")

    def frame(self, arg):
        if self.stream.tell() + arg > self.end:
            raise BadFile(f"truncated pickle: a frame of {arg} bytes at position {self.pos} leaves the file")


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_PUSH = frozenset(_VALUES.split())
_OPS: dict[str, Callable] = {
    "PROTO": Machine.proto,
    "FRAME": Machine.frame,
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.give(m.stack[-1]),
    "NONE": lambda m, _: m.give(None),
    "NEWTRUE": lambda m, _: m.give(True),
    "NEWFALSE": lambda m, _: m.give(False),
    "EMPTY_DICT": lambda m, _: m.new({}),
    "EMPTY_LIST": lambda m, _: m.new([]),
    "EMPTY_TUPLE": lambda m, _: m.give(()),
    "EMPTY_SET": lambda m, _: m.give(m.new_set(set, ())),
    "TUPLE": lambda m, _: m.new(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.new(m.last(1)),
    "TUPLE2": lambda m, _: m.new(m.last(2)),
    "TUPLE3": lambda m, _: m.new(m.last(3)),
    "LIST": lambda m, _: m.new(m.since_mark()),
    "DICT": lambda m, _: m.give(allowlist.pairs(m, list(zip(*[iter(m.since_mark())] * 2, strict=True)))),
    "FROZENSET": lambda m, _: m.give(m.new_set(frozenset, m.since_mark())),
    "APPEND": lambda m, _: m.add(m.last(1)),
    "APPENDS": lambda m, _: m.add(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "ADDITEMS": Machine.add_to_set,
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"], Machine.put),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], lambda m, index: m.give(m.memo[index])),
    "GLOBAL": Machine.global_,
    "STACK_GLOBAL": Machine.stack_global,
    "INST": Machine.inst,
    "OBJ": Machine.obj,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.reduce,
    "NEWOBJ_EX": Machine.newobj_ex,
    "BUILD": Machine.build,
    "BINPERSID": Machine.binpersid,
    "PERSID": lambda m, _: m.refuse("a persistent id"),
    **dict.fromkeys(["EXT1", "EXT2", "EXT4"], lambda m, arg: m.refuse(f"extension code {arg}")),
    **dict.fromkeys(["NEXT_BUFFER", "READONLY_BUFFER"], lambda m, _: m.refuse("an out-of-band buffer")),
}
