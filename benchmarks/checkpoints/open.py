"""Checkpoint file -> encoder: safe read, the format's reading, facts from elsewhere, refusal, fingerprint."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...pretrain.common.card import SIZE_RULES, Card, parse_field
from ...pretrain.common.errors import UserError, naming, shorten
from ...pretrain.common.shapes import shapes_of
from ...pretrain.common.weights import check_fit, fingerprint
from ..backbones.build import encoder_with, tried, wanted_shapes
from ..backbones.encoder import Encoder
from . import FORMATS, completeness, named, parts
from .recognise import Reading, readings
from .state import read_file
from .stated import GIVEN, facts_of, heads_from, normalisation_in, text_of, trained_for, usual_heads

SEEN = {"depth", "depths", "blocks", "qkv_bias", "registers", "patch", "dim"}  # of a card: what its weights show
ASSUMED = "assumed"  # where a fact came from that nothing says
NETWORKS = ("teacher", "student", "online", "ema")  # what --weights takes


@dataclass
class Checkpoint:
    """A file that was read and understood, before it becomes a network.

    reading: the format that won; `card` is its card completed by overrides, the file's own statements and the zoo, and
    `facts` says where each of these came from, and repeats the warnings for the record. rivals: formats that claim the
    file equally and read it differently (then `format` needs to be given). lacking: what keeps a task from running.
    trained: how long, if the file says so.
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
    warnings: list[str] = field(default_factory=list)  # what is unusual, or was given and has no effect
    trained: str | None = None

    @property
    def assumed(self) -> str:
        """`norm_eps 1e-05 (assumed), sizes padded (assumed)`: what nothing says of the network, and is taken; or ''."""
        fields = (key for key in self.card.as_dict() if self.facts.get(key) == ASSUMED)
        return ", ".join(f"{key} {text_of(getattr(self.card, key))} ({ASSUMED})" for key in fields)

    @property
    def accounting(self) -> str:
        """`150/150 tensors, 21.7 M parameters, 0 missing, 14 dropped (8 head, 6 loss)`"""
        weights, dropped = self.reading.weights, self.reading.dropped
        n, count = len(weights), sum(w.numel() for w in weights.values())
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
        reasons = Counter(dropped.values())
        why = f" ({', '.join(f'{c} {r}' for r, c in reasons.most_common())})" if reasons else ""
        return f"{n}/{n} tensors, {size} parameters, 0 missing, {len(dropped)} dropped{why}"


def look_untrained(weights: Mapping[str, Tensor], trained: str | None = None) -> str | None:
    """Why the weights look like an initialisation, or None.

    A trained network has moved its LayerNorms off 1 and 0, and neighbouring positions have become alike; its batch
    norms have seen pictures. Positions take long to become alike, while one step moves the norms: where the file says
    that the network was `trained`, however briefly, positions are no sign.
    """
    matrices = {k: v for k, v in weights.items() if v.ndim > 1 and k.endswith(".weight")}
    if zero := [k for k, v in matrices.items() if not v.any()]:
        return f"{len(zero)} of {len(matrices)} weight matrices are all 0: {zero[0]}{', ...' * (len(zero) > 1)}"
    means = [v for k, v in weights.items() if k.endswith(".running_mean")]
    if means and not any(v.any() for v in means):
        return "every batch norm's running mean is still 0"
    norms = {k: v for k, v in weights.items() if re.search(r"norm\d?\.(weight|bias)$", k)}
    if norms and all(torch.all(v == (1 if k.endswith("weight") else 0)) for k, v in norms.items()):
        return "every LayerNorm is still 1 and 0"
    positions = weights.get("pos_embed")
    if positions is not None and not trained and positions.shape[1] >= 9 and positions.any():
        side = int(positions.shape[1] ** 0.5)
        grid = positions[0, -side * side :].float().view(side, side, -1)
        alike = torch.cosine_similarity(grid[:, 1:], grid[:, :-1], dim=-1).mean()
        if alike < 0.1:
            return f"neighbouring positions have nothing in common (mean cosine {alike:.2f})"
    return None


