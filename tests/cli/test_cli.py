"""The command line as a user meets it: real processes, help, errors in one line, the demo."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import warm
from conftest import REPO
from selfpatch_bench.benchmarks.cli.app import app
from selfpatch_bench.benchmarks.cli.options import spell_out_card, split_arguments
from selfpatch_bench.benchmarks.run.options import Options, card_fields
from selfpatch_bench.pretrain.common.errors import UserError

selfpatch = warm.run
COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_complete_and_has_examples(command):
    text = selfpatch(*command.split(), "--help")
    assert text.returncode == 0
    assert "Usage" in text.stdout
    if command:
        assert f"selfpatch {command}" in text.stdout.split("Examples")[1]
    else:
        assert all(name in text.stdout for name in COMMANDS)


def test_help_imports_nothing_heavy():
    """Instant help: neither torch nor pandas, numpy or cv2 is loaded to print it."""
    code = (
        "import sys; sys.argv = ['selfpatch', 'run', '--help']\n"
        "from selfpatch_bench.benchmarks.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'cv2', 'timm', 'matplotlib', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.pth", "--task", "davis"], "nowhere.pth"),
        (["run", "--task", "davis"], "give checkpoints, or --masks"),
        (["run", "--masks", "x"], "--masks: is for davis; give it with --task"),
        (["run", "x.pth"], "--task: which? there are: "),
        (["run", "x.pth", "--task", "dvais"], "no task called dvais"),
        (["run", "x.pth", "--task", "davis", "--card", "heads"], "--card heads: not written as key=value"),
        (["run", "x.pth", "--task", "davis", "--seed", "-1"], "--seed -1"),
        (["run", "x.pth", "--task", "davis", "--plugins", "nowhere"], "nowhere"),
        (["inspect", "."], "folder"),
        (["inspect", "x.txt", "--format", "dimo"], "x.txt"),
        (["ls", "things"], "tasks, formats, backbones, recipes, ablations, records, published"),
        (["table", "--against", "nobody"], "nobody"),
        (["table", "--format", "pdf"], "pdf"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else None,
)
def test_mistakes_get_one_line_and_status_2(arguments, words, tmp_path):
    (tmp_path / "x.txt").write_text("no checkpoint\n")
    done = selfpatch(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.txt"]  # nothing half-written


def test_fields_after_card_belong_to_it():
    assert spell_out_card(["run", "--card", "mean=0.5", "std=0.5", "--heads", "3", "radius=2"]) == [
        "run", "--card", "mean=0.5", "--card", "std=0.5", "--heads", "3", "radius=2",
    ]  # fmt: skip
    assert spell_out_card(["--card", "heads=3", "radius=6", "std=1"]) == ["--card", "heads=3", "radius=6", "std=1"]
    assert Options(heads=3, card=card_fields(["mean=0.5"])).card == {"mean": "0.5", "heads": "3"}
    with pytest.raises(UserError):
        card_fields(["mean"])


def test_an_existing_path_with_an_equals_sign_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("k=4.pth").write_text("")
    assert split_arguments([Path("k=4.pth"), Path("radius=3"), Path("b.pth")]) == (
        [Path("k=4.pth"), Path("b.pth")],
        ["radius=3"],
    )


def test_doctor_reports_and_names_the_fix(tmp_path):
    done = selfpatch("doctor", "--data", f"davis2017={tmp_path / 'nowhere'}", "--out", tmp_path)
    assert done.returncode == 1
    assert "ok    torch" in done.stdout
    assert "ok    cv2" in done.stdout
    assert "FAIL  davis2017" in done.stdout
    assert "1 to fix" in done.stdout
    healthy = selfpatch("doctor", "--out", tmp_path)
    assert healthy.returncode == 0, healthy.stdout
    assert healthy.stdout.endswith("ready\n")


def test_every_dependency_is_pinned_and_every_pin_is_exact():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (REPO / "constraints.txt").read_text().split("\n") if line and line[0] != "#"
    )
    assert pins["torch"] == "2.14.1"
    assert pins["torchvision"] == "0.29.1"
    assert pins["opencv-python"] == pins["opencv-python-headless"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    names = {d.replace("=", ">").partition(">")[0].lower() for d in wanted}
    assert names <= pins.keys()


def test_demo_runs_and_runs_again(tmp_path):
    """The first time it makes everything; the second time it finds it done. The numbers are those of its records."""
    from selfpatch_bench.benchmarks.commands import demo
    from selfpatch_bench.benchmarks.results import record
    from selfpatch_bench.pretrain.config import load_recipe

    # As it is, but with few blocks, steps, pictures and frames, which the process sets before the command runs.
    code = (
        "from functools import partial\n"
        "from selfpatch_bench.benchmarks.cli import app as cli\n"
        "from selfpatch_bench.benchmarks.commands import demo\n"
        "demo.SMALL += ('loop.steps=3', 'loop.batch=4', 'network.overrides.depth=2')\n"
        "demo.PICTURES, demo.VIDEOS, demo.make_videos = 8, 2, partial(demo.make_videos, frames=4); cli.main()"
    )

    def go():
        return warm.run("demo", "--out", tmp_path, code=code)

    done = go()
    assert done.returncode == 0, done.stderr
    records, fingerprints, doubts = {}, {}, {}
    for path in (tmp_path / "records/davis").glob("*.json"):
        found = record.read(path)
        records[found.model.name] = found.metrics
        fingerprints[found.model.name] = found.model.fingerprint
        doubts[found.model.name] = found.doubts
    trained = {f"{name}/step-00000003" for name in demo.RUNS}
    assert set(records) == {"models/colour", "models/random"} | trained
    assert len(set(fingerprints.values())) == 4  # the patch term makes a difference
    assert not any(doubts[name] for name in trained)  # three steps are few, and no reason to call them untrained
    assert "untrained" in str(doubts["models/random"])
    table, _, below = done.stdout.partition("| difference ")
    for name, metrics in records.items():
        (line,) = [x for x in table.splitlines() if x.startswith(f"| {name}")]
        assert f"{metrics['JF_m']:.1f}" in line
        assert 0 < metrics["JF_m"] < 100
        if name != "models/random":
            (line,) = [x for x in below.splitlines() if x.startswith(f"| {name} - models/random")]
            assert f"{metrics['JF_m'] - records['models/random']['JF_m']:+.1f}" in line
            assert "too few to tell" in line
    assert "selfpatch/step-00000003 and baseline/step-00000003: no difference is shown" in below
    assert list(tmp_path.glob("artifacts/davis/*/pictures/*.png"))
    again = go()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done already") == 4
    assert len(list((tmp_path / "records/davis").glob("*.json"))) == 4
    weights = {name: [e.weight for e in demo.configure(tmp_path, w).objectives] for name, w in demo.RUNS.items()}
    assert weights == {"baseline": [1.0, 0.0], "selfpatch": [e.weight for e in load_recipe("selfpatch").objectives]}


def test_the_readme_names_real_commands_and_the_ci_runs_its_test_command():
    text = (REPO / "README.md").read_text()
    lines = [line.strip() for line in text.splitlines()]
    setup = [line for line in lines if line.startswith("python3 -m venv .venv && .venv/bin/pip install")]
    assert len(setup) == 2
    (test,) = [line for line in setup if line.endswith("tox")]
    assert test in (REPO / ".ci/run").read_text().splitlines()
    for line in lines:
        if line.startswith(("selfpatch ", ".venv/bin/selfpatch ")):
            assert line.split("selfpatch ", 1)[1].split()[0] in COMMANDS, line


def test_a_shared_folder_of_which_nothing_ran_is_a_failure(tmp_path):
    import os

    line = ["-q", "-p", "no:cacheprovider", REPO / "tests/formats/test_formats.py", "-k", "image_vector"]
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    for folder in (tmp_path, tmp_path / "nowhere"):
        env = os.environ | {"SELFPATCH_SHARED": str(folder)}
        done = warm.run(*line, code=code, cwd=REPO, env=env)
        assert done.returncode == 1, done.stdout
        assert "not one case of it ran" in done.stdout
