"""models.yaml: a zoo by one command, each entry with its own overrides, every mistake a line that names the entry."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from format_examples import format_example
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.cli.app import app
from selfpatch_bench.benchmarks.commands.compare import compare_command
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run import slurm
from selfpatch_bench.benchmarks.run.models import Entry, read_models
from selfpatch_bench.benchmarks.run.opened import describe
from selfpatch_bench.benchmarks.run.plan import Options, expand, gather, plan
from selfpatch_bench.benchmarks.run.runner import run, run_command
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights
from toy import TASK

CARD = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The task `toy`, data for it, and in zoo/: our own file, DINO's checkpoint (heads unknown), bare timm names."""
    (tmp_path / "plug/tasks").mkdir(parents=True)
    (tmp_path / "plug/tasks/toy.py").write_text(TASK)
    (tmp_path / "data").mkdir()
    (tmp_path / "zoo/sub").mkdir(parents=True)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    torch.manual_seed(0)
    weights = Encoder(CARD).vit.state_dict()
    save_weights(tmp_path / "zoo/ours.safetensors", weights, CARD)
    torch.save({k: v + 1 for k, v in weights.items()}, tmp_path / "zoo/sub/bare.pth")
    made, _ = format_example("dino", tmp_path)
    Path(made).rename(tmp_path / "zoo/dino.pth")
    return tmp_path


BARE = {"path": "sub/bare.pth", "name": "bare", "format": "timm", "heads": 3, "card": {"mean": 0.5, "std": [0.5] * 3}}
DINO = {"path": "dino.pth", "name": "DINO", "heads": 2, "row": "DINO|ViT-S/16"}


def write(place, models) -> Path:
    path = place / "zoo/models.yaml"
    path.write_text(models if isinstance(models, str) else yaml.safe_dump({"models": models}))
    return path


def options(place, out="out", **more) -> Options:
    return Options(data=[str(place / "data")], out=place / out, device="cpu", **more)


def go(place, by_hand=(), out="out", **more):
    chosen = options(place, out, **more)
    jobs = plan(expand(gather(by_hand, chosen), chosen.every), ["toy"], chosen)
    assert run(jobs, chosen, Console(quiet=True)) == 0
    return {j.model.name: record.read(record.done(chosen.out, "toy", j.key)[-1]) for j in jobs}


def test_a_zoo_by_one_command_is_recorded_as_by_hand(place, monkeypatch):
    """Paths are from the list's folder, whatever the current one; the student of a file is another model."""
    student = DINO | {"name": "DINO student", "weights": "student"}
    file = write(place, ["ours.safetensors", BARE, DINO, student])
    monkeypatch.chdir(place / "data")
    found = go(place, models=file)
    assert list(found) == ["zoo/ours", "bare", "DINO", "DINO student"]
    zoo = place / "zoo"
    by_hand = go(place, [zoo / "ours.safetensors"], "hand")
    card = {"heads": "3", "mean": "0.5", "std": "0.5,0.5,0.5"}
    by_hand |= go(place, [zoo / "sub/bare.pth"], "hand", name="bare", format="timm", card=card)
    given = {"card": {"heads": "2"}, "row": "DINO|ViT-S/16"}
    by_hand |= go(place, [zoo / "dino.pth"], "hand", name="DINO", **given)
    by_hand |= go(place, [zoo / "dino.pth"], "hand", name="DINO student", weights="student", **given)
    for name, one in found.items():
        other = by_hand[name]
        assert (one.key, one.model, one.metrics) == (other.key, other.model, other.metrics)
    assert found["DINO"].model.overrides == {"heads": 2}
    assert found["DINO student"].model.overrides == {"heads": 2, "weights": "student"}
    assert found["bare"].model.overrides["format"] == "timm"
    assert found["zoo/ours"].model.overrides == {}
    assert len({one.model.fingerprint for one in found.values()}) == 4


def test_checkpoints_by_hand_keep_the_options_and_entries_their_own(place):
    """--heads and --row are the given file's; the entry beside it is untouched by them."""
    file = write(place, [BARE])
    found = go(place, [place / "zoo/dino.pth"], models=file, card={"heads": "4"}, row="MAE|ViT-B/16", name="given")
    assert (found["given"].model.card["heads"], found["given"].model.row) == (4, "MAE|ViT-B/16")
    assert (found["bare"].model.card["heads"], found["bare"].model.row) == (3, None)
    for flag, value in {
        "card": {"heads": "2"},
        "format": "dino",
        "weights": "student",
        "name": "x",
        "row": "A|B",
    }.items():
        with pytest.raises(UserError, match="is for checkpoints given by hand"):
            gather([], options(place, models=file, **{flag: value}))


