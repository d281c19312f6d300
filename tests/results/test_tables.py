"""Tables from made-up records: what stands where, and the published numbers as they were printed.

SELFPATCH_UPDATE_GOLDEN=1 writes tests/golden/table.* anew (then read the difference).
"""

import csv
import io
import json
import logging
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from conftest import REPO, SHARED
from selfpatch_bench.benchmarks.results import labels
from selfpatch_bench.benchmarks.results.layout import _band, build_table, table_command
from selfpatch_bench.benchmarks.results.published import (
    COLUMNS,
    NOT_PRINTED,
    find_table,
    list_published,
    load_published,
    load_sources,
)
from selfpatch_bench.benchmarks.results.record import Record, parse
from selfpatch_bench.benchmarks.results.record import records as load_records
from selfpatch_bench.benchmarks.results.render import latex_escape, number, render
from selfpatch_bench.benchmarks.tasks import Metric
from selfpatch_bench.pretrain.common.errors import UserError

GOLDEN = REPO / "tests/golden"
PUBLISHED = REPO / "results" / "published"
POSTER = "selfpatch_poster"
AP = ("AP_bb", "AP_bb_50", "AP_bb_75", "AP_mk", "AP_mk_50", "AP_mk_75")
COCO_VIT = [["coco_det", "mask_rcnn_vit_fpn_1x"], ["coco_seg", "mask_rcnn_vit_fpn_1x"]]
CARD = {"family": "vit", "patch": 16, "dim": 384, "depth": 12, "heads": 6}
TASKS = {
    "davis": SimpleNamespace(
        version=1,
        metrics=tuple(Metric(m) for m in ("JF_m", "J_m", "F_m", "J_recall")),
        published=(("davis2017", "label_propagation"),),
    ),
    "coco_maskrcnn_1x": SimpleNamespace(version=1, metrics=tuple(Metric(m, noise=0.3) for m in AP), published=COCO_VIT),
    "timing": SimpleNamespace(version=1, metrics=(Metric("per_frame", unit="s", higher=False),), published=()),
}


def davis(jf=62.96, **changes) -> dict:
    """A record of DAVIS on the official data; `changes` replace fields, dotted ones inside."""
    record = {
        "schema": 1,
        "key": "d0d0d0d0d0d0d0d0",
        "status": "done",
        "model": {
            "name": "run/last",
            "fingerprint": "sha256:aa",
            "card": dict(CARD),
            "format": "selfpatch",
            "file": "last.pth",
            "overrides": {},
            "row": None,
        },
        "task": "davis",
        "version": 1,
        "protocol": {"id": "davis2017-dino-v1", "values": {"radius": 12, "topk": 5}, "overridden": {}},
        "published": [["davis2017", "label_propagation"]],
        "data": {
            "name": "davis2017",
            "root": "/data/davis2017",
            "fingerprint": "sha256:full",
            "official": True,
            "differs": "",
            "summary": "30 sequences, 1999 frames, 61 objects",
        },
        "limit": None,
        "seed": 0,
        "metrics": {"JF_m": jf, "J_m": jf - 1.837, "F_m": jf + 1.837, "J_recall": 70.0},
        "parts": {},
        "environment": {},
        "created": "2026-01-01T00:00:00Z",
    }
    return change(record, changes)


def coco(bb=42.4, **changes) -> dict:
    """A record of COCO on the official data, ViT."""
    metrics = dict(zip(AP, (bb, bb + 23, bb + 3, bb - 4, bb + 19, bb - 2), strict=True)) | {"AP_bb_s": 20.0}
    base = {
        "key": "c0c0c0c0c0c0c0c0",
        "task": "coco_maskrcnn_1x",
        "metrics": metrics,
        "published": COCO_VIT,
        "protocol": {"id": "coco_maskrcnn_1x", "values": {}, "overridden": {}},
        "data": {
            "name": "coco",
            "root": "/data/coco",
            "fingerprint": "sha256:coco",
            "official": True,
            "differs": "",
            "summary": "5000 images",
        },
    }
    return change(davis(), base | changes)


