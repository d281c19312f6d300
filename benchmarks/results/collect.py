"""Records -> results: the newest record of every key, seeds taken together, and what differs from the published
conditions. Tables (and comparisons) start from here.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from ...pretrain.common.errors import UserError
from ..datasets.identity import older
from .record import Record
from .render import Cell

# The poster's columns, in its order, then the metrics of image-level tasks; other metrics of these tasks are in the
# records and in CSV only.
ORDER = (
    *("AP_bb", "AP_bb_50", "AP_bb_75", "AP_mk", "AP_mk_50", "AP_mk_75"),
    *("mIoU", "mIoU_best", "mIoU_last", "aAcc", "mAcc", "JF_m", "J_m", "F_m", "top1"),
    *("mAP", "mAP_strong", "mAP_E", "mAP_M", "mAP_H"),
)


@dataclass
class Result:
    """One number set of a table: a model on one task, protocol and data set.

    records: the newest of each seed. n: how many results stand behind it. differs: why it is not a published column's.
    """

    records: list[Record]
    n: int
    differs: list[str] = field(default_factory=list)
    suffix: str = ""  # of the model's name, where one name has several cards

    @property
    def record(self) -> Record:
        return self.records[0]

    @property
    def task(self) -> str:
        return self.record.task

    @property
    def protocol(self) -> str:
        return self.record.protocol.id

    @property
    def name(self) -> str:
        """The model's, as a row of a table has it."""
        return self.record.model.name + self.suffix

    def cells(self) -> dict[str, Cell]:
        """metric -> mean over seeds (and standard deviation when there are several)."""
        result = {}
        for name in self.record.metrics:
            values = [r.metrics.get(name) for r in self.records]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                result[name] = Cell(fmean(values), stdev(values) if len(values) > 1 else None)
        return result


def depends_on_seed(record: Record, task) -> bool:
    """Whether another seed makes another number. It does not where the task says so, and where masks, or a model that
    was fine-tuned elsewhere, were only evaluated."""
    scored = record.model.format == "masks" or record.protocol.values.get("eval_only")
    return getattr(task, "seeded", True) and not scored


def distinct(seeds: Sequence[Record]) -> Sequence[Record]:
    """A result's records of several seeds; only the last one where all their numbers are the same, because the seed
    changes nothing: their mean has no deviation."""
    same = all(one.metrics == seeds[0].metrics for one in seeds)
    return seeds[-1:] if same else seeds


def _identity(record: Record, seeded: bool) -> str:
    """What makes a number another number, but for the seed; seeds that were given different names stay apart."""
    model, data, protocol = record.model, record.data, record.protocol
    values = {k: v for k, v in protocol.values.items() if k != "seed"}
    parts = (model.name if seeded else None, model.fingerprint, model.card, record.task, record.version)
    parts += (protocol.id, values, record.limit, data.fingerprint, data.official)
    return json.dumps(parts, sort_keys=True, default=str)


def collect(records: Iterable[Record], tasks: Mapping | None = None, columns: Collection | None = None) -> list[Result]:
    """Done records -> results, in the table's order; tasks: by name, columns: as of `differing`. Raises UserError for
    two networks under one name."""
    tasks = tasks or {}
    reruns_of: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        reruns_of.setdefault((record.task, record.key), []).append(record)
    groups: dict[tuple[str, bool], list[list[Record]]] = {}
    for reruns in reruns_of.values():
        reruns.sort(key=lambda r: (r.number, r.created))
        seeded = depends_on_seed(reruns[-1], tasks.get(reruns[-1].task))
        groups.setdefault((_identity(reruns[-1], seeded), seeded), []).append(reruns)
    results = [_result(seeds, seeded) for (_, seeded), seeds in groups.items()]
    results.sort(key=lambda r: (r.record.model.name, *rank(r), r.protocol, data_text(r), r.record.key))
    _name_networks(results)
    for result in results:
        result.differs = differing(result.record, tasks.get(result.task), columns)
    _name_older(results)
    return results


def _name_older(results: list[Result]) -> None:
    """Where a result was made again since data are known by their content, say which of the two is the older."""

    def alike(result: Result) -> str:
        record = result.record
        parts = (result.name, result.task, record.version, record.protocol.values, record.limit, data_text(result))
        return json.dumps(parts, sort_keys=True, default=str)

    known = {alike(result) for result in results if not older(result.record.data.fingerprint)}
    for result in results:
        if older(result.record.data.fingerprint) and alike(result) in known:
            result.differs.append("older: data known by names and sizes alone")


def _result(seeds: list[list[Record]], seeded: bool) -> Result:
    """One result of the reruns of every seed. Where the seed changes nothing, all of them are reruns of one number, of
    which the newest counts: the one whose name was given last, else the one that was made last."""
    if seeded:
        seeds.sort(key=lambda reruns: (str(reruns[-1].seed), reruns[-1].key))
        if len(distinct([reruns[-1] for reruns in seeds])) > 1:
            return Result([reruns[-1] for reruns in seeds], len(seeds))
    last = max((reruns[-1] for reruns in seeds), key=lambda r: (r.labelled, r.created, r.key))
    return Result([last], sum(map(len, seeds)))


def rank(result: Result) -> tuple[int, str]:
    """The poster's order of tasks, others by name."""
    return min((ORDER.index(m) for m in result.record.metrics if m in ORDER), default=len(ORDER)), result.task


