"""ResNet and Swin networks: against independent implementations, their cards, and in the DAVIS task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from rich.console import Console
from test_formats_conv import NAMES, conv_layouts, tiny_file
from timm.models.swin_transformer import SwinTransformer

from conftest import REPO
from format_examples import conv, format_example
from layouts import PARITY, relative
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.conv import ConvEncoder, timm_network
from selfpatch_bench.benchmarks.checkpoints.open import build
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.results.collect import backbone_name
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights


@pytest.mark.parametrize("arch", ["resnet50", "basic", "resnext", "wide"])
def test_torchvision_networks(arch, tmp_path):
    """torchvision's own implementation, in eval mode with running statistics, stage by stage."""
    torch.manual_seed(0)
    kind = torchvision.models.resnet.BasicBlock if arch == "basic" else torchvision.models.resnet.Bottleneck
    options = {"resnext": {"groups": 32, "width_per_group": 4}, "wide": {"width_per_group": 128}}.get(arch, {})
    network = torchvision.models.ResNet(kind, [3, 4, 6, 3] if arch == "resnet50" else [1, 2, 1, 1], **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    torch.save(network.eval().state_dict(), tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth")
    assert encoder.card.stem_channels == 64
    x = torch.randn(1, 3, 65, 48)
    with torch.inference_mode():
        features, y = encoder(x, blocks=[0, 1, 2, 3]), network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for i, stage in enumerate(features.patches, 1):
            y = getattr(network, f"layer{i}")(y)
            assert relative(stage, y) < PARITY
        assert relative(features.image, network.avgpool(y).flatten(1)) < PARITY
    assert f"dropped ({sum('tracked' in k for k in network.state_dict())} counter, 2 head)" in encoder.accounting


def test_batch_norm_eps_is_that_of_the_card():
    """The parity bound would show another eps: 1e-3 changes features by more than 1e-5."""
    card = Card("resnet", block="basic", blocks=(1,) * 4, stem_channels=64, widths=(4, 4, 8, 8), bn_eps=1e-5)
    one = ConvEncoder(card)
    other = ConvEncoder(card.override({"bn_eps": 1e-3}))
    other.net.load_state_dict(one.net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert relative(other(x).image, one(x).image) > 1e-5


@pytest.mark.parametrize("stem", [64, 16, 128])
def test_wider_and_narrower_stems(stem, tmp_path):
    """SwAV's wider ResNets have a wider stem too; against torchvision's network with the same planes."""
    torch.manual_seed(0)
    wide = stem // 16
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    network.inplanes = stem
    network.conv1, network.bn1 = torch.nn.Conv2d(3, stem, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(stem)
    for i in range(4):
        made = network._make_layer(torchvision.models.resnet.Bottleneck, wide << i, 1, stride=1 if i == 0 else 2)
        setattr(network, f"layer{i + 1}", made)
    network.fc = torch.nn.Identity()
    weights = {f"module.{k}": v for k, v in network.eval().state_dict().items()}
    torch.save(weights | {"module.prototypes.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth")
    assert encoder.card.widths == tuple(4 * wide << i for i in range(4))
    assert encoder.card.std == (0.228, 0.224, 0.225)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert relative(encoder(x).image, network(x)) < PARITY


SIZES = {"patch_size": 4, "embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "window_size": 2}


def timm_swin(size) -> SwinTransformer:
    """timm's own network for one image size, with relative positions and norms that matter."""
    torch.manual_seed(0)
    network = SwinTransformer(img_size=size, num_classes=0, **SIZES)
    for name, value in network.named_parameters():
        if "norm" in name or name.endswith("table"):
            torch.nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return network.eval()


@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
@pytest.mark.parametrize("official", [False, True])
def test_swin_is_timms_at_whole_windows(size, official, tmp_path):
    """timm's network built for that size: at multiples of 4 x 2 x 8 = 64 nothing is padded. Both orders of merging."""
    network = timm_swin(size)
    weights = dict(network.state_dict())
    if official:
        renamed = {}
        for key, value in weights.items():
            parts = key.split(".")
            parts[1] = str(int(parts[1]) - 1) if "downsample" in key else parts[1]
            renamed[".".join(parts)] = value
        weights = {"model": {f"encoder.{k}": v for k, v in renamed.items()}}
    torch.save(weights, tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth")
    assert encoder.card.heads == (1, 2, 3, 4)
    assert encoder.size_rule(size) == "official"
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        features = encoder(x, blocks=[0, 1, 2, 3])
        for stage, other in zip(features.patches, network.forward_intermediates(x)[1], strict=True):
            assert relative(stage, other) < PARITY
        assert relative(features.image, network(x)) < PARITY


def plain_swin(encoder: ConvEncoder, x: torch.Tensor) -> torch.Tensor:
    """The last stage of a Swin, token by token in loops: which tokens see which, and through which entry of the table.

    A token attends to those of its window after the shift, not across the seam where the roll joins far borders; what
    was padded is seen like any other token. A stage whose shorter side is one window is not shifted.
    """
    net, side = encoder.net, encoder.card.window
    x = net.patch_embed(x)[0]
    for stage in net.layers:
        if not isinstance(stage.downsample, torch.nn.Identity):
            h, w, c = x.shape
            x = torch.cat([x, x.new_zeros(h % 2, w, c)])
            x = torch.cat([x, x.new_zeros(len(x), w % 2, c)], 1)
            x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = stage.downsample.reduction(stage.downsample.norm(x))
        for number, block in enumerate(stage.blocks):
            h, w, c = x.shape
            padded = (-(-h // side) * side, -(-w // side) * side)
            shift = side // 2 if number % 2 and min(padded) > side else 0
            y = x.new_zeros(*padded, c)
            y[:h, :w] = block.norm1(x)
            heads = block.attn.num_heads
            q, k, v = block.attn.qkv(y).view(*padded, 3, heads, c // heads).unbind(2)
            out = x.new_zeros(h, w, c)
            places = [(i, j) for i in range(padded[0]) for j in range(padded[1])]

            def window(at, shift=shift, padded=padded):
                """Window and place in it of a token, and on which side of the seam it lies."""
                moved = [(a - shift) % n for a, n in zip(at, padded, strict=True)]
                seam = [a < shift for a in at]
                return [m // side for m in moved], [m % side for m in moved], seam

            for i in range(h):
                for j in range(w):
                    mine, place, seam = window((i, j))
                    scores, values = [], []
                    for other in places:
                        theirs, there, beyond = window(other)
                        if theirs == mine and beyond == seam:
                            row = (place[0] - there[0] + side - 1) * (2 * side - 1) + place[1] - there[1] + side - 1
                            bias = block.attn.relative_position_bias_table[row]
                            scores.append((q[i, j] * k[other]).sum(-1) * (c // heads) ** -0.5 + bias)
                            values.append(v[other])
                    weight = torch.stack(scores).softmax(0)[..., None]
                    out[i, j] = block.attn.proj((weight * torch.stack(values)).sum(0).flatten())
            x = x + out
            x = x + block.mlp(block.norm2(x))
    return x.permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(64, 128), (40, 72), (20, 60), (36, 16)])
def test_swin_at_any_size(size):
    """The rules for shift, seam and padding against loops over tokens; (64, 128) is official: its last stage is 2x4."""
    facts = {"patch": 4, "window": 2, "dim": 4, "depths": (2, 1, 1, 2), "heads": (1, 2, 2, 4), "class_token": False}
    torch.manual_seed(0)
    encoder = ConvEncoder(Card("swin", **facts, patch_norm=True, absolute_pos=False, sizes="padded"))
    for name, value in encoder.net.named_parameters():
        if "norm" in name or name.endswith("table") or name.endswith("bias"):
            torch.nn.init.normal_(value, 1.0 if name.endswith("norm.weight") else 0.0, 0.5)
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        # the loops add in another order: float32 rounding, as in PARITY
        assert relative(encoder(x, blocks=[3]).patches[0], plain_swin(encoder, x)) < PARITY
    assert encoder.size_rule(size) == ("official" if size == (64, 128) else "padded (assumed)")


def test_mmdets_swin(tmp_path):
    """golden/mm_swin.npz: mmdet 3's SwinTransformer (random weights, 4 wide, window 2) and its stages on a 40x72 image.

    Its padding, its shift and the channel order of its merging, which is unfold's. The last stage has one block there,
    so that mmdet's always shifting does not show.
    """
    golden = np.load(REPO / "tests/golden" / "mm_swin.npz")
    state = {k.removeprefix("state."): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("state.")}
    torch.save(state, tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth")
    assert (encoder.card.depths, encoder.card.heads) == ((2, 1, 1, 1), (1, 2, 2, 4))
    found = encoder(torch.from_numpy(golden["image"]), blocks=[0, 1, 2, 3]).patches
    for i, stage in enumerate(found):
        assert relative(stage, golden[f"c{i + 2}"]) < PARITY
    assert "output norm" not in encoder.accounting
    fine_tuned = {f"backbone.{k}": v for k, v in state.items()} | {"backbone.norm2.weight": torch.ones(16)}
    fine_tuned |= {"roi_head.bbox_head.fc_cls.weight": torch.ones(2)}
    torch.save({"state_dict": fine_tuned}, tmp_path / "tuned.pth")
    again = open_checkpoint(tmp_path / "tuned.pth")
    assert again.reading.format == "mm_finetuned"
    assert again.fingerprint == encoder.fingerprint


# --- cards, overrides, refusals


def test_heads_are_a_warning(tmp_path):
    """One `--heads` for many files: no error for those that have none or their own."""
    for name, kept in (("swav", "it has none"), ("moby", "(1, 2, 2, 4)")):
        path, _ = format_example(name, tmp_path)
        plain, given = open_checkpoint(path), open_checkpoint(path, card={"heads": 6})
        assert given.card == plain.card
        (text,) = set(given.warnings) - set(plain.warnings)
        assert "--heads 6" in text
        assert kept in text
        assert f"warning: {text}" in report(path, None, {"heads": 6})
        assert "heads" not in given.overrides
        build(given)


def test_untrained_weights_are_noticed(tmp_path):
    card = Card("resnet", block="basic", blocks=(1,) * 4, stem_channels=64, widths=(4,) * 4, bn_eps=1e-5)
    torch.save(timm_network(card).state_dict(), tmp_path / "x.pth")
    assert "running mean is still 0" in report(tmp_path / "x.pth", None, {})
    path, _ = format_example("swav", tmp_path)
    assert "look untrained" not in report(path, None, {})


def test_cards_of_other_families(tmp_path):
    """A ViT's dict has none of their fields; theirs survive JSON and an export; what is missing is named."""
    vit = Card("vit", 16, 24, 2, 2).as_dict()
    assert not {"window", "depths", "blocks", "widths", "bn_eps", "sizes", "groups"} & vit.keys()
    for name in ("swav", "moby", "torchvision_resnet"):
        path, _ = format_example(name, tmp_path)
        encoder = load(path)
        card = encoder.card
        kept = json.loads(json.dumps(card.as_dict()))
        assert Card.from_dict(kept).as_dict() == kept
        assert not {"pos", "readout", "registers", "depth"} & kept.keys()
        save_weights(tmp_path / f"{name}.safetensors", open_checkpoint(path).reading.weights, card)
        again = load(tmp_path / f"{name}.safetensors")
        assert again.fingerprint == encoder.fingerprint
        assert again.card.as_dict() == kept
    with pytest.raises(UserError, match="family swin lacks patch, window"):
        Card("swin")
    with pytest.raises(UserError, match="a resnet has no field pos_resize"):
        load(tmp_path / "swav.safetensors", pos_resize="dino")
    with pytest.raises(UserError, match="it is padded"):
        load(tmp_path / "moby.safetensors", sizes="cropped")
    with pytest.raises(UserError, match="no network of family vit"):
        timm_network(Card("vit", 16, 24, 2, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.conv1.weight": (0, 64, 1, 1)}, "no elements"),
        ({"conv1.weight": (64, 3, 3, 3)}, "stem is one 7x7"),
        ({"layer2.7.conv1.weight": (2, 8, 1, 1)}, "numbering of layer2"),
        ({"layer3.0.conv3.weight": (15, 4, 1, 1)}, "not multiples of 4"),
    ],
)
def test_impossible_resnets_are_refused(change, words, tmp_path):
    weights = conv.resnet_weights() | {k: torch.zeros(shape) for k, shape in change.items()}
    torch.save({"state_dict": weights, "author": "DenseCL"}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=words):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers.0.blocks.0.attn.relative_position_bias_table": (8, 1)}, "8 positions"),
        ({"layers.0.blocks.0.attn.relative_position_index": (4, 4)}, "orders relative positions"),
        ({"layers.1.blocks.0.attn.relative_position_bias_table": (9, 5)}, "5 heads do not divide stage 2"),
        ({"absolute_pos_embed": (1, 64, 8)}, "absolute_pos=True"),
        ({"layers.0.blocks.7.norm1.weight": (8,)}, "numbering of layers"),
    ],
)
def test_impossible_swins_are_refused(change, words, tmp_path):
    weights = conv.swin_weights(official=True) | {k: torch.zeros(shape) for k, shape in change.items()}
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=words):
        open_checkpoint(tmp_path / "x.pth", format="timm_swin")


def test_stride_on_the_first_convolution(tmp_path):
    """Caffe's bottleneck, which only the user can know of: torchvision's with the stride moved."""
    torch.manual_seed(0)
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    network.fc = torch.nn.Identity()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert relative(load(tmp_path / "x.pth")(x).image, network(x)) < PARITY
        for layer in (network.layer2, network.layer3, network.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        encoder = load(tmp_path / "x.pth", block="bottleneck, stride on the 1x1")
        assert relative(encoder(x).image, network(x)) < PARITY
        assert relative(load(tmp_path / "x.pth")(x).image, network(x)) > 1e-3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "ResNet-50"),
        ({"blocks": (3, 4, 23, 3)}, "ResNet-101"),
        ({"block": "basic", "widths": (64, 128, 256, 512)}, "ResNet-34"),
        ({"groups": 32, "base_width": 4}, "ResNet-50 32x4d"),
        ({"widths": (16, 32, 64, 128)}, "ResNet-50, 128 wide"),
        ({"stem_widths": (32, 32)}, "ResNet-50-C"),
        ({"stem_widths": (32, 32), "avg_down": True}, "ResNet-50-D"),
        ({"stem_widths": (24, 32), "avg_down": True}, "ResNet-50-T"),
    ],
)
def test_names_of_published_backbones(change, name):
    """What a table calls a network: a published name only for the published network."""
    facts = {"block": "bottleneck, stride on the 3x3", "blocks": (3, 4, 6, 3), "widths": (256, 512, 1024, 2048)}
    card = Card("resnet", **(facts | change), stem_channels=64, bn_eps=1e-5)
    assert backbone_name(card.as_dict()) == name


@pytest.mark.parametrize(
    ("dim", "depths", "name"), [(96, (2, 2, 6, 2), "T"), (128, (2, 2, 18, 2), "B"), (12, (2, 2, 6, 2), "12")]
)
def test_names_of_published_swins(dim, depths, name):
    facts = {"patch": 4, "window": 7, "heads": (3, 6, 12, 24), "patch_norm": True, "absolute_pos": False}
    card = Card("swin", dim=dim, depths=depths, **facts, sizes="padded")
    assert backbone_name(card.as_dict()) == f"Swin-{name}"


def test_stages_that_do_not_exist():
    card = Card("resnet", block="basic", blocks=(1,) * 4, stem_channels=64, widths=(4,) * 4, bn_eps=1e-5)
    encoder = ConvEncoder(card)
    assert encoder.resolve([0, -1]) == [0, 3]
    with pytest.raises(UserError, match="stage 4 does not exist"):
        encoder.resolve([4])


# --- DAVIS


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos") / "set", sequences=1, frames=4, size=(96, 160))


def davis_record(path: Path, videos: Path, out: Path, *values: str) -> record.Record:
    options = Options(data=[str(videos)], out=out, device="cpu", overrides=["size=96", "multiple=32", *values])
    jobs = plan([path], ["davis"], options)
    assert run(jobs, options, Console(quiet=True)) == 0
    return record.read(record.done(out, "davis", jobs[0].key)[-1])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in conv.SAME_NETWORK and not n.endswith("_swin")])
def test_davis(name, videos, tmp_path):
    """Every format runs; the map is in the protocol id, the size rule in the record."""
    path, facts = format_example(name, tmp_path)
    if open_checkpoint(path, format=name, card=facts).card.family == "vit":
        pytest.skip("test_davis.py has these")
    found = davis_record(path, videos, tmp_path / "out")
    effective = found.protocol.effective
    family = found.model.card["family"]
    if family in ("xcit", "eva"):  # all of its maps are of one size, and the last one is taken
        assert found.protocol.id == "davis2017-dino-v1"
        assert effective["map"] == "block 1 of 2"
        assert effective["pos_rule"] == {"xcit": "computed", "eva": "timm"}[family]
    else:
        stage = "layer3" if family == "resnet" else "stage3"
        assert found.protocol.id == f"davis2017-dino-v1-{stage}"
        assert effective["map"].endswith("stride 16")
        assert effective["size_rule"] == ("padded (assumed)" if family == "swin" else "any")
        assert effective["norm"] is False
    assert effective["std"][0] == (0.228 if family != "eva" else found.model.card["std"][0])
    assert 0 <= found.metrics["JF_m"] <= 100


def test_davis_on_another_stage(videos, tmp_path):
    """`block=1`: stride 8, and the id says layer2; sides that are no multiples of the stride are cut."""
    path, _ = format_example("densecl", tmp_path)
    found = davis_record(path, videos, tmp_path / "out", "block=1")
    assert found.protocol.id == "davis2017-dino-v1-layer2"
    assert found.protocol.effective["map"] == "layer2, stride 8"
    cut = davis_record(path, videos, tmp_path / "cut", "size=104", "multiple=8")
    assert cut.protocol.id == "davis2017-dino-v1-layer3-p16"


def test_davis_with_patch_14(videos, tmp_path):
    """DINOv2's patches: both sides rounded down to multiples of 14, and the id says so."""
    from selfpatch_bench.benchmarks.backbones.encoder import Encoder

    card = Card("vit", 14, 24, 2, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    save_weights(tmp_path / "x.safetensors", Encoder(card).vit.state_dict(), card)
    found = davis_record(tmp_path / "x.safetensors", videos, tmp_path / "out")
    assert found.protocol.id == "davis2017-dino-v1-p14"
    assert 0 <= found.metrics["JF_m"] <= 100


@pytest.mark.shared
@pytest.mark.parametrize("file", conv_layouts())
def test_davis_on_the_tiny_files(file, videos, tmp_path):
    layout, path = tiny_file(file)
    found = davis_record(path, videos, tmp_path / "out", "frames=3")
    assert found.model.format == layout["plugin"]
    assert 0 <= found.metrics["JF_m"] <= 100