def change(record: dict, changes: dict) -> dict:
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = record
        for name in parents:
            place = place[name]
        place[last] = value
    return record


SUBSET = {
    "data__official": False,
    "data__differs": "6 of 30 sequences",
    "data__summary": "6 sequences, 411 frames, 6 objects",
    "data__root": "/data/davis2016",
    "data__fingerprint": "sha256:six",
}


def save(out: Path, record: dict, number=1, failed=False) -> Path:
    """Where the runner would write it."""
    suffix = f".failed-{number}" if failed else "" if number == 1 else f".{number}"
    path = out / "records" / record["task"] / f"{record['key']}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def table(records, form="md", against=POSTER, tasks=TASKS, **options) -> str:
    records = [r if isinstance(r, Record) else parse(r) for r in records]
    return render(build_table(records, against, tasks=tasks, **options), form)


def blocks(markdown: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown text, as rows by heading."""
    found = []
    for part in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M):
        lines = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in part.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- golden texts


def scene() -> list[tuple[dict, dict]]:
    """(record, arguments of save): one of every case."""
    named = {"model__row": "DINO+SelfPatch|ViT-S/16"}
    tiny = {"model__name": "tiny/vit_b", "model__fingerprint": "sha256:bb"}
    multi = {"data__root": "/data/davis_multi", "data__differs": "3 of 30 sequences", "data__fingerprint": "sha256:3"}
    upernet = {
        "key": "adadadadadadadad",
        "task": "ade20k_upernet_160k",
        "metrics": {"mIoU": 43.21, "aAcc": 80.4, "mAcc": 54.06},
        "published": [["ade20k", "upernet_160k"]],
        "protocol__id": "ade20k_upernet_160k",
        "data__name": "ade20k",
        "data__root": "/data/ade20k",
        "data__summary": "2000 images",
    }
    failed = davis(1.0, key="dfdfdfdfdfdfdfdf", status="failed")
    del failed["metrics"]
    return [
        (davis(11.1, **named), {}),
        (davis(62.96, created="2026-01-02T00:00:00Z", **named), {"number": 2}),
        (coco(42.4, **named), {}),
        (coco(42.6, key="c1c1c1c1c1c1c1c1", seed=1, **named), {}),
        (davis(70.58, key="b0b0b0b0b0b0b0b0", **(SUBSET | tiny)), {}),
        (davis(60.44, key="b1b1b1b1b1b1b1b1", **(SUBSET | tiny | multi)), {}),
        (davis(61.0, key="d1d1d1d1d1d1d1d1", protocol__overridden={"radius": 6}, protocol__values={"radius": 6}), {}),
        (davis(95.0, key="d2d2d2d2d2d2d2d2", limit=2, **(SUBSET | {"data__differs": "2 of 30 sequences"})), {}),
        (davis(**upernet), {}),
        (failed, {"failed": True}),
    ]


@pytest.mark.parametrize(("form", "suffix"), [("md", "md"), ("csv", "csv"), ("latex", "tex")])
def test_golden(tmp_path, form, suffix):
    for record, options in scene():
        save(tmp_path, record, **options)
    text = table_command(tmp_path, [form], POSTER, include_limited=True, declared=TASKS)
    path = GOLDEN / f"table.{suffix}"
    if os.environ.get("SELFPATCH_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text.encode() == path.read_bytes()


def test_same_bytes_whatever_the_order(tmp_path):
    things = scene()
    for i in range(3):
        random.Random(i).shuffle(things)
        for record, options in things:
            save(tmp_path / str(i), record, **options)
    texts = {
        table_command(tmp_path / str(i), ["md", "csv", "latex"], POSTER, include_limited=True, declared=TASKS)
        for i in range(3)
    }
    records = load_records(tmp_path / "0")
    random.Random(9).shuffle(records)
    texts.add("\n".join(table(records, form, include_limited=True) for form in ("md", "csv", "latex")))
    assert len(texts) == 1


# --- above and below the rule


def test_joins_under_the_same_conditions():
    above, *below = blocks(table([davis()]))
    assert not below
    assert above[-1]["method"] == "ours: run/last [1]"
    assert [above[-1][m] for m in ("AP_bb", "mIoU", "(J&F)_m", "J_m", "F_m")] == ["", "", "63.0", "61.1", "64.8"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (SUBSET, "6 of 30 sequences (davis2016)"),
        ({"protocol__overridden": {"radius": 6}}, "radius=6"),
        ({"protocol__overridden": {"radius": None, "precision": "bf16"}}, "precision=bf16, radius=null"),
        ({"limit": 3}, "limit 3"),
        ({"version": 0}, "version 0 of the task, now 1"),
        ({"published": [["davis2017", "another"]]}, "protocol another, not label_propagation"),
        ({"published": []}, "davis2017-dino-v1 is not in this table"),
        ({"model__format": "masks"}, "masks of another method, only scored here"),
        ({"doubts": ["127 of 128 objects are empty"]}, "127 of 128 objects are empty"),
    ],
)
def test_below_the_rule_with_what_differs(changes, named):
    records = [davis(70.58, **changes)]
    text = table(records, include_limited=True)
    above, below = blocks(text)
    assert len(above) == 9
    assert all(not row["method"].startswith("ours") for row in above)
    assert [row["what differs"] for row in below] == [named]
    assert below[0]["(J&F)_m"] == "70.6"
    assert text.index("\n---\n") < text.index("70.6")
    rows = csv_rows(table(records, "csv", include_limited=True))
    assert [r["section"] for r in rows] == ["published"] * 9 + ["below the rule"]
    assert rows[-1]["JF_m"] == ""  # the source's column
    assert float(rows[-1]["davis:JF_m"]) == 70.58
    assert all(r["davis:JF_m"] == "" for r in rows[:-1])
    latex = table(records, "latex", include_limited=True)
    assert latex.index("\\hrule") < latex.index("70.6")


def test_two_data_sets_of_one_model_are_two_rows():
    other = {"data__root": "/data/davis_multi", "data__differs": "3 of 30 sequences", "data__fingerprint": "sha256:3"}
    below = blocks(table([davis(70.58, **SUBSET), davis(60.0, key="e" * 16, **(SUBSET | other))]))[1]
    assert [(r["(J&F)_m"], r["what differs"]) for r in below] == [
        ("70.6", "6 of 30 sequences (davis2016)"),
        ("60.0", "3 of 30 sequences (davis_multi)"),
    ]


def test_tasks_of_one_model_share_a_row_in_the_posters_order():
    above = blocks(table([davis(), coco()]))[0]
    assert len(above) == 10
    assert list(above[-1])[2:-1] == [*AP, "mIoU", "aAcc", "mAcc", "(J&F)_m", "J_m", "F_m"]
    assert (above[-1]["AP_bb"], above[-1]["(J&F)_m"]) == ("42.4", "63.0")
    (below,) = blocks(table([davis(**SUBSET), coco(data__official=False)], against=None))
    assert list(below[0])[2:-2] == [*AP, "(J&F)_m", "J_m", "F_m"]


def test_recipes_of_one_protocol_do_not_overwrite_each_other():
    heads8 = coco(41.0, key="c8" * 8, task="coco_maskrcnn_1x_heads8", protocol__id="coco_maskrcnn_1x_heads8")
    rows = blocks(table([coco(42.4), heads8]))[0][9:]
    assert [(r["method"], r["AP_bb"]) for r in rows] == [
        ("ours: run/last [coco_maskrcnn_1x] [1]", "42.4"),
        ("ours: run/last [coco_maskrcnn_1x_heads8] [2]", "41.0"),
    ]


def test_protocols_never_share_a_column():
    def ade(task, pair, value):
        changes = {"task": task, "key": task[:16], "published": [["ade20k", pair]], "metrics": {"mIoU": value}}
        return davis(**changes, protocol__id=task)

    semfpn = ade("ade20k_semfpn_40k", "semantic_fpn_40k", 41.0)
    upernet = ade("ade20k_upernet_160k", "upernet_160k", 43.0)
    above, below = blocks(table([semfpn, upernet]))
    assert above[-1]["mIoU"] == "41.0"
    assert (below[0]["mIoU"], below[0]["what differs"]) == ("43.0", "protocol upernet_160k, not semantic_fpn_40k")
    (own,) = blocks(table([semfpn, upernet], against=None))
    assert (own[0]["mIoU [ade20k_semfpn_40k]"], own[0]["mIoU [ade20k_upernet_160k]"]) == ("41.0", "43.0")
    (readme,) = blocks(table([semfpn, upernet], against="selfpatch_repo:segmentation"))
    assert (readme[-1]["mIoU [semantic_fpn_40k]"], readme[-1]["mIoU [upernet_160k]"]) == ("41.0", "43.0")
    # another protocol id of one task (a map of another stride, say) is another column, too
    ids = [davis(50.0, **SUBSET), davis(51.0, key="f" * 16, protocol__id="davis2017-dino-v1-p14", **SUBSET)]
    (own,) = blocks(table(ids, against=None))
    assert (own[0]["(J&F)_m [davis2017-dino-v1]"], own[0]["(J&F)_m [davis2017-dino-v1-p14]"]) == ("50.0", "51.0")


def test_without_a_source_official_results_still_stand_apart():
    text = table([davis(), davis(70.58, key="e" * 16, **SUBSET)], against=None)
    ours, below = blocks(text)
    assert [r["(J&F)_m"] for r in ours + below] == ["63.0", "70.6"]
    assert "what differs" not in ours[0]
    assert below[0]["what differs"] == "6 of 30 sequences (davis2016)"


def test_published_rows_are_marked_and_linked():
    """Whose a row is and where a published number was printed can be seen in every format."""
    link = "https://arxiv.org/abs/2206.07990"
    above = blocks(table([davis()]))[0]
    assert [row["method"].startswith("ours: ") for row in above] == [False] * 9 + [True]
    assert f"published rows: numbers as printed there (read twice, every value checked): {link}" in table([davis()])
    assert link in table([davis()], "latex")
    rows = csv_rows(table([davis()], "csv"))
    assert [(r["section"], r["link"]) for r in rows] == [("published", link)] * 9 + [("ours", "")]
    assert load_sources()["dino_readme"]["link"] == "https://github.com/facebookresearch/dino"
    assert all(s["link"] == "" or s["link"].startswith("https://") for s in load_sources().values())
    assert sum(not s["link"] for s in load_sources().values()) <= 4  # second hand, or without a known address


def test_upernet_never_stands_in_a_column_of_semantic_fpn():
    """The pair that the record declares decides, also where the task or the protocol's name suggests another."""
    changes = {"metrics": {"mIoU": 43.0}, "protocol__id": "semantic_fpn_40k", "task": "ade20k_semfpn_40k"}
    upernet = davis(published=[["ade20k", "upernet_160k"]], key="ade", **changes)
    above, below = blocks(table([upernet]))
    assert [row["mIoU"] for row in above if row["method"].startswith("ours")] == []
    assert below[0]["what differs"] == "protocol upernet_160k, not semantic_fpn_40k"
    (line,) = csv_rows(table([upernet | {"published": [["ade20k", "semantic_fpn_40k"]]}], "csv"))[9:]
    assert (line["section"], line["mIoU"]) == ("ours", "43.0")


# --- differences


def differences(text: str) -> list[str]:
    return re.findall(r"^- (.*, minus .*)$", text, flags=re.M)


def test_difference_only_to_a_named_row():
    assert not differences(table([davis(), coco()]))
    (line,) = differences(table([davis(62.96, model__row="DINO+SelfPatch|ViT-S/16")]))
    # 62.96 - 62.7, 61.123 - 60.7, 64.797 - 64.7
    expected = "(J&F)_m +0.3, J_m +0.4, F_m +0.1 (deterministic: no noise)"
    assert line == f"run/last, davis, minus DINO+SelfPatch|ViT-S/16: {expected}"
    (row,) = [r for r in csv_rows(table([davis(62.96, model__row="DINO|ViT-S/16")], "csv")) if r["section"] == "ours"]
    assert float(row["JF_m_diff"]) == pytest.approx(62.96 - 60.7, abs=1e-12)
    assert row["row"] == "DINO|ViT-S/16"
    assert not differences(table([davis(70.58, model__row="DINO|ViT-S/16", **SUBSET)]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42.4, "+0.3 (within noise 0.3)"),  # in binary 0.30000000000000004
        (41.8, "-0.3 (within noise 0.3)"),
        (42.5, "+0.4 (outside noise 0.3)"),
        (42.1, "0.0 (within noise 0.3)"),
        (42.0999, "0.0 (within noise 0.3)"),
        (40.9, "-1.2 (outside noise 0.3)"),
    ],
)
def test_noise_band(value, text):
    (line,) = differences(table([coco(metrics={"AP_bb": value}, model__row="DINO+SelfPatch|ViT-S/16")]))
    assert line.endswith(f": AP_bb {text}")


