"""Parts on checkpoint files: what they are taken for, what they are converted to, features, and keys of records."""

import json
from pathlib import Path

import yaml

from .place import DATA, SHARED, STORED, Place, flags, fresh, sha256
from .processes import Done

# Features of a picture by the public `load`: for every file a line.
FEATURES = r"""
import hashlib, json, sys
import numpy as np, torch
from selfpatch_bench.benchmarks import UserError, load

pixels = np.frombuffer(hashlib.shake_256(b"picture").digest(3 * 64 * 96), np.uint8).reshape(1, 3, 64, 96).copy()
for name, path, facts in json.loads(sys.argv[1]):
    encoder = load(path, **facts)
    with torch.inference_mode():
        image, maps = encoder(encoder.normalise(torch.from_numpy(pixels)))
    values = {"image": image} | {f"map {i}": m for i, m in enumerate(maps)}
    for kind, value in values.items():
        bits = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        some = " ".join(f"{x:.5f}" for x in value.flatten()[:: max(1, value.numel() // 4)][:4].tolist())
        print(f"{name} {kind} {list(value.shape)} norm {value.norm():.4f}: {some} bits:{bits}")
"""


def layouts(place: Place) -> dict[str, str]:
    """`inspect` and `convert` of every format's example, and the hash of what comes out."""
    found = []
    for name, (file, facts) in place.examples.items():
        found += [str(place("inspect", file)), *converted(place, name, file, facts)]
    return {"said.txt": "\n".join(found)}


def converted(place: Place, name: str, file: Path, facts: dict) -> list[str]:
    """What `convert` says, and the hash of the file."""
    out = Path(f"{file.name}.{name}.safetensors")
    done = place("convert", file, out, "--format", name, *flags(facts))
    made = place.folder / out
    return [str(done) + (f"sha256 {sha256(made)}\n" if made.exists() else "")]


def features(place: Place) -> dict[str, str]:
    """Image vectors and patch maps of the examples."""
    asked = [(name, str(file), {"format": name, **facts}) for name, (file, facts) in place.examples.items()]
    return {"values.txt": extracted(place, asked)}


def extracted(place: Place, asked: list) -> str:
    done = place(json.dumps(asked), code=FEATURES)
    assert not done.status, done.err
    return done.out


# ------------------------------------------------------------------------------------------- of the shared folder
def shared_files() -> list[tuple[str, Path, dict]]:
    """(format, file, facts) of the tiny checkpoints that have a layout."""
    found = []
    for layout in sorted((SHARED / "checkpoints/layouts").glob("*.json")):
        told = json.loads(layout.read_text())
        facts = {k: told["tiny"]["arch"][k] for k in ("heads", "mean", "std") if told["tiny"]["arch"].get(k)}
        facts = facts if isinstance(facts.get("heads"), int) else {k: v for k, v in facts.items() if k != "heads"}
        files = [SHARED / "checkpoints" / f for f in told["tiny"]["files"]]
        found += [(told["plugin"], f, facts) for f in files if f.suffix not in (".npz", ".json") and f.exists()]
    return found


def shared(place: Place) -> dict[str, str]:
    """The same for every tiny file of the shared folder, those that are refused included."""
    known = {file: (name, facts) for name, file, facts in shared_files()}
    found = []
    for file in sorted((SHARED / "checkpoints/tiny").iterdir()):
        if file.suffix in (".npz", ".json"):
            continue
        found.append(str(place("inspect", file)))
        if file in known:
            found += converted(place, known[file][0], file, known[file][1])
    return {"said.txt": "\n".join(found)}


def shared_features(place: Place) -> dict[str, str]:
    """Features of those that have a layout."""
    asked = [(f"{file.name} as {name}", str(file), {"format": name, **facts}) for name, file, facts in shared_files()]
    return {"values.txt": extracted(place, asked)}


# ------------------------------------------------------------------------------------------------ keys of records
def key_run(place: Place, models: list[tuple[str, Path, dict]], out: str) -> Done:
    """DAVIS and k-NN, with the protocols' own values, of models given in a models.yaml."""
    entries = [
        {"path": str(place.folder / path), "name": f"{path.name} as {n}", "format": n, **f} for n, path, f in models
    ]
    (place.folder / "models.yaml").write_text(yaml.safe_dump(entries))
    tasks = ("--task", "davis,knn", "--data", f"davis2017={DATA / 'davis'}", "--data", f"imagenet={DATA / 'classes'}")
    return place("run", "--models", "models.yaml", *tasks, "--out", out)


def models_of(place: Place, kind: str) -> list[tuple[str, Path, dict]]:
    """examples, or those of the shared folder."""
    if kind == "shared":
        return shared_files()
    return [(name, file, facts) for name, (file, facts) in place.examples.items()]


def make_keys(place: Place, kind: str = "examples") -> dict[str, str]:
    """The records' tasks, models, keys and fingerprints. A file lies where a folder of results would be made: every
    result then fails at once, and leaves a record with its key."""
    for task in ("davis", "knn"):
        (place.folder / "made/artifacts").mkdir(parents=True, exist_ok=True)
        (place.folder / "made/artifacts" / task).write_text("")
    done = key_run(place, models_of(place, kind), "made")
    found = []
    for path in sorted((place.folder / "made/records").glob("*/*.json")):
        record = json.loads(path.read_text())
        found.append([record["task"], record["model"]["name"], record["key"], record["model"]["fingerprint"]])
    assert len(found) == 2 * len(models_of(place, kind)), done
    return {"keys.json": "[\n " + ",\n ".join(map(json.dumps, sorted(found))) + "\n]\n"}


def make_shared_keys(place: Place) -> dict[str, str]:
    return make_keys(place, "shared")


def keys(place: Place, kind: str = "examples", part: str = "keys") -> dict[str, str]:
    """Keys under which a run finds its results: records lie there already, so a key that is the same costs nothing and
    one that is another is seen at once."""
    out = fresh(place.folder / "known")
    for task, name, key, fingerprint in json.loads((STORED / part / "keys.json").read_text()):
        record = json.loads(next(STORED.glob(f"evaluation/records/{task}/*.json")).read_text())
        record |= {"key": key, "model": record["model"] | {"name": name, "fingerprint": fingerprint}}
        path = out / "records" / task / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    return {"said.txt": str(key_run(place, models_of(place, kind), "known"))}


def shared_keys(place: Place) -> dict[str, str]:
    return keys(place, "shared", "shared_keys")
