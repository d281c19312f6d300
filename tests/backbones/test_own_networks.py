"""A network of a user's own: the README's example through tasks, and whatever does not keep its word refused."""

import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn

from own_network import NAME, plug_in, save, trained
from selfpatch_bench.benchmarks import UserError, evaluate, load, wrap
from selfpatch_bench.benchmarks.backbones.networks import network_of
from selfpatch_bench.benchmarks.commands.convert import convert_command
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.commands.ls import listing
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.mm import recipe as mm_recipe
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.models import Entry
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.tasks._registry import RECIPES
from selfpatch_bench.benchmarks.tasks._video import usual_stage
from selfpatch_bench.pretrain.common.card import Card

TASKS = ["davis", "knn", "linear"]
DAVIS = {"size": 96, "multiple": 32, "context": 1}
VALUES = DAVIS | {"resize": 64, "crop": 64, "k": 3, "other_k": [1], "epochs": 1, "batch": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The README's plug-in in force, its network in memory and in a file, a video and eight pictures."""
    root, noise = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    make_videos(root / "videos", sequences=1, frames=3, size=(72, 96), objects=1)
    for split in ("train", "val"):
        for name, colour in (("blue", (40, 60, 190)), ("red", (200, 50, 40))):
            folder = root / "classes" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = np.clip(noise.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    module = trained(plug_in(root / "plugins"))
    data = {"davis2017": root / "videos", "imagenet": root / "classes"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPATCH_PLUGINS", str(root / "plugins"))
        patch.setenv("SELFPATCH_CACHE", str(root / "cache"))
        file = save(module, root / "net.pth")
        yield types.SimpleNamespace(root=root, plugins=root / "plugins", module=module, file=file, data=data)


@pytest.fixture
def own_plugins(place, tmp_path, monkeypatch):
    """A plug-in folder with the example, which a test may change."""
    shutil.copytree(place.plugins, tmp_path / "plugins")
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plugins"))
    return tmp_path / "plugins/backbones"


def wrapped(place, module=None, features=None, strides=(4, 8, 16, 32), name=NAME):
    network = network_of(NAME)
    facts = network.facts
    return wrap(module or place.module, features or network.features, facts["mean"], facts["std"], strides, name)


# --- through the tasks


def test_the_readmes_network_in_three_tasks_by_its_file_and_from_memory(place):
    """The same records, whether it comes as a plug-in with a checkpoint or as a module."""
    out = place.root / "out"
    options = Options(
        data=[f"{name}={root}" for name, root in place.data.items()],
        out=out,
        device="cpu",
        overrides=[f"{key}={value}" for key, value in VALUES.items()],
    )
    jobs = plan([Entry(place.file, format=NAME)], TASKS, options)
    assert run(jobs, options, Console(quiet=True)) == 0, [p.read_text() for p in out.glob("records/*/*failed*")]
    found = {job.task.name: record.read(record.done(out, job.task.name, job.key)[-1]) for job in jobs}
    for one in found.values():
        assert one.model.accounting.startswith("34/34 tensors")
        assert one.model.accounting.endswith("6 dropped (4 counter, 1 classifier, 1 optimizer)")
        assert (one.model.format, one.doubts) == (NAME, None)
        assert all(0 <= value <= 100 for value in one.metrics.values())
    assert found["davis"].protocol.effective["map"] == "block2, stride 16"
    assert found["davis"].protocol.id == "davis2017-dino-v1-block2"
    assert found["linear"].protocol.id == "linear-image-v1"
    again = evaluate(wrapped(place), TASKS, place.data, out, device="cpu", quiet=True, **VALUES)
    assert [one.key for one in again] == [job.key for job in jobs]
    assert [one.created for one in again] == [found[task].created for task in TASKS]
    (anew,) = evaluate(wrapped(place), ["davis"], place.data, out, device="cpu", quiet=True, rerun=True, **DAVIS)
    assert (anew.metrics, anew.model.format) == (found["davis"].metrics, "in memory")
    assert (anew.model.name, anew.model.fingerprint) == (NAME, found["davis"].model.fingerprint)


def test_features_are_those_of_the_users_function_in_any_order_of_blocks(place):
    encoder, images = load(place.file, format=NAME), torch.rand(2, 3, 64, 96)
    network = network_of(NAME)
    mean, std = (torch.tensor(network.facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        image, maps = network.features(place.module, (images - mean) / std, [0, 1, 2, 3])
        found = encoder(encoder.normalise(images), [2, -1, 0, 2])
    assert torch.allclose(found.image, image, atol=1e-5)
    for one, block in zip(found.patches, (2, 3, 0, 2), strict=True):
        assert torch.allclose(one, maps[block], atol=1e-5)
    with pytest.raises(UserError, match=r"block 4 does not exist: the network has 4 \(0 to 3\)"):
        encoder.patch_maps(images, [4])


def test_an_encoder_that_was_loaded_is_evaluated_too(place):
    """With the weights that it has by then."""
    out, values = place.root / "loaded", {k: VALUES[k] for k in ("resize", "crop", "k", "other_k")}
    encoder = load(place.file, format=NAME)
    (first,) = evaluate(encoder, "knn", place.data, out, device="cpu", quiet=True, name="mine", **values)
    assert (first.model.name, first.model.fingerprint) == ("mine", encoder.fingerprint)
    encoder.module.norm.weight.mul_(2)
    (second,) = evaluate(encoder, ["knn"], place.data, out, device="cpu", quiet=True, name="other", **values)
    assert second.model.fingerprint != first.model.fingerprint
    with pytest.raises(UserError, match=r"no radius; there are: .*temperature"):
        evaluate(encoder, "knn", place.data, out, radius=3)
    with pytest.raises(UserError, match=r"an encoder, of load\(\.\.\.\) or wrap\(\.\.\.\), and not ConvNet"):
        evaluate(place.module, "knn", place.data, out)
    with pytest.raises(UserError, match=r"coco_maskrcnn_r50_1x: takes a checkpoint, .*backbones/convnet\.py"):
        evaluate(encoder, "coco_maskrcnn_r50_1x", place.data, out)


def test_a_converted_file_needs_no_format(place, tmp_path):
    assert convert_command(place.file, tmp_path / "net.safetensors", NAME, {}) == 0
    before, after = open_checkpoint(place.file, format=NAME), open_checkpoint(tmp_path / "net.safetensors")
    assert (after.fingerprint, after.card) == (before.fingerprint, before.card)
    assert "  strides      4, 8, 16, 32" in report(tmp_path / "net.safetensors", None, {})


def test_other_code_is_another_network(place):
    """Of the same weights: a result by the former code does not stand for one by the new."""
    features = network_of(NAME).features

    def halved(module, images, blocks):
        image, maps = features(module, images, blocks)
        return image, [x / 2 for x in maps]

    first, second, renamed = wrapped(place), wrapped(place, features=halved), wrapped(place, name="other")
    assert first.fingerprint == second.fingerprint == renamed.fingerprint
    assert len({one.card for one in (first, second, renamed)}) == 3


@pytest.mark.parametrize(
    ("strides", "stage"), [((4, 8, 16, 32), 2), ((16,) * 12, 11), ((8, 8, 14), 2), ((32, 64), 0), ((32,) * 3, 2)]
)
def test_the_map_that_davis_takes(strides, stage):
    assert usual_stage(Card("net", strides=strides, widths=(8,) * len(strides))) == stage


def test_the_caller_keeps_his_module(place):
    """wrap copies it: the mode, the gradients and later training are the caller's."""
    module = trained(place.plugins / "backbones/convnet.py").train()
    encoder = wrapped(place, module)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert not encoder.training
    before = encoder(torch.zeros(1, 3, 64, 64)).image
    with torch.no_grad():
        module.norm.bias.add_(1)
    assert torch.equal(encoder(torch.zeros(1, 3, 64, 64)).image, before)


# --- recipes of COCO and ADE20K


def test_recipes_go_by_the_strides_of_the_maps():
    recipes = {name: mm_recipe.read(plugin.path) for name, plugin in RECIPES.scan().items() if plugin.ours}
    stages = Card("net", strides=(2, 4, 8, 16, 16, 32), widths=(8,) * 6)
    patches = Card("net", strides=(16,) * 12, widths=(8,) * 12)
    for one in recipes.values():
        taken, refused = (patches, stages) if one.family == "vit" else (stages, patches)
        if one.heads is None:
            mm_recipe.check_family(one, taken)
        with pytest.raises(UserError, match=rf"{one.name} takes a .*, with maps of strides .*: use --task [a-z]"):
            mm_recipe.check_family(one, refused)
    assert mm_recipe.own_blocks(recipes["coco_maskrcnn_r50_1x"], stages) == (1, 2, 4, 5)
    assert mm_recipe.own_blocks(recipes["coco_maskrcnn_r50_1x"], stages, (1, 2, 3, 5)) == (1, 2, 3, 5)
    assert mm_recipe.own_blocks(recipes["coco_maskrcnn_1x"], patches) == (3, 5, 7, 11)


# --- what does not keep its word


class Small(nn.Module):
    """Two layers of stride 8, and what can go wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))


def maps_of(module, images, blocks):
    first = module.first(images)
    both = first, module.second(first)
    return both[1].mean((2, 3)), [both[b] for b in blocks]


def changed(map_change=lambda x: x, image_change=lambda x: x):
    """A function of features whose maps and image embedding are changed."""

    def features(module, images, blocks):
        image, maps = maps_of(module, images, blocks)
        return image_change(image), [map_change(x) for x in maps]

    return features


def counting(module, images, blocks):
    module.count.add_(1)
    return maps_of(module, images, blocks)


def training(module, images, blocks):
    module.train()
    return maps_of(module, images, blocks)


def in_place(module, images, blocks):
    return maps_of(module, images.mul_(2), blocks)


def from_batch(module, images, blocks):
    """Batch norm by the batch's own statistics, without moving any."""
    image, maps = maps_of(module, images, blocks)
    return image, [F.batch_norm(x, None, None, training=True) for x in maps]


OTHER = Small()
REFUSED = {
    "a stride of 16": (changed(lambda x: x[:, :, ::2, ::2]), r"block 0, of stride 8, is \[5, 8, 7, 8\] instead"),
    "rows for columns": (changed(lambda x: x.transpose(2, 3)), r"block 0, .* \[5, 8, 16, 14\] instead of \[5, 8"),
    "channels last": (changed(lambda x: x.permute(0, 2, 3, 1)), r"map of block 0, .* is \[5, 14, 16, 8\]"),
    "tokens": (changed(lambda x: x.flatten(2).transpose(1, 2)), r"map of block 0, .* is \[5, 224, 8\]"),
    "tokens in another order": (
        changed(lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape)), "map of block 0 is not where it should be"
    ),
    "upside down": (changed(lambda x: x.flip(2)), "changes at the top left, it changes at the bottom left"),
    "whole numbers": (changed(lambda x: x.long()), r"block 0, .* is a tensor \[.*\] of int64 instead of a floating"),
    "no maps": (changed(lambda x: None), "block 0, of stride 8, is NoneType instead of a floating-point tensor"),
    "an image map": (changed(image_change=lambda x: x[:, :, None]), r"embedding is \[5, 8, 1\] instead of \[5, D\]"),
    "not finite": (changed(map_change=lambda x: x / 0), "features gives values that are not finite"),
    "half a pair": (lambda *a: maps_of(*a)[0], r"features gives a tensor \[.*\] .* instead of \(image embedding, \["),
    "no list": (lambda *a: (maps_of(*a)[0], maps_of(*a)[1][0]), r"features gives tuple of 2 instead of"),
    "one map": (lambda m, x, b: maps_of(m, x, b[:1]), r"gives 1 maps for blocks \[0, 1\]"),
    "blocks in another order": (lambda m, x, b: maps_of(m, x, b[::-1]), "map of block 1 changes .*, other blocks"),
    "the last maps, whatever is asked": (
        lambda m, x, b: (maps_of(m, x, b)[0], maps_of(m, x, [0, 1])[1][-len(b) :]), "map of block 0 changes between"
    ),
    "dropout": (changed(lambda x: F.dropout(x, 0.5)), "changes between two calls: dropout"),
    "statistics of the batch": (from_batch, "map of block 0 changes between two calls: .*batch norm in training mode"),
    "a counter": (counting, "features changes the network's count"),
    "training mode": (training, r"features changes the network's mode \(of the whole\)"),
    "pictures": (in_place, "features changes the pictures that it is given"),
    "another module": (lambda m, x, b: maps_of(OTHER, x, b), "features uses another module"),
    "an error": (lambda m, x, b: m.third(x), r"a 112x128 picture: AttributeError: 'Small' object has no attribute"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_features_that_are_not_what_they_say(name):
    features, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        wrap(Small(), features, 0.5, 0.5, (8, 8), "small")
    assert "\n" not in str(error.value)
    assert "small" in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "vit"}, "vit is a family of networks that are built here"),
        ({"name": "my net"}, "wrap: name=my net: it is made of letters, digits and underscores"),
        ({"std": None}, "small: wrap wants std"),
        ({"module": nn.LazyConv2d(8, 8, 8)}, "small: the module cannot be copied: .*uninitialized"),
        ({"strides": (8,)}, "gives 2 maps for blocks|changes between|list index"),
        ({"strides": (8, 8, 8)}, "IndexError"),
        ({"strides": (0, 8)}, "strides"),
        ({"mean": 130}, "card mean"),
        ({"module": nn.Flatten()}, "the module has no parameters"),
        ({"module": "net.pth"}, "a torch module and a function"),
        ({"features": None}, "a torch module and a function"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_arguments_of_wrap(given, words):
    usual = {"module": Small(), "features": maps_of, "mean": 0.5, "std": 0.5, "strides": (8, 8), "name": "small"}
    if given == {"strides": (8,)}:  # a network may have more maps than it shows
        arrays = {"mean": np.float32(0.5), "std": torch.full((3,), 0.5)}
        assert wrap(**(usual | given | arrays)).count == 1
        return
    with pytest.raises(UserError, match=words) as error:
        wrap(**(usual | given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "nn.GELU(),",
            "nn.GELU(), nn.Conv2d(width, width, 1),",
            r"does not fit the network convnet: .*missing: stages",
        ),
        (
            "self.norm = nn.LayerNorm(widths[-1])",
            "self.norm = nn.Identity()",
            r"2 unexpected: norm\.bias, norm\.weight",
        ),
        ('DROP = {"head.": "classifier"}', "", r"1 unexpected: head\.weight"),
        ("(16, 32, 64, 128)", "(16, 32, 64, 96)", r"of another shape: norm\.bias \[128\] instead of \[96\]"),
        ("return ConvNet(card.widths)", "return card.widths", "build of convnet gives tuple instead of a torch module"),
        ("return ConvNet(card.widths)", "return ConvNet(card.depths)", r"as format convnet \(convnet\.py\): TypeError"),
        ("(4, 8, 16, 32)", "(4, 8, 16, 16)", r"net\.pth: network convnet, .* block 3, of stride 16, is .* instead of"),
        ("def build", "def built", r"plug-in .*convnet\.py: it has no build\(\.\.\.\)"),
        ("CARD = ", "FACTS = ", r"plug-in .*convnet\.py: it has no CARD"),
        ('"strides": (4, 8, 16, 32),', "", r"plug-in .*convnet\.py: the card of convnet lacks strides"),
        ('"strides": (4, 8, 16, 32)', '"strides": (4, 8, 16)', "3 strides and 4 widths"),
        ('"mean": (', '"maen": (', "the card has no field maen"),
        ("from torch import nn", "import no_such_module", r"convnet\.py does not import: ModuleNotFoundError"),
    ],
)
def test_a_plug_in_or_file_that_does_not_fit(place, own_plugins, old, new, words):
    path = own_plugins / "convnet.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words) as error:
        open_checkpoint(place.file, format=NAME)
    assert "\n" not in str(error.value)


def test_a_card_whose_network_is_not_there(place, tmp_path, monkeypatch):
    convert_command(place.file, tmp_path / "net.safetensors", NAME, {})
    monkeypatch.delenv("SELFPATCH_PLUGINS")
    with pytest.raises(UserError, match=r"no network of family convnet: there are .*resnet.* of --plugins, none"):
        open_checkpoint(tmp_path / "net.safetensors")


def test_a_broken_one_is_listed_and_breaks_nothing(place, own_plugins):
    (own_plugins / "broken.py").write_text("raise RuntimeError('not yet')")
    (own_plugins / "lacking.py").write_text('"""Half of one."""\nCARD = {}\n')
    (own_plugins / "vit.py").write_text((own_plugins / "convnet.py").read_text())
    rows = {line.split()[0]: line for line in listing("backbones", Path()).splitlines()}
    assert "A small convolutional network" in rows[NAME]
    assert rows[NAME].endswith(str(own_plugins))
    assert "broken: plug-in" in rows["broken"]
    assert "RuntimeError: not yet" in rows["broken"]
    assert "lacking.py: it has no build(...)" in rows["lacking"]
    assert "vit is a family of networks that are built here" in rows["vit"]
    assert open_checkpoint(place.file, format=NAME).reading.format == NAME


def test_a_file_is_recognised_where_the_plug_in_claims_it(place, own_plugins):
    path = own_plugins / "convnet.py"
    claims = "\n\ndef claims(shapes, meta):\n    return 2 * ('stages.0.0.weight' in shapes)\n"
    with pytest.raises(UserError, match=r"no format knows these .*network of your own\? give --format \(convnet\)"):
        open_checkpoint(place.file)
    path.write_text(path.read_text() + claims)
    assert open_checkpoint(place.file).reading.format == NAME
    (own_plugins.parent / "formats").mkdir()  # a format of that name goes before it
    (own_plugins.parent / "formats/convnet.py").write_text("def claims(shapes, meta):\n    return 0\n")
    with pytest.raises(UserError, match="no format knows these"):
        open_checkpoint(place.file)