def test_a_band_that_was_not_measured_is_no_band_of_nothing():
    assert _band(0.1, Metric("mIoU", noise=None)) == "noise not measured"


def test_named_row_of_another_protocol_or_of_no_table():
    text = table([coco(model__row="MoCo-v2|ResNet-50")])  # its COCO protocol is the ResNet one
    assert not differences(text)
    assert "MoCo-v2|ResNet-50 is printed under another protocol" in text
    text = table([davis(model__row="DINO|ViT-S/14")])
    assert not differences(text)
    assert "no row DINO|ViT-S/14 in this table" in text
    assert "; DINO+SelfPatch|ViT-S/16" in text
    text = table([davis(model__row="DINO+SelfPatch|ViT-Ti/16")], against=f"{POSTER}:left")
    assert "several rows DINO+SelfPatch|ViT-Ti/16" in text


# --- which results


def test_newest_of_reruns_and_failures(tmp_path):
    save(tmp_path, davis(50.0))
    for i in (2, 10):
        save(tmp_path, davis(50.0 + i), number=i)
    save(tmp_path, davis(99.0, status="failed"), number=1, failed=True)
    save(tmp_path, davis(98.0, key="e" * 16, status="failed"), number=1, failed=True)
    above = blocks(table(load_records(tmp_path)))[0]
    assert [(r["(J&F)_m"], r["n"]) for r in above[9:]] == [("60.0", "3")]
    text = table(load_records(tmp_path))
    assert "newest of 3: records/davis/d0d0d0d0d0d0d0d0.10.json" in text


