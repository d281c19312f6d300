"""A tree that was read, as tensors by dotted name and everything else in its nesting: `flatten`."""

import numpy as np
import torch

from ..errors import UserError, shorten
from .names import Global, Inert
from .tensors import StorageView, TensorRef, array_ref

MAX_DEPTH = 100  # nested containers; DINO's files have 4
MAX_NODES = 2_000_000  # members of all containers (a container as 8) along every path: shared references multiply
MAX_NAME_CHARS = 1 << 26  # dotted names of all tensors together
# Times that all tensors, were each copied, may exceed their storages: tied blocks share a dozen times, and an expanded
# tensor has one element for many. Tensors of a megabyte in all may share as they like.
MAX_SHARING, SMALL = 64, 1 << 20

_LEAVES = {int, float, str, bool, type(None)}
_NOTHING = object()  # in place of a tensor


def flatten(tree, where: str = "checkpoint") -> tuple[dict[str, TensorRef], object]:
    """(tensors by dotted name through dicts, lists, tuples and `Inert`; everything else in its nesting).

    Names: `student.module.backbone.cls_token`, `optimizer.state.0.exp_avg`; a bare tensor is called `tensor`. Where
    there are no tensors, NumPy arrays are the tensors (detectron2's files, and converters to it). In the rest, keys are
    strings, a Namespace or config is a dict, NumPy scalars are Python's, sets are sorted lists, dtypes, devices and
    classes are their names; a container of nothing but tensors is absent, a tensor among other things in a list is
    None. `where` begins the message of the UserError raised for a cycle, more than 100 levels, more than 2 million
    members, two tensors with one dotted name, or a name that cannot be printed.
    """
    for arrays_too in (False, True):
        walk = _Walk(where, arrays_too)
        rest = walk.node(tree)
        if walk.tensors:
            break
    walk.check_sharing()
    return walk.tensors, {} if rest is _NOTHING else rest


class _Walk:
    """One walk through a tree, with what bounds it."""

    def __init__(self, where: str, arrays_too: bool):
        self.where, self.arrays_too = where, arrays_too
        self.tensors: dict[str, TensorRef] = {}
        self.parts: list[str] = []  # of the name of the current node
        self.active: set[int] = set()  # ids of the containers around it
        self.arrays: dict[int, TensorRef] = {}  # by the array's id
        self.nodes_left, self.chars_left = MAX_NODES, MAX_NAME_CHARS

    def stop(self, text: str):
        raise UserError(f"{self.where}: {text}{' at ' + shorten('.'.join(self.parts[:8])) if self.parts else ''}")

    def check_sharing(self) -> None:
        held = sum({id(t.storage): t.storage.nbytes for t in self.tensors.values()}.values())
        if sum(t.nbytes for t in self.tensors.values()) > max(MAX_SHARING * held, SMALL):
            self.parts.clear()
            self.stop(f"{len(self.tensors)} tensors that share absurdly little data ({held} bytes)")

    def node(self, node):
        if not isinstance(node, dict | list | tuple | set | frozenset | Inert):
            return self.leaf(node)
        if id(node) in self.active:
            self.stop("a container that contains itself")
        if len(self.active) >= MAX_DEPTH:
            self.stop(f"more than {MAX_DEPTH} nested containers")
        self.nodes_left -= 8 if isinstance(node, Inert) else 8 + len(node)
        if self.nodes_left < 0:
            self.stop("absurdly many members")
        self.active.add(id(node))
        try:
            return self.container(node)
        finally:
            self.active.remove(id(node))

    def container(self, node):
        if isinstance(node, Inert):
            return self.node(node.content())
        if isinstance(node, dict):
            keys = [str(k) for k in node]
            if len(set(keys)) != len(keys):
                self.stop("two keys that read the same, as 1 and '1'")
            out = {k: v for k, v in self.members(zip(keys, node.values(), strict=True)) if v is not _NOTHING}
            return out if out or not node else _NOTHING
        if isinstance(node, set | frozenset):
            return [self.node(v) for v in sorted(node, key=lambda v: (type(v).__name__, str(v)))]
        out = [v for _, v in self.members((str(i), v) for i, v in enumerate(node))]
        if out and all(v is _NOTHING for v in out):
            return _NOTHING
        return type(node)(None if v is _NOTHING else v for v in out)

    def members(self, pairs):
        for key, value in pairs:
            if type(value) in _LEAVES:
                yield key, value
                continue
            self.parts.append(key)
            yield key, self.node(value)
            self.parts.pop()

    def leaf(self, node):
        if isinstance(node, np.ndarray) and self.arrays_too:
            node = self.arrays.setdefault(id(node), array_ref(node, self.where))
        if isinstance(node, TensorRef):
            return self.tensor(node)
        if isinstance(node, StorageView):
            self.stop("a storage without a tensor")
        if isinstance(node, Global | torch.dtype):
            return str(node)
        return node.item() if isinstance(node, np.generic) else node

    def tensor(self, ref: TensorRef):
        self.chars_left -= sum(map(len, self.parts)) + len(self.parts) + 10
        if self.chars_left < 0:
            self.stop("absurdly long names")
        name = ".".join(self.parts) or "tensor"
        if name in self.tensors:
            self.stop("two tensors of one dotted name")
        if not name.isprintable():
            self.stop("a tensor's name has characters that cannot be printed")
        self.tensors[name] = ref
        return _NOTHING
