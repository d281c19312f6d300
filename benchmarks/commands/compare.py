"""`selfpatch compare`: run what is missing, then say how checkpoints differ, and whether it is more than chance.

What makes numbers incomparable comes first: networks, protocols, data. Then the numbers, each beside the first model's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import refuse_in_child
from ...pretrain.common.progress import line_console
from ..metrics.significance import Verdict, mcnemar, sign_flip, unpack, welch
from ..results.collect import ORDER, as_typed, distinct
from ..results.record import Record, done, read
from ..results.render import NAMES, markdown_table
from ..run.plan import Options, expand, gather, plan
from ..run.runner import run
from ..tasks import Metric

# Facts of a card that say how a network was measured rather than what it is.
MEASURED = ("mean", "std", "pos_resize", "readout", "final_norm", "class_token")


def describe_differences(groups: Sequence[Sequence[Record]]) -> list[str]:
    """What differs between the conditions of several models' records of one task, a line for each thing.

    groups: a model's records (one for each seed), the first model first.
    """
    firsts = [group[0] for group in groups]
    views = {
        "protocol": [{"id": r.protocol.id} for r in firsts],
        "protocol value": [r.protocol.values for r in firsts],
        "protocol in effect": [
            {k: v for k, v in (r.protocol.effective or {}).items() if k not in MEASURED} for r in firsts
        ],
        "network": [{k: (r.model.card or {}).get(k) for k in MEASURED} for r in firsts],
        "data": [{"fingerprint": r.data.fingerprint} for r in firsts],
        "limit": [{"limit": r.limit} for r in firsts],
        "task": [{"version": r.version} for r in firsts],
        "seeds": [{"seeds": [r.seed for r in group]} for group in groups],
    }
    lines = []
    for what, tables in views.items():
        for key in dict.fromkeys(k for table in tables for k in table):
            values = [as_typed(table.get(key)) for table in tables]
            if len(set(values)) > 1:
                lines.append(f"{what} {key}: {' | '.join(values)}")
    return lines


def verdict_of(a: Sequence[Record], b: Sequence[Record], metric: str) -> Verdict | None:
    """The test that fits what the records hold, of b's metric minus a's; None where there is none.

    Over seeds where they make a difference; else over the sequences of a video set (J&F and its parts), over queries,
    or over images.
    """
    values = [[r.metrics[metric] for r in group] for group in (a, b)]
    if verdict := welch(*values):
        return verdict
    one_number = all(len(set(v)) == 1 for v in values)  # what the parts of one record stand for
    if not one_number or a[0].data.fingerprint != b[0].data.fingerprint:
        return None
    one, other = (_objects(group[0], metric) for group in (a, b))
    if one and {s: found.keys() for s, found in one.items()} == {s: found.keys() for s, found in other.items()}:
        pairs = [[list(found.values()), [other[s][o] for o in found]] for s, found in one.items()]
        return sign_flip(*zip(*pairs, strict=True))
    parts = [group[0].parts or {} for group in (a, b)]
    one, other = (p.get("queries", {}).get(metric) for p in parts)
    if one and other and len(one) == len(other):
        pairs = [([x], [y]) for x, y in zip(one, other, strict=True) if None not in (x, y)]
        return sign_flip(*zip(*pairs, strict=True), "queries") if pairs else None
    flags, counts = [p.get("correct", {}).get(metric) for p in parts], [p.get("images") for p in parts]
    if all(flags) and counts[0] == counts[1]:
        return mcnemar(*(unpack(text, count) for text, count in zip(flags, counts, strict=True)))
    return None


def _objects(one: Record, metric: str) -> dict[str, dict[str, float]]:
    """Sequence -> object -> its mean J, F or both, in percent; {} for another metric or task."""
    scores_of = {"JF_m": ("J", "F"), "J_m": ("J",), "F_m": ("F",)}.get(metric)
    sequences = (one.parts or {}).get("sequences") or {} if scores_of else {}
    return {
        sequence: {number: 100 * fmean(scores[s]["mean"] for s in scores_of) for number, scores in objects.items()}
        for sequence, objects in sequences.items()
    }


def compare_text(task: str, metrics: Sequence[Metric], groups: Sequence[Sequence[Record]]) -> str:
    """One task's comparison: what differs in the conditions, then a table of the metrics that papers print.

    groups: a model's records each, one for every seed.
    """
    groups = [distinct(group) for group in groups]
    names = [group[0].model.name for group in groups]
    lines = [f"## {task}", ""]
    if differ := describe_differences(groups):
        lines += [f"The conditions differ ({' | '.join(names)}):", *(f"- {line}" for line in differ), ""]
    else:
        lines += ["The conditions are the same.", ""]
    lines += [f"{group[0].model.name}: {doubt}\n" for group in groups for doubt in group[0].doubts or ()]
    rows = []
    for metric in metrics:
        values = [[r.metrics.get(metric.name) for r in group] for group in groups]
        if metric.name not in ORDER or any(v is None for value in values for v in value):
            continue
        row = [NAMES.get(metric.name, metric.name), _mean(values[0])]
        for group, value in zip(groups[1:], values[1:], strict=True):
            gap = fmean(value) - fmean(values[0])
            row += [_mean(value), f"{gap:+.2f}", in_words(gap, metric, verdict_of(groups[0], group, metric.name))]
        rows.append(row)
    heads = ["metric", names[0], *(head for name in names[1:] for head in (name, "difference", "what it says"))]
    return "\n".join([*lines, *markdown_table(heads, rows)])


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ± {stdev(values):.2f} ({len(values)})"


def in_words(gap: float, metric: Metric, verdict: Verdict | None) -> str:
    """What a difference of so much says, by the metric's noise and a test."""
    said = []
    if metric.noise:
        said.append(f"{'within' if abs(gap) <= metric.noise else 'outside'} the noise of {metric.noise}")
    if verdict and verdict.p is None:
        said.append(f"too few to tell ({verdict.how})")
    elif verdict:
        interval = "" if verdict.low is None else f", 95 % {verdict.low:+.2f} to {verdict.high:+.2f}"
        said.append(f"p = {verdict.p:.2g}{interval} ({verdict.how})")
    return "; ".join(said) or "no test: one seed, and no parts that pair"


def compare_command(models: list[Path], tasks: list[str], options: Options) -> int:
    """Run what is missing, print the comparison; -> exit status. Raises UserError as `plan` does."""
    refuse_in_child()
    files = expand(gather(models, options), options.every)
    if len({str(f) for f in files}) < 2:
        raise UserError("compare: give two checkpoints or more")
    evaluations = plan(files, tasks, options)
    if bare := next((e for e in evaluations if not e.cfg.data.scored), None):
        raise UserError(f"compare: {bare.cfg.data.root} has no annotations to score {bare.task.title} by")
    if status := run(evaluations, options, line_console(file=sys.stderr)):
        return status
    texts = []
    for task in tasks:
        own = [e for e in evaluations if e.task.title == task]
        groups: dict[tuple, list[Record]] = {}
        for one in own:
            found = read(done(options.out, one.task.name, one.key)[-1])
            groups.setdefault((one.model.file, one.model.name), []).append(found)
        texts.append(compare_text(task, own[0].task.metrics, list(groups.values())))
    print("\n\n".join(texts))
    return 0