def old_seeds(values, **changes) -> list[dict]:
    """Three records of DAVIS, of one network, as versions made them that ran it for every seed."""
    return [
        davis(v, key=f"{i}" * 16, seed=i, created=f"2026-01-0{9 - i}T00:00:00Z", **changes)
        for i, v in enumerate(values)
    ]


def once(records, tasks) -> dict[str, str]:
    """The only row of a table, which has no deviation anywhere."""
    text = table(records, against=None, tasks=tasks)
    assert "±" not in text
    assert all(not (r.get("JF_m_std") or "") for r in csv_rows(table(records, "csv", None, tasks=tasks)))
    [[row]] = blocks(text)
    return row


def test_old_seeds_that_changed_nothing_are_one_result():
    """Of a task that declares it, of scored masks, of an evaluated model, and where all numbers are the same."""
    quiet = {"davis": SimpleNamespace(**vars(TASKS["davis"]) | {"seeded": False})}
    drawn = {"davis": SimpleNamespace(**vars(TASKS["davis"]) | {"seeded": True})}
    model = {"protocol__values": {"eval_only": "sha256:mm", "overrides": {}}}
    for tasks, changes in ((quiet, {}), (drawn, {"model__format": "masks"}), (drawn, model)):
        row = once(old_seeds((62.96, 63.5, 63.1), **changes), tasks)
        assert (row["(J&F)_m"], row["n"]) == ("63.0", "3")  # that of seed 0, the newest of three
    for tasks in (drawn, TASKS, {}):
        row = once(old_seeds((62.96, 62.96, 62.96)), tasks)
        assert (row["(J&F)_m"], row["n"]) == ("63.0", "3")
        [[row]] = blocks(table(old_seeds((62.96, 62.96, 63.5)), against=None, tasks=tasks))
        assert (row["(J&F)_m"], row["n"]) == ("63.1 ± 0.3", "3")