def test_compare_takes_the_list(place, capsys):
    """Teacher and student of one file are two columns."""
    file = write(place, [DINO, DINO | {"name": "student", "weights": "student"}])
    assert compare_command([], ["toy"], options(place, models=file)) == 0
    assert "| metric | DINO | student |" in capsys.readouterr().out
    with pytest.raises(UserError, match="two checkpoints"):
        compare_command([], ["toy"], options(place, models=write(place, [DINO])))


def test_run_command_takes_the_list(place, capsys):
    assert run_command([], ["toy"], options(place, models=write(place, [DINO]))) == 0
    assert "DINO on toy" in capsys.readouterr().out


def test_the_zoo_fills_an_entry(place):
    """`zoo: NAME` gives format, card and row; what the entry says itself comes first."""
    zoo = {"tiny": {"url": "https://example.org/t.pth", "format": "dino", "heads": 2, "row": "DINO|ViT-S/16"}}
    (place / "plug/zoo.yaml").write_text(yaml.safe_dump(zoo))
    first, second = read_models(
        write(place, [{"path": "dino.pth", "zoo": "tiny"}, DINO | {"zoo": "tiny", "row": "MAE|ViT-B/16"}])
    )
    assert (first.format, first.card, first.row) == ("dino", {"heads": 2}, "DINO|ViT-S/16")
    assert (second.row, second.name) == ("MAE|ViT-B/16", "DINO")
    assert describe(first, Options()).model.card["heads"] == 2
    with pytest.raises(UserError, match=r"no such file or folder: .*`selfpatch zoo tiny` says where"):
        read_models(write(place, [{"path": "other.pth", "zoo": "tiny"}]))


def test_forms_of_a_list(place):
    """A list alone; paths alone; home and absolute paths; names of the hub stay names."""
    (entry,) = read_models(write(place, "- ours.safetensors"))
    assert entry.path == place / "zoo/ours.safetensors"
    text = f"models:\n  - {place}/zoo/dino.pth\n  - path: timm:vit_tiny_patch16_224\n  - hf:facebook/dino-vits16\n"
    assert [str(e.path) for e in read_models(write(place, text))] == [
        f"{place}/zoo/dino.pth", "timm:vit_tiny_patch16_224", "hf:facebook/dino-vits16",
    ]  # fmt: skip


def test_a_run_stands_for_its_exports(tmp_path):
    entry = Entry(tmp_path, "mine", card={"heads": 3})
    (one,) = entry.at([tmp_path / "step-5.safetensors"])
    assert (one.name, one.path.stem, one.card) == ("mine", "step-5", {"heads": 3})
    names = [e.name for e in entry.at([tmp_path / "step-5.safetensors", tmp_path / "step-9.safetensors"])]
    assert names == ["mine/step-5", "mine/step-9"]
    assert [e.name for e in Entry(tmp_path).at([tmp_path / "a", tmp_path / "b"])] == [None, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a list of checkpoints"),
        ("[]", "must be a list of checkpoints"),
        ("models:", "must be a list of checkpoints"),
        ("models: {a: b}", "must be a list of checkpoints"),
        ("modles: [ours.safetensors]", "unknown modles"),
        ("- path: [", "is not YAML"),
        ("- {path: ours.safetensors, heads: 2, heads: 3}", "line 1: heads is given twice"),
        ("- ours.safetensors\n- 7", "entry 2: 7 is neither a path"),
        ("- name: A", "entry 1 (A): has no path"),
        ("- {path: nowhere.pth, name: A}", "entry 1 (A): no such file or folder"),
        ("- {path: ours.safetensors, name: A, head: 3}", "entry 1 (A): unknown head (did you mean heads?)"),
        ("- {path: ours.safetensors, name: A, task: davis}", "entry 1 (A): unknown task"),
        ("- {path: ours.safetensors, name: 12}", "entry 1: name: 12 is no text"),
        ("- {path: ours.safetensors, name: ''}", "entry 1: name: '' is no text"),
        ("- {path: ours.safetensors, name: \"a\\nb\"}", "is no text"),
        ("- {path: ours.safetensors, name: A, heads: six}", "entry 1 (A): card heads=six"),
        ("- {path: ours.safetensors, name: A, heads: }", "entry 1 (A): card heads=None"),
        ("- {path: ours.safetensors, name: A, card: {mean: [1, 2]}}", "entry 1 (A): card mean="),
        ("- {path: ours.safetensors, name: A, card: {haeds: 3}}", "entry 1 (A): the card has no field haeds"),
        ("- {path: ours.safetensors, name: A, card: 0.5}", "entry 1 (A): card: 0.5 is not a table"),
        ("- {path: ours.safetensors, name: A, heads: 2, card: {heads: 2}}", "entry 1 (A): heads is given twice"),
        ("- {path: ours.safetensors, name: A, row: DINO}", "entry 1 (A): row: DINO is not"),
        ("- {path: ours.safetensors, name: A, zoo: dino_vitz16}", "entry 1 (A): the zoo has no dino_vitz16; like it"),
        ("- {path: ours.safetensors, name: A}\n- {path: dino.pth, name: A}", "entry 2 (A): "),
    ],
)  # fmt: skip
def test_mistakes_of_the_list(place, text, words):
    file = write(place, text)
    with pytest.raises(UserError) as info:
        read_models(file)
    message = str(info.value)
    assert words in message
    assert str(file) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "dino.pth"}, "give --heads N"),
        (BARE | {"format": "swav"}, "as format swav"),
        (BARE | {"format": "swaw"}, "no format called swaw"),
        (DINO | {"name": "other", "heads": 5}, "5 heads (given) do not divide a width of 24"),
        (DINO | {"name": "other", "weights": "nobody"}, "--weights nobody"),
        ({"path": "models.yaml"}, "models.yaml"),
        ({"path": "sub/../ours.safetensors", "name": "DINO"}, "entry 1 (DINO)"),
    ],
)
def test_mistakes_that_only_the_file_shows(place, entry, words):
    """Found before any work, with the entry's name in front."""
    file = write(place, [DINO, entry])
    with pytest.raises(UserError) as info:
        go(place, models=file)
    assert str(info.value).startswith(f"{file}, entry 2")
    assert words in str(info.value)
    assert not (place / "out/records").exists()


