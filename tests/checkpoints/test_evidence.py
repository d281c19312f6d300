"""`inspect` names what spoke for the format of a file; README's table of formats is that of the plug-ins."""

import pytest
import torch

from format_examples import example_vit
from golden.readme import README, renewed
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints.evidence import evidence
from selfpatch_bench.benchmarks.commands.inspect import report

VIT = {k: tuple(v.shape) for k, v in example_vit().items()}


def below(prefix: str) -> dict:
    return {prefix + k: v for k, v in VIT.items()}


@pytest.mark.parametrize(
    ("format", "shapes", "meta", "words"),
    [
        (
            "dino",
            below("teacher.backbone.") | {"dino_loss.center": (1, 9)},
            {},
            "dino_loss.center (only its code base ",
        ),
        (
            "dino",
            below("teacher.") | {"teacher.head.mlp.0.weight": (3, 3)},
            {},
            "teacher.head.mlp.0.weight (parts that",
        ),
        ("dino", below("x."), {}, f"{len(VIT)} names below x., "),
        ("dino", VIT, {}, "cls_token, "),
        (
            "mae",
            VIT | {"decoder_pos_embed": (1, 5, 8)},
            {},
            "decoder_pos_embed (only its code base writes that, and its",
        ),
        ("timm", VIT, {"config.json": {"pretrained_cfg": {}}}, "config.json: pretrained_cfg, config.json (only its"),
        ("timm", {"a": (1,)}, {}, ""),
    ],
)
def test_what_spoke_for_a_format(format, shapes, meta, words):
    text = evidence(FORMATS.get(format).module, shapes, meta)
    assert text.startswith(words)
    assert bool(text) == bool(words)


def test_inspect_names_it(tmp_path):
    torch.save({"teacher": {f"backbone.{k}": v for k, v in example_vit().items()}}, path := tmp_path / "x.pth")
    lines = report(path, "dino", {}).splitlines()
    assert lines[1] == "format       dino (given)"
    assert lines[2].startswith("evidence     ")


def test_readme_s_table_is_that_of_the_plugins():
    """`python tests/golden/readme.py` writes it."""
    text = README.read_text(encoding="utf-8")
    assert renewed(text) == text
