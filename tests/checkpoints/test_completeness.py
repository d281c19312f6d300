"""A lost part of a network is noticed: by its code base, the file's own words, its other networks, its size."""

import argparse
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from format_examples import example_vit, format_example
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints.completeness import unusual
from selfpatch_bench.benchmarks.checkpoints.state import read_file
from selfpatch_bench.benchmarks.checkpoints.stated import stated
from selfpatch_bench.benchmarks.commands.convert import convert_command
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.card import Card

BLOCK = re.compile(r"((?:^|.*\.)(?:blocks|layers?|layer\d|res\d)\.)(\d+)(\..*)")


def example(name: str, folder: Path) -> tuple[Path, dict, dict, dict]:
    """A format's example: (path, card overrides, its tensors by full name, the rest)"""
    torch.manual_seed(0)
    path, card = format_example(name, folder)
    state, meta = read_file(path)
    return path, card, {k: state[k].clone() for k in state}, meta


def save(path: Path, tensors: dict, meta: dict) -> Path:
    torch.save({k: v for k, v in meta.items() if not k.endswith(".json")} | tensors, path)
    return path


def without_block(tensors: dict, inside: set[str], first: bool = False) -> dict:
    """Without the last block of every list of more than one, among the names `inside`; or the first, renumbered."""
    found = {k: m for k in inside if (m := BLOCK.match(k))}
    numbers = {stage: {int(m[2]) for m in found.values() if m[1] == stage} for stage in {m[1] for m in found.values()}}
    gone = {stage: 0 if first else max(n) for stage, n in numbers.items() if len(n) > 1}
    out = {}
    for key, value in tensors.items():
        stage, number = (found[key][1], int(found[key][2])) if key in found else (None, 0)
        if stage in gone and number == gone[stage]:
            continue
        out[f"{stage}{number - 1}{found[key][3]}" if stage in gone and first else key] = value
    return out