def _name_networks(results: list[Result]) -> None:
    """Refuse two networks under one name; where one network ran with several cards, name what they differ in."""
    first: dict[str, Record] = {}
    cards: dict[str, list[dict]] = {}
    for result in results:
        model = result.record.model
        other = first.setdefault(model.name, result.record)
        if other.model.fingerprint != model.fingerprint:
            raise UserError(
                f"two different networks are called {model.name}: {short_file(other)} and "
                f"{short_file(result.record)}; run one of them again with --name NAME, or take its records away"
            )
        cards.setdefault(model.name, []).append(model.card or {})
    for result in results:
        card = result.record.model.card or {}
        keys = sorted(k for k in card if any(c.get(k) != card[k] for c in cards[result.record.model.name]))
        result.suffix = f" ({', '.join(f'{k}={as_typed(card[k])}' for k in keys)})" if keys else ""


def differing(record: Record, task, columns: Collection[tuple[str, str, str]] | None = None) -> list[str]:
    """Why our number may not stand beside published ones, in words; [] where it may.

    It may under the declared protocol, on the official data, without --limit; and, where columns are given, only if one
    of these (task, protocol, metric) is what its task declares. task: what the record's task is by now, or None.
    """
    data, differs = record.data, []
    if record.model.format == "masks":
        differs.append("masks of another method, only scored here")
    if record.limit is not None:
        differs.append(f"limit {record.limit}")
    if not data.official:
        text, root = data.differs or data.summary or "not the official data", Path(data.root).name
        differs.append(f"{text} ({root})" if root else text)
    differs += record.doubts or []
    differs += changed(record.protocol.overridden, 4)
    if task is not None and getattr(task, "version", record.version) != record.version:
        differs.append(f"version {record.version} of the task, now {task.version}")
    return differs + ([] if columns is None else _elsewhere(record, columns))


def _elsewhere(record: Record, columns: Collection[tuple[str, str, str]]) -> list[str]:
    """Why none of the columns is this record's, else []."""
    if any(column in columns for column in record.columns()):
        return []
    pairs = {(task, protocol) for task, protocol, *_ in record.published}
    protocols = sorted({c[1] for c in columns for t, p in pairs if c[0] == t and c[1] and c[1] != p})
    if protocols:
        return [f"protocol {', '.join(sorted({p for _, p in pairs}))}, not {', '.join(protocols)}"]
    return [f"{record.protocol.id or 'its protocol'} is not in this table"]


def changed(overridden: Mapping, most: int = 12) -> list[str]:
    """`key=value` of what was overridden, long values cut short; of more than `most` + 1 only so many, then a count."""
    texts = [f"{k}={as_typed(v)}" for k, v in sorted(overridden.items())]
    texts = [text if len(text) <= 80 else f"{text[:77]}..." for text in texts]
    return texts if len(texts) <= most + 1 else [*texts[:most], f"{len(texts) - most} more values"]


def as_typed(value) -> str:
    """A protocol or card value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short_file(record: Record) -> str:
    """The record's file, its key cut short where it is long."""
    folder, _, stem = record.file.removesuffix(".json").rpartition("/")
    key, dot, rest = stem.partition(".")
    return f"records/{folder}/{key if len(key) <= 16 else key[:16] + '*'}{dot}{rest}.json"


def data_text(result: Result) -> str:
    """The data set, its folder's name and counts."""
    data = result.record.data
    root = Path(data.root).name
    return f"{data.name}{f' at {root}' if root not in ('', data.name) else ''}: {data.summary}"


def backbone_name(card: Mapping) -> str:
    """ViT-S/16 and the like from a card, as published rows spell it; '' where the card does not say."""
    family, dim = card.get("family"), card.get("dim")
    if family == "vit":
        size = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H"}.get(dim, str(dim))
        return f"ViT-{size}/{card.get('patch')}"
    if family in ("swin", "swinv2"):
        deep = {(2, 2, 6, 2): {96: "T"}, (2, 2, 18, 2): {96: "S", 128: "B", 192: "L"}}
        return f"Swin{family[4:].upper()}-{deep.get(tuple(card.get('depths') or ()), {}).get(dim, dim)}"
    if family == "resnet":
        basic, widths = card.get("block") == "basic", card.get("widths") or [0]
        name = f"ResNet-{sum(card.get('blocks') or ()) * (2 if basic else 3) + 2}"
        if stem := card.get("stem_widths"):  # names of timm: C; D with pooled shortcuts; T with a tiered stem too
            name += "-C" if not card.get("avg_down") else "-D" if stem[0] == stem[-1] else "-T"
        if card.get("groups") or card.get("base_width"):
            name += f" {card.get('groups') or 1}x{card.get('base_width') or 64}d"
        return name if widths[-1] == (512 if basic else 2048) else f"{name}, {widths[-1]} wide"
    if family == "eva":
        size = {192: "Ti", 384: "S", 768: "B", 1024: "L"}.get(dim, str(dim))
        return f"EVA02-{size}/{card.get('patch')}"
    if family == "xcit":
        size = {128: "N", 192: "T", 384: "S", 512: "M", 768: "L"}.get(dim, str(dim))
        return f"XCiT-{size}{card.get('depth')}/{card.get('patch')}"
    if family == "convnext":
        deep = {(3, 3, 9, 3): {96: "T"}, (3, 3, 27, 3): {96: "S", 128: "B", 192: "L"}}
        first = (card.get("widths") or [0])[0]
        return f"ConvNeXt-{deep.get(tuple(card.get('depths') or ()), {}).get(first, first)}"
    return str(family or "")
