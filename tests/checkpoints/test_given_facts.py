"""Facts that the user gives by hand: held against what the file says and what is usual; where each came from stays
with the weights. Untrained weights are said beside the number."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from format_examples import example_vit, format_example
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.checkpoints.open import look_untrained
from selfpatch_bench.benchmarks.checkpoints.stated import usual_heads
from selfpatch_bench.benchmarks.commands.convert import convert_command
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.results.collect import collect
from selfpatch_bench.benchmarks.run.options import card_fields
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.shapes import vit_card
from selfpatch_bench.pretrain.common.weights import save_weights
from toy import TASK


@pytest.fixture
def dino(tmp_path):
    """A file in DINO's layout, whose format states mean and std, and whose arguments state heads where they are given
    (path, its width)."""
    path, _ = format_example("dino", tmp_path)
    state = torch.load(path, weights_only=False)

    def write(**args) -> Path:
        torch.save({"teacher": state["teacher"], "args": argparse.Namespace(**args)}, path)
        return path

    return write


def test_usual_heads():
    assert [usual_heads(dim) for dim in (32, 64, 192, 384, 768, 1024, 1280, 1536)] == [None, None, 3, 6, 12, 16, 16, 24]
    assert usual_heads(200) is None


def test_two_given_values():
    with pytest.raises(UserError, match="--heads 4 and --card heads=6 contradict each other"):
        Options(heads=4, card=card_fields(["heads=6"]))
    with pytest.raises(UserError, match=r"--card mean=0\.5 and mean=0\.4 contradict each other"):
        card_fields(["mean=0.5", "mean=0.4"])
    assert Options(heads=4, card=card_fields(["heads=4", "heads=4"])).card == {"heads": "4"}


def test_a_given_value_against_the_files(dino):
    path = dino(num_heads=2)
    plain = open_checkpoint(path).warnings
    assert open_checkpoint(path, card={"heads": 2}).warnings == plain
    (added,) = [w for w in open_checkpoint(path, card={"heads": 4}).warnings if w not in plain]
    assert added == "heads=4 is given, but it is 2 by args: num_heads"
    added = [w for w in open_checkpoint(path, card={"mean": 0.5, "std": 0.5}).warnings if w not in plain]
    assert added == [
        "mean=0.5,0.5,0.5 is given, but it is 0.485,0.456,0.406 by format",
        "std=0.5,0.5,0.5 is given, but it is 0.229,0.224,0.225 by format",
    ]
    found = open_checkpoint(path, card={"heads": 4})
    assert found.facts["heads"] == "given"
    assert "heads=4 is given" in found.facts["warnings"]


def test_a_head_count_that_is_not_the_usual_one(dino, monkeypatch):
    path = dino()
    dim = open_checkpoint(path, card={"heads": 2}).card.dim
    assert not any("unusual: heads" in w for w in open_checkpoint(path, card={"heads": 2}).warnings)
    monkeypatch.setattr("selfpatch_bench.benchmarks.checkpoints.open.usual_heads", lambda width: width // 8)
    (warning,) = [w for w in open_checkpoint(path, card={"heads": 2}).warnings if "unusual: heads" in w]
    assert warning == f"unusual: heads=2 is given (usual at a width of {dim}: {dim // 8})"


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", "123.675,116.28,103.53"), ("mean", "-0.1"), ("mean", "1.01"), ("std", "0"), ("std", "58.4"), ("std", -1)],
)
def test_mean_and_std_have_a_range(dino, key, value):
    with pytest.raises(UserError, match=rf"card {key}\[0\]=.*it must be"):
        open_checkpoint(dino(num_heads=2), card={key: value})


def test_where_facts_came_from_travels(dino, tmp_path, capsys):
    out = tmp_path / "y.safetensors"
    first = open_checkpoint(path := dino(num_heads=2), card={"heads": 4, "mean": 0.5, "std": 0.5})
    assert convert_command(path, out, None, {"heads": "4", "mean": "0.5", "std": "0.5"}) == 0
    capsys.readouterr()
    found = open_checkpoint(out)
    assert found.card == first.card
    assert found.facts == first.facts | {"converted": path.name}
    assert found.warnings == first.warnings
    again = tmp_path / "z.safetensors"  # and once more
    assert convert_command(out, again, None, {}) == 0
    assert open_checkpoint(again).warnings == found.warnings


@pytest.mark.parametrize("about", [None, [], {"facts": 3}, {"facts": {"heads": ["x"]}}, {"file": 7}])
def test_damaged_facts_do_no_harm(about, tmp_path):
    card = vit_card({k: tuple(v.shape) for k, v in example_vit().items()}, heads=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    path = tmp_path / "x.safetensors"
    metadata = {"selfpatch_bench": json.dumps({"card": card.as_dict(), "about": about})}
    save_file(example_vit(), path, metadata=metadata)
    found = open_checkpoint(path)
    assert all(isinstance(value, str) for value in found.facts.values())


def test_what_nothing_says_is_assumed(tmp_path, capsys):
    path, given = format_example("timm_swin", tmp_path)
    found = open_checkpoint(path, card=given)
    assert found.assumed == "norm_eps 1e-05 (assumed), sizes padded (assumed)"
    assert "  norm_eps     1e-05  (assumed)\n" in report(path, None, given)
    known = open_checkpoint(path, card={**given, "norm_eps": 1e-6})
    assert (known.assumed, known.facts["norm_eps"]) == ("sizes padded (assumed)", "given")
    assert known.warnings == found.warnings  # it contradicts nothing
    out = tmp_path / "y.safetensors"
    assert convert_command(path, out, None, given) == 0
    capsys.readouterr()
    assert open_checkpoint(out).assumed == found.assumed


# -------------------------------------------------------------------------------------------------- untrained weights
def test_weights_that_are_zero():
    weights = {"blocks.0.mlp.fc1.weight": torch.zeros(4, 4), "blocks.0.mlp.fc2.weight": torch.ones(4, 4)}
    assert look_untrained(weights) == "1 of 2 weight matrices are all 0: blocks.0.mlp.fc1.weight"
    assert "2 of 2 weight matrices are all 0" in look_untrained({k: torch.zeros(4, 4) for k in weights})
    assert look_untrained({k: torch.ones(4, 4) for k in weights}) is None


SCATTERED = "neighbouring positions have nothing in common"


def exported(card, moved, path, **about):
    save_weights(path, moved, card, about)
    return path


def saved(card, moved, path, **more):
    torch.save({"teacher": {f"backbone.{k}": v for k, v in moved.items()}, **more}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


@pytest.mark.parametrize(
    ("write", "said", "doubted"),
    [
        (exported, {}, True),
        (exported, {"step": 80, "epoch": 4}, False),
        (exported, {"step": 0, "epoch": 0}, True),
        (exported, {"step": "80"}, True),
        (saved, {}, True),
        (saved, {"epoch": 0}, True),
        (saved, {"epoch": 2}, False),
        (saved, {"meta": {"iter": 90}}, False),
    ],
)
def test_a_brief_training_is_no_doubt(write, said, doubted, tmp_path):
    """After some steps the positions are still as they were drawn, but the norms have moved: a file that says that it
    was trained is believed, also after `convert`. Norms that have not moved, and matrices of zeros, remain a doubt."""
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    drawn = {k: torch.randn_like(v) if "pos" in k else v for k, v in Encoder(card).vit.state_dict().items()}
    moved = {k: v + 1e-4 * ("norm" in k) for k, v in drawn.items()}
    given = {"format": "dino", "card": {"heads": 2}} if write is saved else {}
    path, out = write(card, moved, tmp_path / "a.safetensors", **said), tmp_path / "b.safetensors"
    assert convert_command(path, out, given.get("format"), given.get("card", {})) == 0
    for file, how in ((path, given), (out, {})):
        found = open_checkpoint(file, **how)
        why = look_untrained(found.reading.weights, found.trained)
        assert (why or "")[: len(SCATTERED)] == SCATTERED * doubted
        assert SCATTERED not in (look_untrained(drawn, found.trained) or "")
    assert look_untrained(drawn, "step 80").startswith("every LayerNorm is still")
    assert "are all 0" in look_untrained({k: 0 * v for k, v in moved.items()}, "step 80")


@pytest.mark.parametrize("zero", [True, False])
def test_untrained_weights_are_said_beside_the_number(zero, tmp_path, monkeypatch, capsys):
    (tmp_path / "plug/tasks").mkdir(parents=True)
    (tmp_path / "plug/tasks/toy.py").write_text(TASK)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    card = Card("vit", 8, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    weights = {k: v * (not zero) for k, v in Encoder(card).vit.state_dict().items()}
    save_weights(tmp_path / "a.safetensors", weights, card)
    options = Options(data=[str(tmp_path / "data")], out=tmp_path / "out", device="cpu")
    jobs = plan([tmp_path / "a.safetensors"], ["toy"], options)
    assert run(jobs, options, Console(width=1000)) == 0
    (found,) = record.records(tmp_path / "out")
    (doubt,) = found.doubts
    assert doubt.startswith("the weights look untrained: ")
    assert ("weight matrices are all 0" in doubt) == zero
    (line,) = [line for line in capsys.readouterr().out.splitlines() if f"; {doubt}" in line]
    assert "toy" in line
    assert doubt in collect([found])[0].differs  # never above the rule of a table