def test_a_name_given_to_one_of_the_old_seeds_is_that_of_the_result(tmp_path):
    """`run --name` finds the record of seed 0; the others of the number are not left behind under the old name."""
    quiet = {"davis": SimpleNamespace(**vars(TASKS["davis"]) | {"seeded": False})}
    paths = [save(tmp_path, r) for r in old_seeds((62.96, 62.96, 62.96))]
    labels.write(paths[1], {"name": "renamed"}, "2026-02-01T00:00:00Z")
    row = once(load_records(tmp_path), quiet)
    assert (row["model"], row["n"]) == ("renamed [1]", "3")


def test_seeds_give_mean_and_deviation():
    values = [42.0, 42.4, 42.9]
    records = [coco(v, key=f"{i}" * 16, seed=i) for i, v in enumerate(values)]
    row = blocks(table(records))[0][-1]
    assert (row["AP_bb"], row["n"]) == ("42.4 ± 0.5", "3")  # mean 42.433, std of the sample 0.451
    (row,) = [r for r in csv_rows(table(records, "csv")) if r["section"] == "ours"]
    assert float(row["AP_bb"]) == pytest.approx(pd.Series(values).mean(), rel=1e-12)
    assert float(row["AP_bb_std"]) == pytest.approx(pd.Series(values).std(), rel=1e-12)
    assert "42.4 $\\pm$ 0.5" in table(records, "latex")


