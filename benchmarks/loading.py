"""Checkpoint file -> encoder: safe read, format detection, key accounting, refusal, fingerprint.

Every tensor of a file is either used or dropped on purpose by its format; anything else is refused with its name.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import plugins, zoo
from .card import Card, heads_from, normalisation_from, parse_field
from .encoder import Encoder
from .errors import UserError
from .tensorref import flatten
from .torchfile import read_checkpoint

# Segments that wrappers (DDP, torch.compile, FSDP) put into names; they carry no information.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")


class State(Mapping):
    """A file's tensors by dotted name, as a format sees them. A tensor is read from disk when it is asked for.

    `shapes`: name -> shape of all of them. Whatever a format has asked for counts as used.
    """

    def __init__(self, refs: Mapping[str, object]):
        self.refs = refs
        self.shapes = {k: tuple(r.shape) for k, r in refs.items()}
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.refs[key].load()
        self.used.add(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def below(self, prefix: str) -> dict[str, str]:
        """Names that start with `prefix`, without it -> full names."""
        return {k.removeprefix(prefix): k for k in self.refs if k.startswith(prefix)}


@dataclass
class Reading:
    """What one format makes of a file. `dropped`: name -> reason."""

    format: str
    weights: dict[str, Tensor]
    card: Card
    dropped: dict[str, str]


@dataclass
class Checkpoint:
    """A file that was read and understood, before it becomes a network.

    reading: the format that won; `card` is its card completed by overrides, the file's own statements and the zoo, and
    `facts` says where each of these came from. rivals: formats that claim the file equally and read it differently
    (then `format` needs to be given). lacking: what keeps a task from running, in words.
    """

    path: Path
    reading: Reading
    card: Card
    facts: dict[str, str]
    overrides: dict
    rivals: list[Reading]
    lacking: list[str]
    fingerprint: str
    row: str | None  # 'METHOD|BACKBONE' of the published row that this very file made, by the zoo

    @property
    def accounting(self) -> str:
        """`150/150 tensors, 21.7 M parameters, 0 missing, 14 dropped (8 head, 6 loss)`"""
        weights, dropped = self.reading.weights, self.reading.dropped
        n, count = len(weights), sum(w.numel() for w in weights.values())
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
        reasons = Counter(dropped.values())
        why = f" ({', '.join(f'{c} {r}' for r, c in reasons.most_common())})" if reasons else ""
        return f"{n}/{n} tensors, {size} parameters, 0 missing, {len(dropped)} dropped{why}"


def names(keys, limit: int = 8) -> str:
    """A list of names, cut after `limit`."""
    keys = sorted(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def read_file(path: Path) -> tuple[State, dict]:
    """All tensors and everything else of a checkpoint file. Wrapper prefixes are gone from the names.

    Raises UserError for anything but a checkpoint. A `config.json` or `NAME.config.json` beside it joins the rest.
    """
    tensors, meta = flatten(read_checkpoint(path).tree, str(path))
    refs: dict[str, object] = {}
    for key, ref in tensors.items():
        bare = WRAPPERS.sub("", key)
        if bare in refs:
            raise UserError(f"{path}: two tensors are called {bare} once `module.` and the like are stripped")
        refs[bare] = ref
    if not refs:
        raise UserError(f"{path}: holds no tensors, so it is no checkpoint")
    meta = dict(meta)
    for config in (path.with_suffix(".config.json"), path.parent / "config.json"):
        if config.is_file():
            try:
                meta["config.json"] = json.loads(config.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{config} beside the checkpoint is not JSON: {error}") from None
            break
    return State(refs), meta


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and float32 values of the weights that a network takes."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {list(value.shape)}\n".encode())
        digest.update(value.numpy().reshape(-1).view("uint8").data)
    return f"sha256:{digest.hexdigest()}"


def look_untrained(weights: Mapping[str, Tensor]) -> str | None:
    """Why the weights look like an initialisation, or None.

    A trained network has moved its LayerNorms off 1 and 0, and neighbouring positions have become alike.
    """
    norms = {k: v for k, v in weights.items() if re.search(r"norm\d?\.(weight|bias)$", k)}
    if norms and all(torch.all(v == (1 if k.endswith("weight") else 0)) for k, v in norms.items()):
        return "every LayerNorm is still 1 and 0"
    positions = weights.get("pos_embed")
    if positions is not None and positions.shape[1] >= 9 and positions.any():
        side = int(positions.shape[1] ** 0.5)
        grid = positions[0, -side * side :].float().view(side, side, -1)
        alike = torch.cosine_similarity(grid[:, 1:], grid[:, :-1], dim=-1).mean()
        if alike < 0.1:
            return f"neighbouring positions have nothing in common (mean cosine {alike:.2f})"
    return None


def _read_as(plugin: plugins.Plugin, state: State, meta: dict, path: Path) -> Reading:
    """One format's reading, checked: every tensor is used or dropped, and the weights are exactly the network's."""
    view = State(state.refs)
    try:
        weights, card, dropped = plugin.module.convert(view, meta)
    except UserError as error:
        raise UserError(f"{path}: as format {plugin.name}: {error}") from None
    loose = set(state) - view.used - set(dropped)
    if loose:
        raise UserError(
            f"{path}: as format {plugin.name}: {len(loose)} tensors belong neither to the network nor to what the "
            f"format drops: {names(loose)}. Give another --format, or remove them"
        )
    for key, value in weights.items():
        if not value.is_floating_point():
            raise UserError(f"{path}: {key} holds {value.dtype}, not floating-point weights")
    weights = {k: v.detach().float() for k, v in weights.items()}
    return Reading(plugin.name, weights, card, dict(dropped))


def _check_shapes(path: Path, weights: Mapping[str, Tensor], card: Card) -> None:
    """Names and shapes against the network that the card describes, which is built without memory."""
    with torch.device("meta"):
        wanted = Encoder(card).named_shapes()
    missing, surplus = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    wrong = [
        f"{k} {list(weights[k].shape)} instead of {list(s)}"
        for k, s in wanted.items()
        if k in weights and tuple(weights[k].shape) != s
    ]
    problems = [f"{len(missing)} missing: {names(missing)}"] if missing else []
    problems += [f"{len(surplus)} unexpected: {names(surplus)}"] if surplus else []
    problems += [f"{len(wrong)} of another shape: {names(wrong, 4)}"] if wrong else []
    if problems:
        size = f"{card.dim} wide, {card.depth} blocks"
        raise UserError(f"{path}: does not fit the network of its card ({size}): {'; '.join(problems)}")


def _choose(path: Path, state: State, meta: dict, format: str | None) -> list[Reading]:
    """The readings of the formats with the highest claim."""
    if format:
        return [_read_as(plugins.get("formats", format), state, meta, path)]
    claims = {}
    for plugin in plugins.scan("formats").values():
        try:
            claims[plugin.name] = (int(plugin.module.claims(state.shapes, meta)), plugin)
        except UserError:
            if plugin.package:  # ours must import; a broken one of the user's is listed by `ls` and hinders nobody
                raise
    best = max((c for c, _ in claims.values()), default=0)
    if best <= 0:
        known = ", ".join(claims)
        raise UserError(f"{path}: no format knows these {len(state)} tensors ({names(state, 5)}); there are: {known}")
    return [_read_as(plugin, state, meta, path) for claim, plugin in claims.values() if claim == best]


def _complete(reading: Reading, meta: dict, known: dict, overrides: dict) -> tuple[Card, dict[str, str], str]:
    """The reading's card with every fact that can be had, where each came from, and why heads are unknown if they are.

    Order: what the user gave, what the format knows, the file's own statements and the config beside it, the zoo.
    """
    own = reading.card
    facts = {k: "format" for k in ("heads", "mean", "std") if getattr(own, k) is not None}
    found = {} if own.mean and own.std else normalisation_from(meta)
    facts |= dict.fromkeys(found, "config.json")
    why = ""
    if own.heads is None:
        heads, why = heads_from(meta, own.dim)
        if heads:
            found["heads"], facts["heads"] = heads, why
    for key, value in known.items():
        if key not in ("format", "row", "name") and key not in facts:
            found[key], facts[key] = value, "zoo"
    return own.override(found).override(overrides), facts | dict.fromkeys(overrides, "given"), why


def open_checkpoint(path: str | Path, *, format: str | None = None, card: Mapping | None = None) -> Checkpoint:
    """Read, recognise and account for a checkpoint file; nothing in it is executed.

    format: name of a format, instead of detection. card: fields of the card that override what the file says
    (`{"heads": 6, "mean": 0.5}`). Raises UserError for a file that is damaged, unsafe, unknown, or only partly used.
    """
    path = Path(path)
    overrides = {k: parse_field(k, v) for k, v in (card or {}).items()}
    state, meta = read_file(path)
    known = zoo.look_up(path)
    first, *rest = _choose(path, state, meta, format or known.get("format"))
    full, facts, why = _complete(first, meta, known, overrides)
    rivals = [r for r in rest if _complete(r, meta, known, overrides)[0] != full or not _same(r.weights, first.weights)]
    lacking = []
    if full.heads is None:
        usual = f"{full.dim}/64 = {full.dim / 64:g} is the usual number, and only a guess"
        lacking.append(f"{why}: give --heads N ({usual})")
    elif full.dim % full.heads:
        raise UserError(f"{path}: {full.heads} heads ({facts['heads']}) do not divide a width of {full.dim}")
    if full.mean is None or full.std is None:
        lacking.append(
            "nothing says how images are normalised: give --card mean=.. std=.. "
            "(0.5 and 0.5 for AugReg; 0.485,0.456,0.406 and 0.229,0.224,0.225 for DeiT and DINO)"
        )
    _check_shapes(path, first.weights, full.override({"heads": full.heads or 1}))
    row = known.get("row")
    return Checkpoint(path, first, full, facts, overrides, rivals, lacking, fingerprint(first.weights), row)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def differences(a: Reading, b: Reading) -> str:
    """How two readings of a file differ, in a few words."""
    left, right = a.card.as_dict(), b.card.as_dict()
    parts = [f"{k} {left[k] or 'unknown'} or {right[k] or 'unknown'}" for k in left if left[k] != right[k]]
    return "; ".join(parts) or "the tensors that they take"


def ready(checkpoint: Checkpoint) -> None:
    """Raise UserError if anything keeps a task from running: a tie between formats, unknown heads or normalisation."""
    c = checkpoint
    if c.rivals:
        rivals = " or ".join(f"{r.format} ({differences(c.reading, r)})" for r in c.rivals)
        raise UserError(f"{c.path}: could be {c.reading.format} or {rivals}: give --format NAME")
    if c.lacking:
        raise UserError(f"{c.path}: {'; '.join(c.lacking)}")


def build(checkpoint: Checkpoint) -> Encoder:
    """The network of an opened checkpoint. Raises UserError where `ready` does."""
    ready(checkpoint)
    with torch.device("meta"):
        encoder = Encoder(checkpoint.card)
    encoder.assign(checkpoint.reading.weights)
    encoder.fingerprint = checkpoint.fingerprint
    encoder.name = default_name(checkpoint.path)
    encoder.accounting = checkpoint.accounting
    return encoder


def default_name(path: Path) -> str:
    """Parent folder + stem: `runs/ckpt.pth` is runs/ckpt. For an export in RUN/exports, RUN is the parent."""
    parent = path.resolve().parent
    return f"{(parent.parent if parent.name == 'exports' else parent).name}/{path.stem}"


def load(path: str | Path, *, format: str | None = None, **overrides) -> Encoder:
    """A checkpoint file as an encoder: `load("file.pth", heads=6)`.

    overrides: fields of the card (heads, mean, std, pos_resize ...; see card.Card). Strict: every weight of the network
    comes from the file and every tensor of the file is accounted for (`encoder.accounting`); else UserError.
    """
    return build(open_checkpoint(path, format=format, card=overrides))
