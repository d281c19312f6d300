"""`selfpatch compare`: run what is missing, then say how checkpoints differ, and whether it is more than chance.

What makes numbers incomparable comes first: networks, protocols, data. Then the numbers, each beside the first model's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import refuse_in_child
from ..metrics.significance import Verdict, mcnemar, sign_flip, unpack, welch
from ..results import record
from ..results.collect import ORDER, distinct, plain
from ..results.render import NAMES
from ..run import runner
from ..tasks import Metric

# Facts of a card that say how a network was measured rather than what it is.
MEASURED = ("mean", "std", "pos_resize", "readout", "final_norm", "class_token")


def describe_differences(groups: Sequence[list[dict]]) -> list[str]:
    """What differs between the conditions of several models' records of one task, a line for each thing.

    groups: a model's records (one for each seed), the first model first.
    """
    firsts = [group[0] for group in groups]
    views = {
        "protocol": [{"id": r["protocol"].get("id")} for r in firsts],
        "protocol value": [r["protocol"].get("values") or {} for r in firsts],
        "protocol in effect": [
            {k: v for k, v in (r["protocol"].get("effective") or {}).items() if k not in MEASURED} for r in firsts
        ],
        "network": [{k: (r["model"].get("card") or {}).get(k) for k in MEASURED} for r in firsts],
        "data": [{"fingerprint": r["data"]["fingerprint"]} for r in firsts],
        "limit": [{"limit": r.get("limit")} for r in firsts],
        "task": [{"version": r.get("version")} for r in firsts],
        "seeds": [{"seeds": [r.get("seed") for r in group]} for group in groups],
    }
    lines = []
    for what, tables in views.items():
        for key in dict.fromkeys(k for table in tables for k in table):
            values = [plain(table.get(key)) for table in tables]
            if len(set(values)) > 1:
                lines.append(f"{what} {key}: {' | '.join(values)}")
    return lines


def verdict_of(a: list[dict], b: list[dict], metric: str) -> Verdict | None:
    """The test that fits what the records hold, of b's metric minus a's; None where there is none.

    Over seeds where they make a difference; else over the sequences of a video set (J&F and its parts), or over images.
    """
    values = [[r["metrics"][metric] for r in group] for group in (a, b)]
    if verdict := welch(*values):
        return verdict
    one_number = all(len(set(v)) == 1 for v in values)  # what the parts of one record stand for
    if not one_number or a[0]["data"]["fingerprint"] != b[0]["data"]["fingerprint"]:
        return None
    one, other = (_objects(group[0], metric) for group in (a, b))
    if one and {s: found.keys() for s, found in one.items()} == {s: found.keys() for s, found in other.items()}:
        pairs = [[list(found.values()), [other[s][o] for o in found]] for s, found in one.items()]
        return sign_flip(*zip(*pairs, strict=True))
    flags = [(r[0].get("parts") or {}).get("correct", {}).get(metric) for r in (a, b)]
    counts = [(r[0].get("parts") or {}).get("images") for r in (a, b)]
    if all(flags) and counts[0] == counts[1]:
        return mcnemar(*(unpack(text, count) for text, count in zip(flags, counts, strict=True)))
    return None


def _objects(one: dict, metric: str) -> dict[str, dict[str, float]]:
    """Sequence -> object -> its mean J, F or both, in percent; {} for another metric or task."""
    kinds = {"JF_m": ("J", "F"), "J_m": ("J",), "F_m": ("F",)}.get(metric)
    sequences = (one.get("parts") or {}).get("sequences") or {} if kinds else {}
    return {
        sequence: {number: 100 * fmean(scores[kind]["mean"] for kind in kinds) for number, scores in objects.items()}
        for sequence, objects in sequences.items()
    }


def compare_text(task: str, metrics: Sequence[Metric], groups: Sequence[list[dict]]) -> str:
    """One task's comparison: what differs in the conditions, then a table of the metrics that papers print.

    groups: a model's records each, one for every seed.
    """
    groups = [distinct(group) for group in groups]
    names = [group[0]["model"]["name"] for group in groups]
    differ = describe_differences(groups)
    lines = [f"## {task}", ""]
    lines += [f"The conditions differ ({' | '.join(names)}):", *(f"- {line}" for line in differ), ""] if differ else []
    lines += ["The conditions are the same.", ""] if not differ else []
    header = ["metric", names[0]]
    for name in names[1:]:
        header += [name, "difference", "what it says"]
    rows = []
    for metric in metrics:
        if metric.name not in ORDER or not all(metric.name in r["metrics"] for group in groups for r in group):
            continue
        values = [[r["metrics"][metric.name] for r in group] for group in groups]
        if any(v is None for value in values for v in value):
            continue
        row = [NAMES.get(metric.name, metric.name), _mean(values[0])]
        for group, value in zip(groups[1:], values[1:], strict=True):
            gap = fmean(value) - fmean(values[0])
            row += [_mean(value), f"{gap:+.2f}", _words(gap, metric, verdict_of(groups[0], group, metric.name))]
        rows.append(row)
    lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ± {stdev(values):.2f} ({len(values)})"


def _words(gap: float, metric: Metric, verdict: Verdict | None) -> str:
    said = []
    if metric.noise:
        said.append(f"{'within' if abs(gap) <= metric.noise else 'outside'} the noise of {metric.noise}")
    if verdict and verdict.p is None:
        said.append(f"too few to tell ({verdict.how})")
    elif verdict:
        interval = "" if verdict.low is None else f", 95 % {verdict.low:+.2f} to {verdict.high:+.2f}"
        said.append(f"p = {verdict.p:.2g}{interval} ({verdict.how})")
    return "; ".join(said) or "no test: one seed, and no parts that pair"


def compare_command(models: list[Path], tasks: list[str], options: runner.Options) -> int:
    """Run what is missing, print the comparison; -> exit status. Raises UserError as `runner.plan` does."""
    refuse_in_child()
    files = runner.expand(runner.gather(models, options), options.every)
    if len({str(f) for f in files}) < 2:
        raise UserError("compare: give two checkpoints or more")
    console = Console(file=sys.stderr)
    jobs = runner.plan(files, tasks, options)
    if status := runner.run(jobs, options, console):
        return status
    texts = []
    for task in tasks:
        own = [job for job in jobs if job.task == task]
        groups: dict[tuple, list[dict]] = {}
        for job in own:
            found = record.read(record.done(options.out, task, job.key)[-1])
            groups.setdefault((job.model.path, job.model.name), []).append(found)
        texts.append(compare_text(task, own[0].module.TASK.metrics, list(groups.values())))
    print("\n\n".join(texts))
    return 0
