"""The wheel: built, installed into a new environment, and used from a folder where no checkout is."""

import hashlib
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import REPO
from golden.commands.inputs import networks
from golden.commands.place import DATA

FOLDERS = ("benchmarks", "pretrain", "mm_configs", "results")
# Figures for people who work on the project.
NOT_PACKAGED = ("results/perf/",)


def project_files() -> list[str]:
    """Files of the project, relative: those that git knows, or would take; without git, all but what tools leave."""
    line = ["git", "-C", str(REPO), "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return sorted(name for name in found.stdout.splitlines() if (REPO / name).is_file())
    unwanted = ("build/", "dist/", "runs/", "results/records/", "results/artifacts/", ".")
    names = (str(p.relative_to(REPO)) for p in REPO.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(name for name in names if not name.startswith(unwanted) and ".egg-info" not in name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in project_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    subprocess.run([str(x) for x in build], check=True, capture_output=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """installed(program, *arguments) -> what it prints; program: python or selfpatch of an environment that has the
    wheel, and sees this environment's packages but not its editable copy of the project."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env/bin/python"
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run([str(x) for x in install], check=True, capture_output=True)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    here = next(p for p in map(Path, sys.path) if p.name == "site-packages" and (p / "torch").exists())
    (site / "zz.pth").write_text(f"{here}\n")  # after the wheel's own folder
    work = folder / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SELFPATCH_")}
    environment |= {"SELFPATCH_CACHE": str(folder / "cache"), "COLUMNS": "500"}

    def run(program: str, *arguments) -> str:
        line = [str(folder / "env/bin" / program), *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=work, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.site, run.work = site, work
    return run


def test_it_holds_the_files_of_the_four_folders_and_no_others(wheel):
    """A folder that setuptools was not told of is missing from the wheel, and nobody with a checkout would notice."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = [name for name in project_files() if name.split("/")[0] in FOLDERS and not name.startswith(NOT_PACKAGED)]
    assert inside == {f"selfpatch_bench/{name}" for name in ours}


def test_only_one_import_name_is_installed(installed):
    names = {p.name for p in installed.site.iterdir() if not p.name.endswith((".dist-info", ".pth"))}
    assert names - {"__pycache__"} == {"selfpatch_bench"}
    where = "import selfpatch_bench.benchmarks as b; print(b.__file__)"
    assert installed("python", "-c", where).startswith(str(installed.site))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--help"], "selfpatch demo --full"),
        (["ls", "tasks"], "coco_maskrcnn_1x"),
        (["ls", "formats"], "selfpatch_bench"),
        (["ls", "recipes"], "moby_selfpatch"),
        (["ls", "ablations"], "selfpatch_poster"),
        (["ls", "published"], "selfpatch_poster"),
        (["zoo", "dino_vits16"], "https://"),
        (["table", "--against", "selfpatch_poster"], "DINO+SelfPatch"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_commands_that_read_the_package_s_own_files(arguments, words, installed):
    assert words in installed("selfpatch", *arguments)


def test_networks_are_trained_evaluated_and_put_into_a_table(installed):
    """Loops, formats, and the processes of their own that score masks: names that are pickled are found again."""
    networks(installed.work / "nets")
    options = ("views.rows=[{count: 2, size: 32}]", "network.backbone=vit_tiny_patch8", "loop.steps=1", "loop.batch=4")
    small = ("network.overrides={embed_dim: 16, depth: 1, num_heads: 2}", "data.workers=1", "schedule.warmup_epochs=0")
    train = ("pretrain", "dino", "--data", DATA / "classes/train", "--out", "runs/dino", "--device", "cpu")
    installed("selfpatch", *train, *options, *small, "objectives.dino.outputs=16", "objectives.dino.hidden=16")
    data = ("--data", f"davis2017={DATA / 'davis'}", "--data", f"imagenet={DATA / 'classes'}", "--device", "cpu")
    values = ("size=64", "multiple=16", "resize=64", "crop=64", "k=3", "other_k=[5]")
    said = installed("selfpatch", "run", "nets/a.safetensors", "runs/dino", "--task", "davis,knn", *data, *values)
    assert "nets/a on davis: JF_m" in said
    records = [json.loads(p.read_text()) for p in (installed.work / "results/records").glob("*/*.json")]
    assert {r["status"] for r in records} == {"done"}
    assert {(r["model"]["name"], r["task"]) for r in records} == {
        (name, task) for name in ("nets/a", "dino/step-00000001") for task in ("davis", "knn")
    }
    assert {r["environment"]["commit"] for r in records} == {None}
    table = installed("selfpatch", "table")
    assert "nets/a" in table
    assert "dino/step-00000001" in table


def test_published_numbers_are_resources_of_the_package(installed):
    """By the standard library's way to a package's files: the same here and in the installed wheel."""
    code = (
        "import hashlib, json\n"
        "from importlib.resources import files\n"
        "found = files('selfpatch_bench.results.published').iterdir()\n"
        "print(json.dumps({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.is_file()}))"
    )
    there = json.loads(installed("python", "-c", code))
    ours = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (REPO / "results/published").glob("*.*")}
    assert len([name for name in ours if name.endswith(".csv")]) >= 6
    assert {name: there.get(name) for name in ours} == ours
    here = importlib.resources.files("selfpatch_bench.results.published")
    assert {name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in ours} == ours