def test_limited_results_only_on_request():
    records = [davis(), davis(99.9, key="e" * 16, limit=2)]
    text = table(records)
    assert "99.9" not in text
    assert "1 made with --limit" in text
    assert "99.9" not in table(records, "csv")
    assert blocks(table(records, include_limited=True))[1][0]["what differs"] == "limit 2"


def test_two_networks_under_one_name():
    other = davis(60.0, key="e" * 16, model__fingerprint="sha256:bb")
    with pytest.raises(UserError, match=r"two different networks are called run/last.*--name"):
        table([davis(), other])
    # one network with two cards is no clash, but the rows say what differs
    heads = davis(60.0, key="e" * 16, model__card=CARD | {"heads": 12})
    rows = blocks(table([davis(), heads]))[0][9:]
    assert [r["method"] for r in rows] == ["ours: run/last (heads=12) [1]", "ours: run/last (heads=6) [2]"]


def test_limited_results_share_no_row_with_others():
    upernet = {"task": "ade20k_upernet_160k", "metrics": {"mIoU": 43.0}, "published": [["ade20k", "upernet_160k"]]}
    limited = davis(99.9, key="e" * 16, limit=2)
    below = blocks(table([davis(key="a" * 16, **upernet), limited], include_limited=True))[1]
    assert [(r["mIoU"], r["(J&F)_m"]) for r in below] == [("43.0", ""), ("", "99.9")]


