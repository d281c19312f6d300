"""A stored state of ours, given back as it was saved: `load_state`."""

from ..errors import UserError, shorten
from .files import read_tree
from .flatten import flatten
from .tensors import TensorRef

_VALUES = (int, float, complex, str, bytes, bool, type(None))


def load_state(path):
    """The tree of a file that torch.save wrote: dicts, lists, tuples and simple values, tensors on the CPU in memory of
    their own.

    Every checksum is compared. Raises UserError for a file that is damaged, or holds anything else.
    """
    tree = read_tree(path)
    flatten(tree, str(path))  # no cycles, and no more of anything than a small multiple of the file

    def copied(node):
        if isinstance(node, TensorRef):
            return node.load().clone()
        if type(node) is dict:
            return {key: copied(value) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(copied(value) for value in node)
        if type(node) in _VALUES:
            return node
        raise UserError(f"{path}: holds {shorten(node)}, which no stored state has")

    return copied(tree)