def _check_shapes(path: Path, weights: Mapping[str, Tensor], card: Card) -> None:
    """Names and shapes against the network that the card describes, which is built without memory."""
    try:
        completeness.check_blocks(card, weights)
        wanted = wanted_shapes(card, weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # sizes that no layer can have
        text = f"{type(error).__name__}: {shorten(error)}"
        raise UserError(f"{path}: no network can be made of its card ({shorten(card.size)}): {text}") from error
    check_fit(shapes_of(weights), wanted, path, f"the network of its card ({card.size})")


def _complete(reading: Reading, meta: dict, known: dict, overrides: dict) -> tuple[Card, dict[str, str], str]:
    """The reading's card with every fact that can be had, where each came from, and why heads are unknown if they are.

    Order: what the user gave, what the format knows, the file's own statements and the config beside it, the zoo. A
    file that `convert` or `export` wrote says itself where its facts came from.
    """
    own = reading.card
    facts = {k: "format" for k in ("heads", "mean", "std") if getattr(own, k) is not None}
    facts |= dict.fromkeys(_assumed(reading), ASSUMED) | facts_of(meta)
    found = {}
    if not (own.mean and own.std):
        found, place = normalisation_in(meta)
        found, place = (found, place) if found else named.usual_normalisation(meta)
        facts |= dict.fromkeys(found, place)
    why = ""
    if own.heads is None and own.family == "vit":
        heads, why = heads_from(meta, own.dim)
        heads, why = (heads, why) if heads else named.heads_in(meta, own.dim) or (None, why)
        if heads:
            found["heads"], facts["heads"] = heads, why
    for key, value in known.items():
        if key not in ("format", "row", "name") and key not in facts:
            found[key], facts[key] = value, "zoo"
    given = {k: v for k, v in overrides.items() if k != "heads" or own.family == "vit" or own.own or v == own.heads}
    if doubts := _doubts(own.override(found), facts, given):
        facts["warnings"] = "; ".join([*filter(None, [facts.get("warnings")]), *doubts])
    return own.override(found).override(given), facts | dict.fromkeys(given, "given"), why


def _assumed(reading: Reading) -> list[str]:
    """Fields of the card that are taken without evidence, in its order."""
    rule = SIZE_RULES.get(reading.card.sizes, "")  # what the code of a format does not do at other sizes
    fields = reading.assumed | ({"sizes"} if f"({ASSUMED})" in rule else set())
    return [key for key, value in reading.card.as_dict().items() if key in fields and value is not None]


def _doubts(card: Card, facts: dict[str, str], given: dict) -> list[str]:
    """What speaks against the facts that the user gave: the card as it is without them, and what is usual."""
    found = [
        f"{key}={text_of(value)} is given, but it is {text_of(known)} by {facts.get(key, 'the format')}"
        for key, value in given.items()
        if (known := getattr(card, key)) not in (None, value) and key not in SEEN and facts.get(key) != ASSUMED
    ]
    usual = usual_heads(card.dim) if "heads" in given else None
    if usual and usual != given["heads"] and card.heads is None:
        found.append(f"unusual: heads={given['heads']} is given (usual at a width of {card.dim}: {usual})")
    return found


def open_file(
    path: str | Path,
    *,
    format: str | None = None,
    card: Mapping | None = None,
    weights: str | None = None,
    part: str | None = None,
    resolve: Callable[[Path], tuple[Path, dict]] | None = None,
    look_up: Callable[[Path, object], dict] | None = None,
) -> Checkpoint:
    """Read, recognise and account for a checkpoint: file or folder (see state.read_file).

    Nothing in it is executed. format: name of a format, instead of detection. card: fields of the card that override
    what the file says (`{"heads": 6, "mean": 0.5}`). weights: teacher, student or online, instead of the network that
    the format takes, or ema, an averaged copy. part: only what lies below this prefix of names. resolve, look_up: the
    hub's part (hub.open, which most callers want): where the file of a name lies, with what its library says of the
    network, and the facts known of this very file. Raises UserError for a file that is damaged, unsafe, unknown, or
    only partly used.
    """
    path = Path(path)
    overrides = {k: parse_field(k, v) for k, v in (card or {}).items()}
    if weights not in (None, *NETWORKS):
        raise UserError(f"--weights {weights}: it is one of {', '.join(NETWORKS)}")
    file, about = resolve(path) if resolve else (path, {})
    state, meta = read_file(file)
    meta |= about
    given = {GIVEN: {"num_heads": overrides["heads"]}} if "heads" in overrides else {}
    with naming(path):
        state = parts.part(state, part) if part else state
        state = parts.averaged(state) if weights == "ema" else state
    state.wanted = weights if weights != "ema" else None
    known = look_up(path, state.content(path)) if look_up else {}
    first, *rest = readings(path, state, meta | given, format or known.get("format"), overrides)
    full, facts, why = _complete(first, meta, known, overrides)
    mark = fingerprint(first.weights)
    rivals = [r for r in rest if (_complete(r, meta, known, overrides)[0], fingerprint(r.weights)) != (full, mark)]
    warnings = [*first.odd, *completeness.unusual(first.card)]
    said = "; ".join(warnings)  # of a converted file those of before come again
    warnings += [part for part in facts.pop("warnings", "").split("; ") if part not in said]
    if full.family != "vit" and not full.own and overrides.get("heads", full.heads) != full.heads:
        kept = f"those of the weights are used: {full.heads}" if full.heads else "it has none"
        warnings.append(f"--heads {overrides.pop('heads')} is not for a {full.family}; {kept}")
    if full.family == "vit" and full.heads and full.dim % full.heads:
        raise UserError(f"{path}: {full.heads} heads ({facts['heads']}) do not divide a width of {full.dim}")
    with named.named_where_it_fits(meta, first.weights):
        _check_shapes(path, first.weights, full if full.heads or full.family != "vit" else full.override({"heads": 1}))
    with naming(path):
        named.check_same(full, meta)
        full = tried(full, first.weights)
    if first.network or weights == "ema":
        facts["weights"] = first.network or weights
    if part:
        facts["part"] = f"{part} (given)"
    if warnings:
        facts["warnings"] = "; ".join(warnings)
    lacking = _lacking(full, why, first.weights)
    row, trained = known.get("row"), trained_for(meta)
    return Checkpoint(path, first, full, facts, overrides, rivals, lacking, mark, row, warnings, trained)


def _lacking(card: Card, why: str, weights: Mapping[str, Tensor]) -> list[str]:
    """What keeps a task from running. why: heads are unknown, if they are."""
    found = []
    if card.family == "vit" and card.heads is None:
        usual = f" ({card.dim}/64 = {card.dim // 64} is the usual number, and only a guess)"
        found.append(f"{why}: give --heads N{usual if card.dim % 64 == 0 else ''}")
    if card.family == "swinv2" and card.window is None:
        found.append("nothing says how large its windows are: give --card window=N (8, 16 or 24 patches are usual)")
    if card.mean is None or card.std is None:
        found.append(
            "nothing says how images are normalised: give --card mean=.. std=.. "
            "(0.5 and 0.5 for AugReg; 0.485,0.456,0.406 and 0.229,0.224,0.225 for DeiT and DINO)"
        )
    if bad := completeness.not_finite(weights):
        found.append(f"its weights hold NaN or inf, so that no number of it would mean anything: {bad}")
    return found


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
        titles = {r.format: FORMATS.get(r.format).doc.partition(":")[0] for r in (c.reading, *c.rivals)}
        writers = "by the code that wrote it: " + ", ".join(f"{name} for {title}" for name, title in titles.items())
        raise UserError(f"{c.path}: could be {c.reading.format} or {rivals}: give --format NAME, {writers}")
    if c.lacking:
        raise UserError(f"{c.path}: {'; '.join(c.lacking)}")


def build(checkpoint: Checkpoint) -> Encoder:
    """The network of an opened checkpoint. Raises UserError where `ready` does."""
    ready(checkpoint)
    encoder = encoder_with(checkpoint.card, checkpoint.reading.weights)
    encoder.fingerprint = checkpoint.fingerprint
    encoder.name = default_name(checkpoint.path)
    encoder.accounting = checkpoint.accounting
    return encoder


def default_name(path: Path) -> str:
    """Parent folder + stem: `runs/ckpt.pth` is runs/ckpt. For an export in RUN/exports, RUN is the parent.

    `timm:NAME` and `hf:REPO`, which are no files, are their own names.
    """
    if not path.exists():
        return str(path)
    parent = path.resolve().parent
    return f"{(parent.parent if parent.name == 'exports' else parent).name}/{path.stem}"