def test_metrics_with_units_and_extras():
    timing = davis(task="timing", metrics={"per_frame": 0.012345}, published=[], protocol__id="t1")
    (own,) = blocks(table([timing, davis()], against=None))
    assert own[0]["per_frame (s)"] == "0.0123"
    assert "J_recall" not in own[0]
    assert "J_recall" in csv_rows(table([davis()], "csv", against=None))[0]


def test_only_some_tasks(tmp_path):
    for record in (davis(), coco()):
        save(tmp_path, record)
    (rows,) = blocks(table_command(tmp_path, ["md"], POSTER, ["davis"], declared=TASKS))
    assert list(rows[0]) == ["method", "backbone", "(J&F)_m", "J_m", "F_m", "n"]
    assert len(rows) == 10
    with pytest.raises(UserError, match=r"no task nonsense .*coco_maskrcnn_1x, davis"):
        table_command(tmp_path, ["md"], None, ["nonsense"])


# --- files that are no records


def test_unreadable_files_are_named_and_left_out(tmp_path, caplog):
    save(tmp_path, davis())
    expected = table(load_records(tmp_path))
    folder = tmp_path / "records" / "davis"
    wrong = {
        "broken.json": '{"schema": 1, "key": ',
        "list.json": "[1, 2]",
        "foreign.json": '{"model": "x"}',
        "newer.json": json.dumps(davis() | {"schema": 2}),
        "shape.json": json.dumps(davis() | {"published": ["ab"]}),
        "binary.json": "\udcff",
    }
    for name, text in wrong.items():
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    (folder / ".d0.1.tmp").write_text("{")
    (folder / "notes.txt").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert table(load_records(tmp_path)) == expected
    (message,) = [r.getMessage() for r in caplog.records]
    assert all(name in message for name in wrong)
    assert "schema 2" in message
    assert ".tmp" not in message
    assert "notes.txt" not in message


def test_nothing_there(tmp_path):
    text = table_command(tmp_path / "none", ["md"], POSTER)
    assert len(blocks(text)[0]) == 9
    assert "selfpatch run" in text
    text = table_command(tmp_path / "none")
    assert text.count("\n") == 1
    assert "selfpatch run" in text
    assert csv_rows(table_command(tmp_path / "none", ["csv"])) == []


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("nobody", r"no published source 'nobody'.*dino_paper.*selfpatch_poster"),
        (f"{POSTER}:Table 9", r"no table called 'Table 9'.*main table.*ablation"),
        (f"{POSTER}:ablation", r"more than one table called 'ablation'.*left.*right"),
    ],
)
def test_unknown_sources(against, message):
    with pytest.raises(UserError, match=message):
        table([], against=against)


def test_unknown_format(tmp_path):
    with pytest.raises(UserError, match=r"no format html; there are: md, csv, latex"):
        table_command(tmp_path, ["md", "html"])


# --- published tables


def printed(against: str) -> list[dict[str, str]]:
    return blocks(table([], against=against))[0]


def test_poster_is_printed_as_printed():
    with (PUBLISHED / "selfpatch.csv").open(newline="") as f:
        numbers = [r for r in csv.DictReader(f) if r["source"] == POSTER and "main table" in r["table"]]
    rows = printed(POSTER)
    methods = list(dict.fromkeys((r["method"], r["backbone"]) for r in numbers))
    assert [(r["method"].partition(" [")[0], r["backbone"]) for r in rows] == methods
    assert list(rows[0])[2:] == [*AP, "mIoU", "aAcc", "mAcc", "(J&F)_m", "J_m", "F_m"]
    shown = {(m, b, h): row[h] for (m, b), row in zip(methods, rows, strict=True) for h in list(row)[2:]}
    theirs = {(r["method"], r["backbone"], r["metric"].replace("JF_m", "(J&F)_m")): r["value"] for r in numbers}
    assert shown == theirs
    assert "protocol not printed" in table([])


