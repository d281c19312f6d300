"""Every format's own example, found by scanning, in every task: k-NN, linear probes, DAVIS, mm's backbones."""

import functools
import gc
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import test_conv
import test_formats_vit
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from conftest import SHARED, shared_cases
from format_examples import conv, format_example
from mm_building import CARDS, CONFIGS, build, configured, mm
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.backbones.build import encoder_for
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints import open as loading
from selfpatch_bench.benchmarks.cli.app import app
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.mm.recipe import check_family, read
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.models import Entry
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.tasks._features import Crop, image_vector
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights

NAMES = [name for name in FORMATS.scan() if name not in conv.SAME_NETWORK]
FLOAT32 = 1e-5  # max|a-b| / max|b|: the same sums in batches of another size
SIDE = 48  # pixels that the network sees: the examples' stored grids are of 32, so that positions are resized


@dataclass(frozen=True)
class Example:
    """A format's tiny file, and what the loader makes of it."""

    name: str
    entry: Entry
    checkpoint: loading.Checkpoint

    @property
    def card(self) -> Card:
        return self.checkpoint.card


@pytest.fixture(scope="module", autouse=True)
def _imported_modules_are_no_garbage():
    """The runner collects garbage after each of the many jobs here, which would look at every imported module."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def is_own_size(card: Card) -> bool:
    """Does the code that wrote a Swin take SIDE x SIDE pictures? The official one: whole windows of the last stage."""
    stride = card.patch << len(card.depths) - 1
    own = {"padded": SIDE % (card.window * stride) == 0, "padded_own": -(-SIDE // stride) >= card.window}
    return own.get(card.sizes, card.sizes == "padded_axes" and SIDE % card.patch == 0)


@pytest.fixture(scope="module")
def example_of(tmp_path_factory):
    """name of a format -> its Example, made once."""

    @functools.cache
    def made(name: str) -> Example:
        torch.manual_seed(0)
        path, facts = format_example(name, tmp_path_factory.mktemp(name))
        entry = Entry(path, name=name, format=name, card=facts)
        return Example(name, entry, open_checkpoint(path, format=name, card=facts))

    return made


def records(examples, tasks, data, out, *values) -> dict[tuple[str, str], record.Record]:
    """(format, task) -> its record."""
    options = Options(data=[str(data)], out=out, device="cpu", overrides=list(values))
    jobs = plan([e.entry for e in examples], tasks, options)
    assert run(jobs, options, Console(quiet=True)) == 0, [p.read_text() for p in out.glob("records/*/*failed*")]
    return {(job.model.name, job.task.name): record.read(record.done(out, job.task.name, job.key)[-1]) for job in jobs}


def check_model(found: record.Record, example: Example) -> None:
    """What every record says of the network: whose file, which tensors, all of them."""
    model, reading = found.model, example.checkpoint.reading
    assert (found.status, model.format) == ("done", example.name)
    assert model.fingerprint == example.checkpoint.fingerprint
    assert model.card == example.card.as_dict()
    [(loaded, needed, dropped)] = re.findall(r"^(\d+)/(\d+) tensors, .* 0 missing, (\d+) dropped", model.accounting)
    assert int(loaded) == int(needed) == len(reading.weights)
    assert int(dropped) == len(reading.dropped)


# --- k-NN and linear probes


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Two classes of 32 px pictures, 3 + 2 of each."""
    root, noise = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name, colour in (("blue", (40, 60, 190)), ("red", (200, 50, 40))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(noise.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


ASSUMED = {"stored": "dino (assumed)", "window": "bilinear (assumed)"}  # rules that know the stored grid only


def rule_of(card: Card) -> tuple[str, str]:
    """How a SIDE x SIDE picture is taken: the entry of the record, from the card alone."""
    if card.family in ("resnet", "convnext", "swinv2"):
        return "size_rule", "any"
    if card.family == "xcit":
        return "pos_rule", "computed"
    if card.family == "swin":  # the official code takes whole windows at the last stage only
        whole = is_own_size(card)
        return "size_rule", "official" if whole else f"{card.sizes} (assumed)"
    if card.family == "eva":
        return "pos_rule", card.pos_resize
    same = card.grid == SIDE // card.patch
    return "pos_rule", card.pos_resize if same else ASSUMED.get(card.pos_resize, card.pos_resize)


@pytest.mark.parametrize("name", NAMES)
def test_knn_and_linear(name, example_of, classes, tmp_path, monkeypatch):
    """Three tasks on ten pictures: what they saw, finite features of the network's width, whole records."""
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))
    example = example_of(name)
    card, joined = example.card, example.card.family == "vit" and example.card.class_token
    blocks = min(2, card.depth or 0)
    values = [f"resize={SIDE}", f"crop={SIDE}", "k=3", "other_k=[1]", "epochs=1", "batch=4", "rates=[0.01,0.1]"]
    values += [f"blocks={blocks}"] if joined else []  # 4 by default, which an example need not have
    found = records([example], ["knn", "linear", "linear_sweep"], classes, tmp_path / "out", *values)
    ids = {"knn": "knn-dino-v1", "linear": "linear-dino-v1", "linear_sweep": "linear-sweep-v1"}
    for (_, task), one in found.items():
        check_model(one, example)
        effective = dict(one.protocol.effective)
        rule, value = rule_of(card)
        assert effective.pop(rule) == value
        assert (effective.pop("mean"), effective.pop("std")) == (list(card.mean), list(card.std))
        assert all(0 <= one.metrics[key] <= 100 for key in ("top1", "top5"))
        assert one.parts["images"] == 4
        assert set(one.parts["classes"]) == {"blue", "red"}
        if task == "knn" or not joined:
            assert effective.pop("readout") == card.readout or task == "linear_sweep"
        if task != "knn":
            plural = f"class tokens of {blocks} blocks"
            assert effective.pop("features") == (plural if joined else "image vector")
        assert not effective.keys() - {"lr"}
        image = task == "linear" and not joined
        assert one.protocol.id == ("linear-image-v1" if image else ids[task])
    probe = torch.load(next((tmp_path / "out/artifacts/linear").glob("*/probe.pt")), weights_only=True)
    assert probe["weight"].isfinite().all()
    assert probe["weight"].any()  # one epoch at a rate above 0
    check_features(example, classes, tmp_path / "cache", blocks if joined else 0)


