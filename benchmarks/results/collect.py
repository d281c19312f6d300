"""Records -> results: the newest record of every key, seeds taken together, and what differs from the published
conditions. Tables (and comparisons) start from here.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from ...pretrain.common.errors import UserError
from . import labels
from .record import files
from .render import Cell

# The poster's columns, in its order, then the metrics of image-level tasks; other metrics of these tasks are in the
# records and in CSV only.
ORDER = (
    *("AP_bb", "AP_bb_50", "AP_bb_75", "AP_mk", "AP_mk_50", "AP_mk_75"),
    *("mIoU", "aAcc", "mAcc", "JF_m", "J_m", "F_m", "top1", "mAP"),
)
log = logging.getLogger(__name__)


def load_records(out: str | Path) -> list[dict]:
    """All records below `out`/records, sorted by task, key and number. `_file`: TASK/NAME.json, `_number`: the rerun's.

    Names and rows are the newest ones (labels.py). Failure records are among them (status "failed"). Files that are no
    records are left out, with one warning.
    """
    found, bad = [], []
    for path in files(out):
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
            problem = _problem(one)
        except (OSError, ValueError, RecursionError) as error:
            problem = f"unreadable ({type(error).__name__})"
        if problem:
            bad.append(f"{path} ({problem})")
            continue
        rerun = re.search(r"\.(\d+)$", path.stem)
        place = {"_file": f"{path.parent.name}/{path.name}", "_number": int(rerun[1]) if rerun else 1}
        found.append(labels.apply(one, path) | place)
    if bad:
        log.warning("left out, not records of this version: %s", "; ".join(bad))
    return sorted(found, key=lambda r: (r["task"], r["key"], r["_number"], r["_file"]))


def _problem(record) -> str:
    """What keeps a JSON value from being a record, else ''."""
    if not isinstance(record, dict) or "schema" not in record:
        return "no record"
    if record["schema"] != 1:
        return f"schema {record['schema']}, this version reads 1"
    types = {"key": str, "status": str, "task": str, "model": dict}
    if record.get("status") == "done":
        types |= {"metrics": dict, "protocol": dict, "data": dict, "published": list}
    wrong = [k for k, t in types.items() if not isinstance(record.get(k), t)]
    if not wrong and not all(isinstance(p, list) and len(p) == 2 for p in record.get("published", [])):
        wrong = ["published"]
    if not wrong and not isinstance(record.get("protocol", {}).get("overridden") or {}, dict):
        wrong = ["protocol"]
    if not wrong and not all(isinstance(record["model"].get(k), str) for k in ("name", "fingerprint")):
        wrong = ["model"]
    return f"bad or missing {', '.join(wrong)}" if wrong else ""


@dataclass
class Result:
    """One number set of a table: a model on one task, protocol and data set.

    records: the newest of each seed. n: how many results stand behind it. differs: why it is not a published column's.
    """

    records: list[dict]
    n: int
    differs: list[str] = field(default_factory=list)
    suffix: str = ""  # of the model's name, where one name has several cards

    @property
    def record(self) -> dict:
        return self.records[0]

    @property
    def task(self) -> str:
        return self.record["task"]

    @property
    def protocol(self) -> str:
        return str(self.record["protocol"].get("id", ""))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [tuple(map(str, p)) for p in self.record["published"]]

    def cells(self) -> dict[str, Cell]:
        """metric -> mean over seeds (and standard deviation when there are several)."""
        result = {}
        for name in self.record["metrics"]:
            values = [r["metrics"].get(name) for r in self.records]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                result[name] = Cell(fmean(values), stdev(values) if len(values) > 1 else None)
        return result


def depends_on_seed(record: dict, task) -> bool:
    """Whether another seed makes another number. It does not where the task says so, and where masks, or a model that
    was fine-tuned elsewhere, were only evaluated."""
    scored = record["model"].get("format") == "masks" or (record["protocol"].get("values") or {}).get("eval_only")
    return getattr(task, "seeded", True) and not scored


def distinct(seeds: Sequence[dict]) -> Sequence[dict]:
    """A result's records of several seeds; only the last one where all their numbers are the same, because the seed
    changes nothing: their mean has no deviation."""
    same = all(one["metrics"] == seeds[0]["metrics"] for one in seeds)
    return seeds[-1:] if same else seeds


def _identity(record: dict, seeded: bool) -> str:
    """What makes a number another number, but for the seed; seeds that were given different names stay apart."""
    model, data, protocol = record["model"], record["data"], record["protocol"]
    values = {k: v for k, v in (protocol.get("values") or {}).items() if k != "seed"}
    name = model["name"] if seeded else None
    parts = (name, model["fingerprint"], model.get("card"), record["task"], record.get("version"))
    parts += (protocol.get("id"), values, record.get("limit"), data.get("fingerprint"), data.get("official"))
    return json.dumps(parts, sort_keys=True, default=str)


def collect(records: Iterable[dict], tasks: Mapping | None = None) -> list[Result]:
    """Done records -> results, in the table's order. Raises UserError for two networks under one name."""
    tasks = tasks or {}
    newest: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        newest.setdefault((record["task"], record["key"]), []).append(record)
    groups: dict[tuple[str, bool], list[list[dict]]] = {}
    for reruns in newest.values():
        reruns.sort(key=lambda r: (r.get("_number", 1), str(r.get("created", ""))))
        seeded = depends_on_seed(reruns[-1], tasks.get(reruns[-1]["task"]))
        groups.setdefault((_identity(reruns[-1], seeded), seeded), []).append(reruns)
    results = [_result(seeds, seeded) for (_, seeded), seeds in groups.items()]
    results.sort(key=lambda r: (r.record["model"]["name"], *rank(r), r.protocol, data_text(r), r.record["key"]))
    _name_networks(results)
    for result in results:
        result.differs = _conditions(result.record, tasks.get(result.task))
    return results


