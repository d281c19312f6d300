"""The memory of files that were looked at: what older code has written, newer code takes without looking again.

An entry is kept under the name of the function that looked, and counts while a file's size and times are the same.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path

from .place import DATA, ROOTS, STORED, Place
from .runs import DAVIS, OWN_ADE, SMALL_COCO

FOLDER = STORED / "looks"
# Set -> the task that looks at it, and its values.
TASKS = {
    "davis2017": ("davis", DAVIS),
    "coco": ("coco_maskrcnn_1x", SMALL_COCO),
    "ade20k": ("ade20k_semfpn_40k", OWN_ADE),
}


def checked(place: Place, dataset: str) -> str:
    """What a run on FOLDER/SET says after the data are checked: that its model's name is another's. Then it ends."""
    other = json.loads(next(STORED.glob("evaluation/records/davis/*.json")).read_text())
    other["model"] |= {"name": "nets/a", "fingerprint": "sha256:0"}
    path = place.folder / "results/records/davis/other.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(other))
    task, values = TASKS[dataset]
    model, root = place.networks / "a.safetensors", f"{dataset}={ROOTS[dataset]}"
    done = place("run", model, "--task", task, "--data", root, *values)
    assert "already names other weights" in done.err, done
    return str(done)


def fingerprint(place: Place) -> str:
    """Of the videos. A file lies where the run's results would be: once the data are checked, it fails."""
    (place.folder / "failed/artifacts").mkdir(parents=True)
    (place.folder / "failed/artifacts/davis").write_text("")
    model = place.networks / "a.safetensors"
    done = place("run", model, "--task", "davis", "--data", "davis", "--out", "failed", *DAVIS)
    (path,) = (place.folder / "failed/records/davis").glob("*.json")
    return f"{done}{json.loads(path.read_text())['data']['fingerprint']}\n"


def memory_of(place: Place, dataset: str) -> Path:
    """The file that remembers what was seen below FOLDER/SET."""
    root = str(place.folder / ROOTS[dataset])
    return place.folder / "cache/files" / f"{hashlib.sha256(root.encode()).hexdigest()[:24]}.json"


def make_looks(place: Place) -> dict[str, str]:
    """The memory that runs on the drawn sets leave, without this machine's paths and times."""
    for dataset in TASKS:
        shutil.copytree(DATA / ROOTS[dataset], place.folder / ROOTS[dataset])
    newest = max(p.stat().st_ctime for p in place.folder.rglob("*"))
    while time.time() < newest + 2.5:  # what changed a moment ago is not remembered
        time.sleep(0.1)
    found = {}
    for dataset in TASKS:
        checked(place, dataset)
        memory = json.loads(memory_of(place, dataset).read_text()) | {"root": ""}
        seen = sorted(memory.pop("files").items())
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, (_, facts) in seen)
        found[f"{dataset}.json"] = f'{json.dumps(memory)[:-1]}, "files": {{\n{lines}\n}}}}\n'
    return found


def looks(place: Place) -> dict[str, str]:
    """Runs on sets whose files hold nothing but zeros: all that is known of them is in the memory, and whoever looks at
    one again finds that it is damaged."""
    said = []
    for dataset in TASKS:
        root = place.folder / ROOTS[dataset]
        shutil.copytree(DATA / ROOTS[dataset], root)
        memory = json.loads((FOLDER / f"{dataset}.json").read_text()) | {"root": str(root)}
        paths = {name: root / name.partition(" ")[2] for name in memory["files"]}
        for path in set(paths.values()):  # one may have been looked at in two ways
            path.write_bytes(bytes(path.stat().st_size))
        for name, path in paths.items():
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            memory["files"][name] = [stamp, memory["files"][name]]
        memory_of(place, dataset).parent.mkdir(parents=True, exist_ok=True)
        memory_of(place, dataset).write_text(json.dumps(memory))
        said.append(checked(place, dataset))
    return {"said.txt": "\n".join([*said, fingerprint(place)])}