@pytest.mark.parametrize("form", ["md", "csv", "latex"])
def test_every_published_table_renders(form):
    for source, name, rows, _ in list_published():
        text = table([], form, against=f"{source}:{name}")
        values = find_table(f"{source}:{name}").rows[0].cells.values()
        assert all(n.text in text for n in values)
        if form == "csv":
            assert len(csv_rows(text)) == rows


def test_source_alone_is_its_first_table():
    assert find_table("dino_paper").name == "Table 2"
    assert find_table("dino_paper:table 5").name == "Table 5"
    assert find_table(f"{POSTER}: LEFT ").name.startswith("poster ablation table, left")


def test_laid_out_tables_hold_every_number_once_and_mix_no_protocols():
    printed = load_published().groupby(["source", "table"]).size()
    assert len(printed) == len(list_published())
    for source, name, _, _ in list_published():
        laid = find_table(f"{source}:{name}")
        assert sum(len(r.cells) for r in laid.rows) == printed[source, name]
        for column in laid.columns:
            cells = [r.cells[column] for r in laid.rows if column in r.cells]
            assert {(n.task, n.metric) for n in cells} == {(column[0], column[2])}
            assert len({n.protocol for n in cells}) == 1 or all(NOT_PRINTED in n.note for n in cells)


def test_published_files():
    files = sorted(PUBLISHED.glob("*.csv"))
    assert len(files) >= 6
    seen = set()
    for path in files:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            assert tuple(reader.fieldnames) == COLUMNS, path.name
            for line in reader:
                assert None not in line
                assert None not in line.values()
                float(line["value"])
                assert all(line[k] for k in ("source", "table", "method", "task", "metric")), line
                assert "|" not in line["method"] + line["backbone"]  # METHOD|BACKBONE must stay readable
                identity = tuple(v for k, v in line.items() if k != "value")
                assert identity not in seen, line
                seen.add(identity)
                assert line["source"] in load_sources(), line["source"]
                assert path.name in (PUBLISHED / "SOURCES.md").read_text(encoding="utf-8")
    assert set(load_sources()) == set(load_published()["source"])
    assert all(s["what"] and s["sure"] for s in load_sources().values())


@pytest.mark.shared
def test_published_numbers_are_the_shared_ones():
    """Nothing but notes was changed in our copy."""
    files = sorted((SHARED / "published").glob("*.csv"))
    if not files:
        pytest.skip(f"{SHARED / 'published'} has no CSV")
    ours = load_published().drop(columns="note")
    for path in files:
        theirs = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="note")
        mine = ours.merge(theirs.drop_duplicates(), how="inner", on=list(theirs.columns))
        assert len(mine) >= len(theirs), path.name


# --- formats


def test_numbers_for_people():
    assert [number(v) for v in (70.58, -0.04, 0.0, 100, float("nan"))] == ["70.6", "0.0", "0.0", "100.0", "nan"]
    assert number(0.000123456, "s") == "0.000123"


def test_latex_is_balanced_and_escaped():
    record = davis(model__name="50%_a&b #1 {x} ~^\\", **SUBSET)
    text = table([record, coco(key="e" * 16)], "latex")
    assert r"50\%\_a\&b \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert latex_escape("[a] ±") == r"{[}a] $\pm$"
    for spec, body in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", text, flags=re.S):
        columns = len(re.findall(r"[lr]|p\{5cm\}", spec))
        for line in [x for x in body.splitlines() if x.endswith(r"\\")]:
            spanned = sum(int(k) - 1 for k in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line.replace(r"\mathcal{J}\&", ""))) + 1 + spanned == columns, line
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 2


def test_markdown_survives_a_pipe_in_a_name():
    (rows,) = blocks(table([davis(model__name="a|b")], against=None))
    assert rows[0]["model"] == "a\\|b [1]"