def _result(seeds: list[list[dict]], seeded: bool) -> Result:
    """One result of the reruns of every seed. Where the seed changes nothing, all of them are reruns of one number, of
    which the newest counts: the one whose name was given last, else the one that was made last."""
    if seeded:
        seeds.sort(key=lambda reruns: (str(reruns[-1].get("seed")), reruns[-1]["key"]))
        if len(distinct([reruns[-1] for reruns in seeds])) > 1:
            return Result([reruns[-1] for reruns in seeds], len(seeds))
    last = max((reruns[-1] for reruns in seeds), key=_age)
    return Result([last], sum(map(len, seeds)))


def _age(record: dict) -> tuple[str, str, str]:
    """The later its label or, without one, the record itself was made, the greater."""
    return str(record.get("_label", {}).get("created", "")), str(record.get("created", "")), record["key"]


def rank(result: Result) -> tuple[int, str]:
    """The poster's order of tasks, others by name."""
    return min((ORDER.index(m) for m in result.record["metrics"] if m in ORDER), default=len(ORDER)), result.task


def _name_networks(results: list[Result]) -> None:
    """Refuse two networks under one name; where one network ran with several cards, name what they differ in."""
    seen: dict[str, dict] = {}
    cards: dict[str, list[dict]] = {}
    for result in results:
        model = result.record["model"]
        first = seen.setdefault(model["name"], result.record)
        if first["model"]["fingerprint"] != model["fingerprint"]:
            raise UserError(
                f"two different networks are called {model['name']}: {short_file(first)} and "
                f"{short_file(result.record)}; run one of them again with --name NAME, or take its records away"
            )
        card = model.get("card") or {}
        if card not in cards.setdefault(model["name"], []):
            cards[model["name"]].append(card)
    for result in results:
        variants = cards[result.record["model"]["name"]]
        card = result.record["model"].get("card") or {}
        keys = sorted(k for k in card if any(v.get(k) != card[k] for v in variants))
        result.suffix = f" ({', '.join(f'{k}={plain(card[k])}' for k in keys)})" if keys else ""


def _conditions(record: dict, task) -> list[str]:
    """What differs from the declared protocol on the official data, in words."""
    differs = []
    if record["model"].get("format") == "masks":
        differs.append("masks of another method, only scored here")
    if record.get("limit") is not None:
        differs.append(f"limit {record['limit']}")
    data = record["data"]
    if not data.get("official"):
        text = str(data.get("differs") or data.get("summary") or "not the official data")
        root = Path(str(data.get("root") or "")).name
        differs.append(f"{text} ({root})" if root else text)
    overridden = record["protocol"].get("overridden") or {}
    differs += changed(overridden, 4)
    if task is not None and getattr(task, "version", record.get("version")) != record.get("version"):
        differs.append(f"version {record.get('version')} of the task, now {task.version}")
    return differs


def changed(overridden: Mapping, most: int = 12) -> list[str]:
    """`key=value` of what was overridden, long values cut short; of more than `most` + 1 only so many, then a count."""
    texts = [f"{k}={plain(v)}" for k, v in sorted(overridden.items())]
    texts = [text if len(text) <= 80 else f"{text[:77]}..." for text in texts]
    return texts if len(texts) <= most + 1 else [*texts[:most], f"{len(texts) - most} more values"]


def plain(value) -> str:
    """A protocol or card value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short_file(record: dict) -> str:
    """The record's file, its key cut short where it is long."""
    name = record.get("_file") or f"{record['task']}/{record['key']}.json"
    folder, _, stem = name.removesuffix(".json").rpartition("/")
    key, dot, rest = stem.partition(".")
    return f"records/{folder}/{key if len(key) <= 16 else key[:16] + '*'}{dot}{rest}.json"


def data_text(result: Result) -> str:
    """The data set, its folder's name and counts."""
    data = result.record["data"]
    root = Path(str(data.get("root") or "")).name
    name = str(data.get("name") or "data")
    return f"{name}{f' at {root}' if root not in ('', name) else ''}: {data.get('summary', '')}"


def backbone_name(card: Mapping) -> str:
    """ViT-S/16 and the like from a card, as published rows spell it; '' where the card does not say."""
    family, dim = card.get("family"), card.get("dim")
    if family == "vit":
        size = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H"}.get(dim, str(dim))
        return f"ViT-{size}/{card.get('patch')}"
    if family == "swin":
        deep = {(2, 2, 6, 2): {96: "T"}, (2, 2, 18, 2): {96: "S", 128: "B", 192: "L"}}
        return f"Swin-{deep.get(tuple(card.get('depths') or ()), {}).get(dim, dim)}"
    if family == "resnet":
        basic, widths = card.get("block") == "basic", card.get("widths") or [0]
        name = f"ResNet-{sum(card.get('blocks') or ()) * (2 if basic else 3) + 2}"
        if card.get("groups") or card.get("base_width"):
            name += f" {card.get('groups') or 1}x{card.get('base_width') or 64}d"
        return name if widths[-1] == (512 if basic else 2048) else f"{name}, {widths[-1]} wide"
    return str(family or "")