def check_features(example: Example, classes: Path, cache: Path, blocks: int) -> None:
    """The features that were kept: image vectors for k-NN as the encoder gives them, and joined class tokens."""
    encoder, data, crop = loading.build(example.checkpoint), open_classes(classes), Crop(SIDE, SIDE)
    kept = [np.load(file) for file in cache.glob("features/*/*.npy")]
    assert len(kept) == (4 if blocks else 2)  # without class tokens all tasks share the image vectors
    width = set()
    for split in (data.train, data.val):
        images = torch.from_numpy(np.stack([crop(split.read(i)) for i in range(len(split))])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            wanted = image_vector(encoder, encoder.normalise(images)).numpy()
        width.add(wanted.shape[1])
        assert np.ptp(wanted, 0).max() > 0  # the pictures make a difference
        alike = [x for x in kept if x.shape == wanted.shape]
        assert any(np.abs(x - wanted).max() < FLOAT32 * np.abs(wanted).max() for x in alike)
    [dim] = width
    assert sorted(x.shape for x in kept) == sorted((n, d) for n in (6, 4) for d in {dim, dim * (blocks or 1)})
    assert all(np.isfinite(x).all() for x in kept)


# --- DAVIS


def cases(test) -> set[str]:
    """The formats that a test of another file is parametrized with."""
    [mark] = [m for m in test.pytestmark if m.name == "parametrize"]
    return set(mark.args[1])


DAVIS = {True: cases(test_formats_vit.test_davis_runs_on_every_vit_format), False: cases(test_conv.test_davis)}


def test_davis_on_the_formats_that_no_other_file_runs(example_of, tmp_path):
    """With those of test_formats_vit.py (ViTs) and test_conv.py, every format has been through the whole task."""
    everything = [example_of(name) for name in NAMES]
    rest = [e for e in everything if e.name not in DAVIS[e.card.family == "vit"]]
    assert len(rest) < len(everything) / 2, "most formats are tested elsewhere: have the tests there been renamed?"
    if not rest:
        return
    videos = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(72, 96), objects=1)
    for example in rest:  # each into its own folder: examples may hold the same network, which would be done already
        out, card = tmp_path / example.name, example.card
        [one] = records([example], ["davis"], videos, out, "size=96", "multiple=32", "context=1").values()
        check_model(one, example)
        assert 0 <= one.metrics["JF_m"] <= 100
        effective = one.protocol.effective
        if card.family == "vit":
            assert effective["map"] == f"block {card.depth - 1} of {card.depth}"
            assumed = ASSUMED | {"square": "dino (assumed)"}  # the picture is 96 x 128
            assert effective["pos_rule"] == assumed.get(card.pos_resize, card.pos_resize)
        else:
            stage = {"swin": "stage3", "resnet": "layer3"}[card.family]
            assert effective["map"].startswith(f"{stage}, stride ")
            assert one.protocol.id.startswith(f"davis2017-dino-v1-{stage}")