TWINS = {  # format -> (network that is evaluated, another of the file)
    **dict.fromkeys(("dino", "ibot", "sere", "pwself", "dino_resnet50"), ("teacher.backbone", "student.backbone")),
    "selfpatch": ("teacher", "student"),
    "mocov2": ("state_dict.encoder_q", "state_dict.encoder_k"),
    "mocov3": ("state_dict.base_encoder", "state_dict.momentum_encoder"),
    "moby": ("model.encoder", "model.encoder_k"),
    "vissl": ("loss.momentum_teacher.trunk", "classy_state_dict.base_model.model.trunk"),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_a_block_that_another_network_of_the_file_has(name, first, tmp_path):
    """Refused, with both networks and what differs; if the other network lost it, that is only said."""
    path, card, tensors, meta = example(name, tmp_path)
    mine, other = TWINS[name]
    inside = {k for k in tensors if k.startswith(f"{mine}.")}
    torn = save(tmp_path / "torn.pth", without_block(tensors, inside, first), meta)
    with pytest.raises(UserError, match="part of the network was lost") as error:
        open_checkpoint(torn, format=name, card=card)
    text = str(error.value)
    assert f"{mine} has " in text
    assert other.removesuffix(".backbone") in text
    inside = {k for k in tensors if k.startswith(f"{other}.")}
    torn = save(tmp_path / "other.pth", without_block(tensors, inside, first), meta)
    checkpoint = open_checkpoint(torn, format=name, card=card)
    assert checkpoint.fingerprint == open_checkpoint(path, card=card).fingerprint
    assert any(other in w and "lost" in w for w in checkpoint.warnings), checkpoint.warnings


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_the_network_that_was_asked_for_is_held_against_the_other(weights, tmp_path):
    _, card, tensors, meta = example("dino", tmp_path)
    torn = without_block(tensors, {k for k in tensors if k.startswith(f"{weights}.")})
    path = save(tmp_path / "x.pth", torn, meta)
    with pytest.raises(UserError, match=rf"its {weights}\.backbone has depth=1, its \w+\.backbone depth=2"):
        open_checkpoint(path, card=card, weights=weights)
    whole = "student" if weights == "teacher" else "teacher"
    assert open_checkpoint(path, card=card, weights=whole).card.depth == 2
    given = open_checkpoint(path, card=card | {"depth": 1}, weights=weights)
    assert given.warnings[0].startswith(f"accepted as given: its {weights}.backbone has depth=1")


def test_other_parts_that_only_one_network_has(tmp_path):
    """Positions of another grid, class attention; what only the student has by design is no loss."""
    _, card, tensors, meta = example("selfpatch", tmp_path)
    lost = {k: v for k, v in tensors.items() if not k.startswith("teacher.ca_head.")}
    with pytest.raises(UserError, match="has no ca_head, which gives the image vector"):
        open_checkpoint(save(tmp_path / "a.pth", lost, meta), card=card)
    lost = {k: v for k, v in lost.items() if not re.match(r"teacher\.[cp]_head", k)}
    with pytest.raises(
        UserError, match=r"teacher\.backbone has readout=mean, its student\.backbone readout=class_attention"
    ):
        open_checkpoint(save(tmp_path / "a.pth", lost, meta), card=card)
    _, card, tensors, meta = example("ibot", tmp_path)  # whose student alone has the token of masked patches
    assert open_checkpoint(save(tmp_path / "b.pth", tensors, meta), card=card).card.depth == 2
    tensors["teacher.backbone.pos_embed"] = tensors["teacher.backbone.pos_embed"][:, :10]
    with pytest.raises(UserError, match=r"has pos=learned 3x3, its student\.backbone pos=learned 4x4"):
        open_checkpoint(save(tmp_path / "b.pth", tensors, meta), card=card)


def test_the_average_beside_a_timm_checkpoint(tmp_path):
    """A network that the format drops by its prefix and never names: found by its stem."""
    vit = example_vit()
    tree = {"arch": "vit_x", "epoch": 3, "state_dict": without_block(vit, set(vit)), "state_dict_ema": vit}
    torch.save(tree, tmp_path / "x.pth.tar")
    with pytest.raises(UserError, match=r"its state_dict has depth=1, its state_dict_ema depth=2"):
        open_checkpoint(tmp_path / "x.pth.tar", card={"heads": 2})


def test_another_network_of_another_width_is_no_measure(tmp_path):
    """A student that is smaller than its teacher, as in distillation."""
    teacher = Encoder(Card("vit", 8, 48, 3, 2, pos="learned 4x4")).vit.state_dict()
    tree = {"teacher": {f"backbone.{k}": v for k, v in example_vit().items()}}
    tree["student"] = {f"backbone.{k}": v for k, v in teacher.items()}
    torch.save(tree, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth", format="dino", card={"heads": 2})
    assert (checkpoint.card.depth, len(checkpoint.warnings)) == (2, 1)


# -- families of tensors

# Nothing in these files shows that the network once had them, or the part that is left is the same network.
UNKNOWABLE = {("dinov2", "register_tokens"), ("hf_dinov2", "embeddings.register_tokens")}
UNKNOWABLE |= {("dinov3", "blocks.#.attn.qkv.bias_mask")}  # the keys' biases, which are not trained
UNKNOWABLE |= {("vissl", "loss.momentum_teacher.trunk.patch_embed.proj.weight")}  # the teacher is there twice


@pytest.mark.parametrize("name", list(FORMATS.scan()))
def test_no_family_of_tensors_is_lost_in_silence(name, tmp_path):
    """Biases, norms, scales, tokens of all blocks at once: refused, or said. The families are the files' own."""
    if name == "selfpatch_bench":
        pytest.skip("its card is its own")
    path, card, tensors, meta = example(name, tmp_path)
    whole = open_checkpoint(path, card=card)
    families: dict[str, list] = {}
    for key in sorted(tensors.keys() - whole.reading.dropped.keys()):
        if tensors[key].dim() != 2:  # matrices are missed by their shapes anyway, and are many
            families.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    torn = (path if path.is_dir() else tmp_path) / "torn.pth"
    silent = []
    for family, keys in families.items():
        save(torn, {k: v for k, v in tensors.items() if k not in keys}, meta)
        try:
            found = open_checkpoint(torn, card=card)
        except UserError:
            continue
        silent += [] if set(found.warnings) - set(whole.warnings) else [family]
    assert {(name, family) for family in silent} <= UNKNOWABLE


@pytest.mark.parametrize("prefix", ["teacher.backbone.", ""])
def test_biases_that_a_code_base_always_has(prefix, tmp_path):
    """DINO's are refused, unless given; bare names that DINO cannot have written are timm's, with a warning."""
    vit = {k: v for k, v in example_vit().items() if not k.endswith("qkv.bias")}
    torch.save({prefix + k: v for k, v in vit.items()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"as format dino: .* always have qkv_bias=True.*--card qkv_bias=False"):
        open_checkpoint(tmp_path / "x.pth", format="dino")
    given = open_checkpoint(tmp_path / "x.pth", format="dino", card={"qkv_bias": "false"})
    assert any("accepted as given" in w and "qkv_bias" in w for w in given.warnings)
    if not prefix:
        timm = open_checkpoint(tmp_path / "x.pth")
        assert timm.reading.format == "timm"
        assert any("unusual: qkv_bias=False" in w for w in timm.warnings)
        with pytest.raises(UserError, match=r"missing: blocks\.0\.attn\.qkv\.bias"):
            open_checkpoint(tmp_path / "x.pth", format="timm", card={"qkv_bias": True})


def exchange(tensors: dict, network: str) -> dict:
    """With the first two blocks of a list of them in each other's place."""
    stage = "layers.1.blocks" if f"{network}.layers.1.blocks.1.norm1.bias" in tensors else "blocks"
    first, second = (f"{network}.{stage}.{i}." for i in (0, 1))
    if not any(k.startswith(first) for k in tensors):
        first, second = (f"{network}.backbone.{stage}.{i}." for i in (0, 1))
    pairs = [(k, second + k.removeprefix(first)) for k in tensors if k.startswith(first)]
    pairs = [(a, b) for a, b in pairs if b in tensors]
    assert pairs
    return tensors | {a: tensors[b] for a, b in pairs} | {b: tensors[a] for a, b in pairs}


@pytest.mark.parametrize("name", ["dino", "selfpatch", "mocov3", "moby"])
def test_blocks_exchanged_in_one_of_two_networks_of_a_file(name, tmp_path):
    """Said, where the other network is near, as an average and its original are; exchanged in both, nobody can know."""
    _, card, tensors, meta = example(name, tmp_path)
    mine, other = TWINS[name]
    for key in [k for k in tensors if k.startswith(f"{mine}.")]:
        tensors[other + key.removeprefix(mine)] = tensors[key].clone()
    once = exchange(tensors, mine)
    for tree, said in ((tensors, False), (once, True), (exchange(once, other), False)):
        found = open_checkpoint(save(tmp_path / "x.pth", tree, meta), format=name, card=card)
        assert any("blocks were exchanged?" in text for text in found.warnings) == said, found.warnings


# -- what a file says of itself


def narrow(depth: int, **more) -> dict:
    """A ViT as wide as ViT-Ti, and otherwise small."""
    return dict(Encoder(Card("vit", 16, 192, depth, 3, pos="learned 14x14", mlp_ratio=4.0, **more)).vit.state_dict())


@pytest.mark.parametrize(
    ("tree", "format", "said"),
    [
        ({"args": argparse.Namespace(arch="vit_tiny")}, "dino", "args: arch vit_tiny"),
        ({"args": {"model": "deit_tiny_patch16_224"}}, "dino", "args: arch deit_tiny_patch16_224"),
        ({"arch": "vit_tiny_patch16_224"}, "dino", "the file: arch vit_tiny_patch16_224"),
    ],
)
def test_blocks_by_the_architectures_name(tree, format, said, tmp_path):
    path = tmp_path / "x.pth"
    for depth in (12, 11, 13):
        torch.save(tree | {"teacher": {f"backbone.{k}": v for k, v in narrow(depth).items()}}, path)
        if depth == 12:
            assert not open_checkpoint(path, format=format).warnings
            continue
        with pytest.raises(UserError, match=f"{said} means depth=12, the weights have depth={depth}"):
            open_checkpoint(path, format=format)
        assert len(open_checkpoint(path, format=format, card={"depth": depth}).warnings) == 2
        with pytest.raises(UserError, match=f"its card has depth=12, its tensors are of {depth} blocks"):
            open_checkpoint(path, format=format, card={"depth": 12})
    small = {f"backbone.{k}": v for k, v in example_vit().items()}
    torch.save(tree | {"teacher": small}, path)  # a name counts only if its width is that of the weights
    assert len(open_checkpoint(path, format=format).warnings) == 1


def test_configs_beside_the_file(tmp_path):
    """transformers' (blocks, biases, registers, positions) and timm's (`model_args`, which goes before the name)."""
    path, _, _, _ = example("hf_vit", tmp_path)
    config = json.loads((path / "config.json").read_text())
    truth = {"hidden_size": 24, "num_hidden_layers": 2, "qkv_bias": True, "image_size": 32, "patch_size": 8}
    whole = open_checkpoint(path)
    for key, value, words in (
        ("num_hidden_layers", 3, "num_hidden_layers 3 means depth=3, the weights have depth=2"),
        ("qkv_bias", False, "qkv_bias False means qkv_bias=False, the weights have qkv_bias=True"),
        ("image_size", 48, "image_size 48 means pos=learned 6x6, the weights have pos=learned 4x4"),
        ("num_register_tokens", 4, "num_register_tokens 4 means registers=4, the weights have registers=0"),
    ):
        (path / "config.json").write_text(json.dumps(config | truth))
        assert open_checkpoint(path).warnings == whole.warnings
        (path / "config.json").write_text(json.dumps(config | truth | {key: value}))
        with pytest.raises(UserError, match=words):
            open_checkpoint(path)
        (path / "config.json").write_text(json.dumps(config | truth | {key: value, "hidden_size": 25}))
        open_checkpoint(path)  # of another network
    args = {"embed_dim": 192, "depth": 11}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": args, "num_heads": 3}
    torch.save(narrow(11), tmp_path / "x.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert [w for w in open_checkpoint(tmp_path / "x.pth").warnings if "unusual" not in w] == []
    config["model_args"]["depth"] = 12
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="model_args: depth 12 means depth=12"):
        open_checkpoint(tmp_path / "x.pth")


def resnet(blocks: tuple, width: int = 256, block: str = "bottleneck, stride on the 3x3") -> Card:
    widths = tuple(width << i for i in range(4))
    return Card("resnet", block=block, blocks=blocks, stem_channels=64, widths=widths, bn_eps=1e-5)


def swin(depths: tuple, dim: int = 96) -> Card:
    heads = tuple(3 << i for i in range(len(depths)))
    facts = {"patch_norm": True, "absolute_pos": False, "sizes": "padded", "class_token": False}
    return Card("swin", patch=4, window=7, dim=dim, depths=depths, heads=heads, **facts)


@pytest.mark.parametrize(
    ("arch", "card", "wanted"),
    [
        ("resnet50", resnet((3, 4, 5, 3)), (3, 4, 6, 3)),
        ("wide_resnet50_2", resnet((3, 4, 5, 3)), (3, 4, 6, 3)),
        ("resnext101_32x8d", resnet((3, 4, 22, 3)), (3, 4, 23, 3)),
        ("resnet18", resnet((2, 2, 2, 1), 64, "basic"), (2, 2, 2, 2)),
        ("resnet50", resnet((3, 4, 5, 3), 512), None),  # SwAV's twice as wide
        ("resnet50", resnet((3, 4, 5, 3), 64, "basic"), None),
        ("resnetv2_50", resnet((3, 4, 5, 3)), None),
        ("swin_tiny", swin((2, 2, 5, 2)), (2, 2, 6, 2)),
        ("swin_base_patch4_window7_224", swin((2, 2, 17, 2), 128), (2, 2, 18, 2)),
        ("swin_base", swin((2, 2, 17, 2)), None),
        ("vit_large_patch16", Card("vit", 16, 1024, 23), 24),
        ("mae_vit_huge_patch14", Card("vit", 14, 1280, 31), 32),
        ("vit_small_patch16_36x1_224", Card("vit", 16, 384, 36), None),
        ("vit_small_patch16_18x2_224", Card("vit", 16, 384, 18), None),
        ("xcit_small", Card("vit", 16, 384, 12), None),
    ],
)
def test_names_of_architectures(arch, card, wanted):
    assert [value for _, _, value in stated({"args": {"arch": arch}}, card)] == ([] if wanted is None else [wanted])


def test_the_configuration_in_a_swins_file():
    sizes = {"EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2], "QKV_BIAS": True, "PATCH_NORM": True}
    found = {key: value for _, key, value in stated({"config": {"MODEL": {"SWIN": sizes}}}, swin((2, 2, 5, 2)))}
    assert found == {"depths": (2, 2, 6, 2), "qkv_bias": True, "patch_norm": True}
    assert not list(stated({"config": {"MODEL": {"SWIN": sizes | {"EMBED_DIM": 128}}}}, swin((2, 2, 5, 2))))


# -- what is unusual


def vit(dim: int, depth: int, patch: int = 16, side: int = 224) -> Card:
    return Card("vit", patch, dim, depth, pos=f"learned {side // patch}x{side // patch}")


USUAL = [vit(192, 12), vit(384, 12, 8), vit(768, 12, 16, 384), vit(1024, 24, 14, 518), vit(1280, 32, 14)]
USUAL += [vit(1536, 40, 14, 518), vit(1152, 27, 14, 378), vit(512, 12), vit(48, 12), vit(4096, 40), vit(192, 12, 4, 32)]
USUAL += [Card("vit", 16, 4096, 40, pos="rotary"), resnet((3, 4, 6, 3)), resnet((3, 4, 6, 3), 512)]
USUAL += [resnet((3, 4, 23, 3)), resnet((3, 8, 36, 3)), resnet((2, 2, 2, 2), 64, "basic"), resnet((3, 24, 36, 3))]
USUAL += [resnet((3, 4, 6, 3), 64, "basic"), swin((2, 2, 6, 2)), swin((2, 2, 18, 2)), swin((2, 2, 18, 2), 128)]


@pytest.mark.parametrize("card", USUAL)
def test_usual_networks_are_not_remarked(card):
    assert unusual(card) == []


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (vit(384, 11), r"unusual: depth 11 \(usual at a width of 384: 12"),
        (vit(1024, 12), r"unusual: depth 12 \(usual at a width of 1024: 24\)"),  # half of it
        (vit(768, 24), "depth 24"),
        (vit(100, 2), r"depth 2 \(usual at a width of 100: 12, 24, 32, 40\)"),
        (vit(384, 12, 16, 208), "positions of a 13x13 grid, which is that of 208x208 images"),
        (resnet((3, 4, 5, 3)), "blocks 3/4/5/3"),
        (resnet((3, 4, 23, 3), 64, "basic"), "blocks 3/4/23/3"),
        (swin((2, 2, 5, 2)), "depths 2/2/5/2"),
        (swin((2, 2, 6)), "depths 2/2/6"),
    ],
)
def test_unusual_networks_are(card, words):
    (text,) = unusual(card)
    assert re.search(words, text)


@pytest.mark.shared
def test_networks_of_the_real_files_are_usual(shared):
    files = sorted((shared / "checkpoints/layouts").glob("*.json"))
    assert files
    for file in files:
        arch = json.loads(file.read_text())["arch"]
        fields = {
            k: tuple(v) if isinstance(v, list) else v for k, v in arch.items() if k not in ("pos_resize", "sizes")
        }
        found = unusual(Card(**fields | ({"sizes": "padded"} if arch["family"] == "swin" else {})))
        assert found == [], file


def test_it_is_said_by_inspect_convert_run_and_the_record(tmp_path, capsys):
    path, card, _, _ = example("dino", tmp_path)
    text = "unusual: depth 2 (usual at a width of 24: 12, 24, 32, 40)"
    assert f"warning: {text}\n" in report(path, None, card) + "\n"
    convert_command(path, tmp_path / "x.safetensors", None, card)
    assert f"warning: {text}\n" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="unusual: depth 2"):
        load(path, **card)
    videos = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(72, 96), objects=1)
    values = ["size=32", "multiple=8", "context=1"]
    options = Options(data=[str(videos)], out=tmp_path / "out", card=card, overrides=values, device="cpu")
    jobs = plan([path], ["davis"], options)
    assert run(jobs, options, Console(file=sys.stdout, width=200)) == 0
    assert f"warning: {text}\n" in capsys.readouterr().out
    found = record.read(record.done(options.out, "davis", jobs[0].key)[-1])
    assert found.model.facts["warnings"] == text
