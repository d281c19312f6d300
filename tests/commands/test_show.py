"""`selfpatch show`: what it prints is the recipe that a run takes, and the numbers below are those of the run."""

import pytest

import warm
from selfpatch_bench.benchmarks.cli.app import app
from selfpatch_bench.benchmarks.commands.show import networks, section, show
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe, to_dict
from selfpatch_bench.pretrain.options import comments
from selfpatch_bench.pretrain.recipes import RECIPES
from selfpatch_bench.pretrain.step import Learner

SMALL = [
    *("network.backbone=vit_tiny_patch16", "loop.batch=8", "loop.epochs=3", "schedule.warmup_epochs=1.5"),
    *(f"objectives.{name}.{option}" for name in ("dino", "selfpatch") for option in ("outputs=64", "hidden=32")),
]


@pytest.mark.parametrize("name", RECIPES.scan())
def test_what_is_printed_is_read_back(name, tmp_path):
    """As a recipe of its own, with the changes made."""
    config = load_recipe(name, ["loop.batch=64"])
    (tmp_path / "again.yaml").write_text("\n".join(section(config, "")))
    again = to_dict(load_recipe(str(tmp_path / "again.yaml")))
    assert again == to_dict(config)
    assert again["loop"]["batch"] == 64


def test_options_have_their_comments_and_the_numbers_are_those_of_a_run():
    text = show("selfpatch", SMALL, images=100)
    for section_of in (load_recipe("selfpatch").loop, load_recipe("selfpatch").views.rows[0]):
        words = " ".join(text.replace("#", " ").split())
        known = comments(type(section_of))
        assert known
        assert all(" ".join(note.replace("#", " ").split()) in words for note in known.values())
    facts = {line[2:16].strip(): line[16:] for line in text.splitlines()[-6:]}
    assert facts["steps"] == "36, 12 an epoch of 100 images"
    assert facts["warm-up"] == "1.5 epochs, 18 steps"
    assert (facts["global views"], facts["local views"]) == ("2 of 224 pixels", "8 of 96 pixels")
    assert facts["images a step"] == "8, as 80 views"
    config = load_recipe("selfpatch", SMALL)
    trained = sum(p.numel() for _, p in Learner(config).trained()) / 1e6
    assert facts["parameters"].startswith(f"{trained:.2f} M are trained: backbone ")
    assert networks(config)["parameters"] == facts["parameters"]
    assert "--images N says" in show("selfpatch", SMALL).splitlines()[-6]


def test_mistakes_are_said_in_one_line(tmp_path):
    for overrides, more, words in (
        (["loop.bach=8"], {}, "loop.bach"),
        (SMALL, {"images": 7}, "7 images are fewer than one batch: loop.batch=8"),
        (SMALL, {"images": 9, "data": str(tmp_path)}, "--images"),
        ([*SMALL, "loop.epochs=1"], {}, "schedule.warmup_epochs=1.5: more than loop.epochs=1"),
        ([*SMALL, "loop.steps=17"], {"images": 100}, "warm-up of 18 steps does not fit a run of 17"),
        (SMALL, {"data": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(UserError, match=words):
            show("selfpatch", overrides, **more)


def test_the_command_prints_it():
    assert "show" in [command.name for command in app.registered_commands]
    done = warm.run("show", "dino", "--images", "64", *SMALL[:5])
    assert done.returncode == 0, done.stderr
    assert "backbone: vit_tiny_patch16\n" in done.stdout
    assert done.stdout.splitlines()[-6] == "# steps         24, 8 an epoch of 64 images"
