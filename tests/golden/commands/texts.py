"""Parts that only print: help, lists, and tables of the stored records."""

import hashlib
import json
import re
import shutil

from .place import DATA, STORED, Place

FORMS = ("md", "csv", "latex")


def help_texts(place: Place) -> dict[str, str]:
    """`--help` of the program and of every command that it names, 100 columns wide."""
    top = place.alone("--help")
    names = re.findall(r"^│ (\w+)", top.out.partition("─ Commands ─")[2], re.MULTILINE)
    found = [top, *(place.alone(name, "--help") for name in names)]
    assert len(found) > 10, top
    return {"said.txt": "\n".join(str(done) for done in found)}


def lists(place: Place) -> dict[str, str]:
    """What there is, and how an unknown word is answered."""
    asked = [["ls", kind] for kind in ("tasks", "formats", "recipes", "ablations", "records", "published", "things")]
    asked += [["zoo"], ["zoo", "dino_vits16"], ["zoo", "dino_vitz16"], ["table", "--against", "nobody"]]
    asked += [["inspect", "nowhere.pth"], ["pretrain", "dnio"], ["export", "nowhere"], ["run", "--task", "dvais"]]
    asked += [["convert", "nowhere.pth", "out.pth"], ["compare", "a.pth", "--task", "davis"], ["ablate", "postr"]]
    return {"said.txt": "\n".join(str(place(*words)) for words in asked)}


def official(place: Place) -> dict[str, str]:
    """Some of the stored records as if they were made on the benchmarks' own data by the unchanged protocol, so that
    they stand above a table's rule, with a difference to the row that they name."""
    found = {}
    for task, summary in (
        ("davis", "30 sequences, 1999 frames, 61 objects"),
        ("knn", "1000 classes, 1281167 + 50000 images"),
        ("coco_maskrcnn_1x", "118287 + 5000 images"),
        ("ade20k_semfpn_40k", "20210 + 2000 images"),
    ):
        there = [json.loads(p.read_text()) for p in sorted(STORED.glob(f"*/records/{task}/*.json"))]
        same = [r for r in there if r["model"]["name"] == "nets/a"]
        record = min(same, key=lambda r: len(r["protocol"]["overridden"]))
        record["model"] |= {"name": "official/a", "row": "DINO|ViT-S/16"}
        record["protocol"]["overridden"] = {}
        record["data"] |= {"official": True, "differs": "", "summary": summary}
        record["limit"] = None
        record["key"] = hashlib.sha256(task.encode()).hexdigest()[:16]
        found[f"records/{task}/{record['key']}.json"] = json.dumps(record, indent=1) + "\n"
    return found


def stored_records(place: Place) -> int:
    """Put the stored records into the folder `out`; -> how many there are."""
    found = sorted(STORED.glob("*/records/*/*.json"))
    for path in found:
        target = place.folder / "out/records" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return len(found)


def tables(place: Place) -> dict[str, str]:
    """Tables of the stored records in every form, and what `compare` says where nothing is left to run."""
    stored_records(place)
    where = ("--out", "out")
    found = [place("table", *where, "--format", form) for form in FORMS]
    found += [place("table", *where, "--against", "selfpatch_poster", "--format", form) for form in FORMS]
    for source in ("dino_paper:Table 5", "ibot_readme"):
        found += [place("table", *where, "--against", source, "--task", "davis,knn")]
    found += [place("table", *where, "--task", "davis,knn", "--limited")]
    found += [place("ls", "records", *where)]
    return {"said.txt": "\n".join(str(done) for done in found)}


def comparison(place: Place) -> dict[str, str]:
    """What `compare` says of two networks whose stored records it finds."""
    from .runs import DAVIS, KNN

    count = stored_records(place)
    models = [place.networks / f"{name}.safetensors" for name in "ab"]
    found = []
    for task, root, values in (("davis", "davis", DAVIS), ("knn", "classes", KNN)):
        found += [place("compare", *models, "--task", task, "--data", DATA / root, "--out", "out", *values)]
    assert count == len(list((place.folder / "out/records").rglob("*.json"))), "a stored record was not found again"
    return {"said.txt": "\n".join(str(done) for done in found)}