def test_names_are_unique_also_where_they_follow_from_the_path(place):
    (place / "zoo/ours.pth").write_bytes((place / "zoo/sub/bare.pth").read_bytes())
    entry = {"path": "ours.pth", "format": "timm", "heads": 3, "mean": 0.5, "std": 0.5}
    with pytest.raises(UserError, match=r"entry 2: .*entry 1 is called zoo/ours as well; give it a name"):
        go(place, models=write(place, ["ours.safetensors", entry]))
    with pytest.raises(UserError, match=r"entry 1: .*ours.safetensors is called zoo/ours as well"):
        go(place, [place / "zoo/ours.safetensors"], models=write(place, [entry]))


def test_the_option_of_run_and_compare(place, capsys):
    """Through the command line, which Slurm's jobs repeat in another folder."""
    file, cli = write(place, [DINO, BARE]), CliRunner()
    rest = ["--task", "toy", "--data", str(place / "data"), "--out", str(place / "out"), "--device", "cpu"]
    for command in ("run", "compare"):
        assert cli.invoke(app, [command, "--models", str(file), *rest]).exit_code == 0
        failed = cli.invoke(app, [command, "--models", str(place / "nowhere.yaml"), *rest])
        assert "nowhere.yaml: no such file" in str(failed.exception)
    assert len(list((place / "out/records/toy").glob("*.json"))) == 2
    assert slurm._absolute(Options(models=Path("m.yaml"))).models == Path("m.yaml").absolute()


def test_no_list(place):
    with pytest.raises(UserError, match=r"--models nowhere.yaml: no such file"):
        read_models(Path("nowhere.yaml"))
    file = write(place, "")
    file.write_bytes(b"\xff\xfe\x00models")
    with pytest.raises(UserError, match="is not YAML"):
        read_models(file)
    file.write_text("[" * 5_000)
    with pytest.raises(UserError, match="is not YAML"):
        read_models(file)
    file.write_text("- a\n" * 1_000_000)
    with pytest.raises(UserError, match="are no list of models"):
        read_models(file)


def test_the_list_of_a_fetch_is_used(place):
    """An entry without heads whose file a list beside it knows by its sha256."""
    from selfpatch_bench.benchmarks.hub.zoo import Public, remember

    path = place / "zoo/dino.pth"
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    remember(path.parent, Public("tiny", facts={"heads": 2, "row": "DINO|ViT-S/16"}), sha, path.stat().st_size)
    found = go(place, models=write(place, ["dino.pth"]))["zoo/dino"].model
    assert (found.card["heads"], found.row, found.facts["heads"], found.overrides) == (
        2, "DINO|ViT-S/16", "zoo", {},
    )  # fmt: skip
