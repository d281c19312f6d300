"""Networks of a user's own: `backbones/NAME.py` in a plug-in folder. NAME is the network's name and its card's family.

A file defines

    CARD = {"strides": (4, 8, 16, 32), "widths": (64, 128, 256, 512), "mean": ..., "std": ...}
        facts of the card (pretrain.common.card): stride in pixels and channels of the map of each block (or stage), the
        first one first; mean and std of RGB in 0..1, which may be left to `--card`; others that `build` asks for.
    build(state, card) -> nn.Module
        The empty network. state: name -> tensor, all weights of the file that are not dropped; they are loaded into it
        by name, strictly: each has to be there, in its shape, and none may be left.
    features(module, images, blocks) -> (image embedding [B, D], [patch map [B, C, h, w] of each of `blocks`])
        images: normalised, [B, 3, H, W], of any size; blocks: numbers from 0, rising. A map's patch in row i and
        column j is that of the pixels from (i, j) x stride on: h is H / stride, rounded up or down. It must give the
        same for the same picture whatever is beside it, change nothing, and go without torch.no_grad: COCO's and
        ADE20K's recipes train the network by it.

and may define `DROP = {"fc.": "classifier"}`, beginnings of names -> why those tensors are dropped; and `claims(shapes,
meta)` and `convert(state, meta)` as a format does (benchmarks.formats). Every such network is a format of its own name:
`--format NAME` reads a file as its weights; with `claims`, a file is recognised. A format of a file of its own
(`formats/NAME.py`) goes before it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from ...pretrain.common.card import FAMILIES, Card
from ...pretrain.common.errors import UserError, naming
from ...pretrain.common.plugins import Kind, import_file

COUNTER = "num_batches_tracked"  # of batch norm: no weight


@dataclass(frozen=True)
class Network:
    """A plug-in's network. As a format, it is what `Plugin.module` is of a file in formats/."""

    name: str
    build: Callable
    features: Callable
    facts: Mapping
    drop: Mapping[str, str]
    own_claims: Callable | None = None
    own_convert: Callable | None = None

    @property
    def card(self) -> Card:
        """What its file says of it."""
        return Card.from_dict({**self.facts, "family": self.name})

    def module(self, card: Card, weights: Mapping):
        """The empty module for these weights, on the CPU. Raises UserError where `build` gives none."""
        import torch  # takes its time

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # so that nothing it draws, beside the weights, differs from one time to the next
            module = self.build(weights, card)
        if not isinstance(module, torch.nn.Module):
            raise UserError(f"build of {self.name} gives {type(module).__name__} instead of a torch module")
        return module

    def claims(self, shapes: Mapping, meta: Mapping) -> int:
        return self.own_claims(shapes, meta) if self.own_claims else 0

    def convert(self, state: Mapping, meta: Mapping) -> tuple[dict, Card, dict[str, str]]:
        """All tensors but those that are dropped, by their own names below what all names begin with. Raises UserError
        for those of another network."""
        if self.own_convert:
            return self.own_convert(state, meta)
        failed = None
        for prefix in _wrappings(state):
            names = {k.removeprefix(prefix): k for k in state}
            dropped = {
                k: why for name, k in names.items() for start, why in self.drop.items() if name.startswith(start)
            }
            dropped |= {k: "counter" for k in state if k.rpartition(".")[2] == COUNTER}
            weights = {name: state[k] for name, k in names.items() if k not in dropped}
            try:
                wanted = weight_shapes(self.module(self.card, weights))
            except Exception as error:  # `build` may look for names that are further inside
                failed = failed or error
                continue
            if wanted.keys() & weights.keys():
                self._check(weights, wanted)
                return weights, self.card, dropped
            failed = failed or UserError(f"it has none of the network's tensors, which are {_few(wanted)}")
        raise failed

    def _check(self, weights: Mapping, wanted: Mapping) -> None:
        from ...pretrain.common.shapes import shapes_of
        from ...pretrain.common.weights import check_fit

        try:
            check_fit(shapes_of(weights), wanted, "it", f"the network {self.name}")
        except UserError as error:
            raise UserError(str(error).removeprefix("it: ")) from None


def _wrappings(names: Iterable[str]) -> list[str]:
    """Beginnings, up to a dot, that all names have: none, then one segment more each."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
    return ["".join(f"{part}." for part in shared[:n]) for n in range(len(shared) + 1)]


def _few(names: Iterable[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + " ..."


def weight_shapes(module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's weights: floating-point parameters and buffers that its state dict holds."""
    state = module.state_dict().items()
    return {k: tuple(v.shape) for k, v in state if v.is_floating_point() and k.rpartition(".")[2] != COUNTER}


def _read(path: Path) -> Network:
    """The network of a file. Raises UserError for one that lacks what it must have."""
    return _read_once(path, path.stat().st_mtime_ns)


@cache
def _read_once(path: Path, _time: int) -> Network:
    module, name = import_file(path, f"backbones_{path.stem}"), path.stem
    with naming(f"plug-in {path}"):
        if name in FAMILIES:
            raise UserError(f"{name} is a family of networks that are built here: give it another name")
        for function in ("build", "features"):
            if not callable(getattr(module, function, None)):
                raise UserError(f"it has no {function}(...)")
        facts, drop = getattr(module, "CARD", None), getattr(module, "DROP", {})
        if not isinstance(facts, Mapping):
            raise UserError("it has no CARD, a table with strides, widths, mean and std")
        if not isinstance(drop, Mapping) or not all(isinstance(x, str) for pair in drop.items() for x in pair):
            raise UserError("its DROP is no table of beginnings of names and reasons")
        more = (getattr(module, key, None) for key in ("claims", "convert"))
        network = Network(name, module.build, module.features, facts, drop, *more)
        _ = network.card  # which may be none
    return network


BACKBONES = Kind("backbones", None, read=_read)


def network_of(family: str) -> Network:
    """The network of a card's family. Raises UserError that names those there are."""
    found = BACKBONES.scan()
    if family not in found:
        own = ", ".join(found) or "none"
        raise UserError(
            f"no network of family {family}: there are {', '.join(FAMILIES)} and, from backbones/ in the folders of "
            f"--plugins, {own}"
        )
    return found[family].module