# --- the backbones of COCO and ADE20K

RECIPES = {
    "vit": ("coco_maskrcnn_1x", "ade20k_semfpn_40k"),
    "swin": ("coco_maskrcnn_swin_1x", "ade20k_upernet_swin_160k"),
    "resnet": ("coco_maskrcnn_r50_1x", "ade20k_semfpn_r50_40k"),
}
UNUSED = ("norm.", "fc_norm.", "readout.")  # after the last map


def refusal(card: Card, rescale: bool) -> str | None:
    """Why mm has no backbone for such a network, or None."""
    if card.family == "swin" and len(card.depths) != 4:
        return f"a Swin of {len(card.depths)} stages: the heads take four maps"
    if card.family == "vit" and rescale and card.patch not in (8, 14, 16):
        return f"patches of 8, 14 and 16 pixels, not {card.patch}"
    return None


def sizes(card: Card, rescale: bool, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of the four maps of a picture."""
    if card.family != "vit":
        first = card.patch if card.family == "swin" else 4
        return [tuple(math.ceil(side / (first << i)) for side in size) for i in range(4)]
    tokens = [math.ceil(side / card.patch) for side in size]
    factors = ((2, 1, 0.5, 0.25) if card.patch == 8 else (4, 2, 1, 0.5)) if rescale else (1,) * 4
    return [tuple(int(n * f) for n in tokens) for f in factors]


def plain(name: str) -> str:
    """An export's name of a backbone's tensor; some recipes call a block's norms ln1 and ln2."""
    return re.sub(r"\.ln([12])\.", r".norm\1.", name.removeprefix("vit."))


def check_backbone(recipe: str, card: Card, weights: dict, export: Path) -> None:
    """The recipe's backbone from an export, as mm's process builds it: strict loading, maps, gradients everywhere."""
    from mmengine.registry import MODELS, DefaultScope

    cfg, _ = configured(recipe, card=card, world=1, device="cpu", export=export)
    rescale = bool(cfg.model.backbone.get("rescale", True))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if reason := refusal(card, rescale):
            with pytest.raises(UserError, match=re.escape(reason)) as error:
                MODELS.build(cfg.model.backbone)
            assert "\n" not in str(error.value)
            return
        backbone = MODELS.build(cfg.model.backbone)
    assert type(backbone).__name__ == {"vit": "TimmViT", "swin": "TimmSwin", "resnet": "TimmResNet"}[card.family]
    inner = backbone.encoder if card.family == "vit" else backbone.net
    own = {plain(k): v for k, v in inner.state_dict().items() if not k.endswith("num_batches_tracked")}
    left = weights.keys() - own.keys()
    assert own.keys() <= weights.keys()
    assert not [k for k in left if not k.startswith(UNUSED)]
    said = f"{len(own)}/{len(own)} tensors loaded" + f", {len(left)} of the file not used by the maps" * bool(left)
    assert backbone.accounting == said
    resized = {"pos_embed"} if cfg.model.backbone.get("pos_resize") == "size" else set()  # once, for 512 x 512
    assert not [k for k in own.keys() - resized if not torch.equal(own[k], weights[k])]
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    maps = backbone.train()(images)
    assert [m.shape[1] for m in maps] == list(build().widths(card))
    assert [tuple(m.shape[2:]) for m in maps] == sizes(card, rescale, images.shape[2:])
    sum(m.square().mean() for m in maps).backward()
    trained = {k: p for k, p in backbone.named_parameters() if p.requires_grad}
    without = [k for k, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without  # DDP waits for every parameter
    first = next(
        p for k, p in trained.items() if k.endswith(("patch_embed.proj.weight", "net.conv1.weight", "conv1.0.weight"))
    )
    assert first.grad.any()


@mm
@pytest.mark.parametrize("name", NAMES)
def test_mm_backbone(name, example_of, tmp_path):
    """One step forward and back in a COCO and an ADE20K recipe of its family, with BN in the place of SyncBN; a family
    without a recipe is refused."""
    example = example_of(name)
    if example.card.family not in RECIPES:
        with pytest.raises(UserError, match=f"takes a vit, .* is a {example.card.family}: there is no coco recipe for"):
            check_family(read(CONFIGS / "coco_maskrcnn_1x.py"), example.card)
        return
    weights, card = example.checkpoint.reading.weights, example.card
    save_weights(tmp_path / "backbone.safetensors", weights, card, {})  # as the task does
    for recipe in RECIPES[card.family]:
        check_backbone(recipe, card, weights, tmp_path / "backbone.safetensors")


@mm
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_mm_backbone_of_our_own_class_attention(family, tmp_path):
    """SelfPatch's class attention, which a ViT's or Swin's export holds, is after the last map."""
    card = replace(CARDS[family], class_token=False, final_norm=False, readout="class_attention")
    torch.manual_seed(0)
    weights = {k: torch.randn(shape) / 8 for k, shape in encoder_for(card).named_shapes().items()}
    assert any(k.startswith("readout.") for k in weights)
    save_weights(tmp_path / "backbone.safetensors", weights, card, {})
    for recipe in RECIPES[family]:
        check_backbone(recipe, card, weights, tmp_path / "backbone.safetensors")


@mm
def test_mm_backbone_that_is_not_there(tmp_path):
    """The two reasons of `refusal`, which no example of ours gives."""
    wide = CARDS["vit"].override({"patch": 32, "pos": "learned 2x2"})
    short = CARDS["swin"].override({"depths": (1, 1, 1), "heads": (1, 2, 4)})
    for card, recipe in ((wide, "coco_maskrcnn_1x"), (short, "coco_maskrcnn_swin_1x")):
        weights = {k: torch.zeros(shape) for k, shape in encoder_for(card).named_shapes().items()}
        save_weights(tmp_path / "backbone.safetensors", weights, card, {})
        assert refusal(card, rescale=True)
        check_backbone(recipe, card, weights, tmp_path / "backbone.safetensors")


# --- the small files of other code bases (what must be refused: test_formats.py, test_unpickle.py)

BAD = ("malicious", "truncated")


def tiny_files() -> list:
    """Everything in the folder that is a checkpoint: not what the official code computes, nor a config beside it."""
    found = shared_cases("checkpoints/tiny/*")
    return [p for p in found if p.values[0].suffix not in (".npz", ".json") and not p.values[0].name.startswith(BAD)]


def expected(file: Path) -> list[str]:
    """The plug-ins of the layouts that have this small file."""
    layouts = [json.loads(p.read_text()) for p in sorted(SHARED.glob("checkpoints/layouts/*.json"))]
    return [layout["plugin"] for layout in layouts if f"tiny/{file.name}" in layout["tiny"]["files"]]


@pytest.mark.shared
@pytest.mark.parametrize("file", tiny_files())
def test_inspect_says_what_a_small_file_is(file):
    """`selfpatch inspect FILE` alone: its format, or a tie in which it is listed and which --format settles."""
    done = CliRunner().invoke(app, ["inspect", str(file)])
    assert done.exit_code == 0, done.exception
    candidates = re.findall(r"^format +(\w+)$|^ +or (\w+):.*--format", done.stdout, re.MULTILINE)
    candidates = [a or b for a, b in candidates]
    assert candidates
    assert re.search(r"^tensors +(\d+)/\1 tensors, .* 0 missing", done.stdout, re.MULTILINE)
    for plugin in expected(file):
        own = CliRunner().invoke(app, ["inspect", str(file), "--format", plugin]).stdout
        assert plugin in candidates or own.partition("tensors")[2] == done.stdout.partition("tensors")[2]
    for name in candidates if len(candidates) > 1 else ():
        again = CliRunner().invoke(app, ["inspect", str(file), "--format", name])
        assert again.exit_code == 0, again.exception
        assert re.findall(r"^format.*|^ +or .*", again.stdout, re.MULTILINE) == [f"format       {name} (given)"]
