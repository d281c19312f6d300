"""ResNets and Swins of libraries and in whole training files: features by an independent forward, what is refused."""

import re
from functools import partial

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer

from format_examples import conv, format_example, libraries_conv
from layouts import PARITY, relative
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.checkpoints.open import build
from selfpatch_bench.benchmarks.hub.open import open_checkpoint


def perturbed(network: torch.nn.Module) -> torch.nn.Module:
    """The network with norms, tables and running statistics that show in the features, for evaluation."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and (value.dim() < 2 or "position" in name):
            value.add_(0.2 * torch.rand(value.shape))
    return network.eval()


def same_maps(path, network, format: str, sizes=((64, 64), (65, 97))):
    """Read as that format, with the features of timm's network. -> the opened checkpoint"""
    checkpoint = open_checkpoint(path)
    assert (checkpoint.reading.format, checkpoint.rivals, checkpoint.lacking) == (format, [], [])
    encoder = build(checkpoint)
    for size in sizes:
        images = torch.randn(1, 3, *size)
        with torch.inference_mode():
            assert relative(encoder(images).patches[0], network.forward_features(images)) < PARITY
    return checkpoint


STEMS = {
    "C": {"stem_type": "deep", "stem_width": 8},
    "D": {"stem_type": "deep", "stem_width": 16, "avg_down": True},
    "T": {"stem_type": "deep_tiered", "stem_width": 32, "avg_down": True},
}


@pytest.mark.parametrize(("stem", "block"), [("C", BasicBlock), ("D", Bottleneck), ("T", Bottleneck)])
def test_resnets_of_other_stems(stem, block, tmp_path):
    """timm's own forward; the card of a plain ResNet says nothing of stems."""
    network = perturbed(ResNet(block, (1, 2, 1, 1), num_classes=3, channels=(4, 8, 8, 16), **STEMS[stem]))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    card = same_maps(tmp_path / "x.pth", network, "timm_resnet").card.as_dict()
    assert (len(card["stem_widths"]), card.get("avg_down")) == (2, STEMS[stem].get("avg_down"))


@pytest.mark.parametrize("stem", ["C", "D"])
def test_mmpretrain_names_of_stems(stem, tmp_path):
    """mmpretrain's ResNetV1c and V1d: the same tensors under its names, beside a classifier."""
    network = perturbed(ResNet(Bottleneck, (1, 2, 1, 1), num_classes=0, channels=(4, 8, 8, 16), **STEMS[stem]))
    weights = network.state_dict()
    names = dict(zip(libraries_conv.mm_resnet_names(weights), weights, strict=True)) if stem == "D" else {}
    state = {new: weights[old] for new, old in names.items()} or dict(weights)
    if stem == "C":  # a stem in mmpretrain's names, shortcuts as they are
        state = libraries_conv.mm_resnet_names({k: v for k, v in weights.items() if "layer" not in k})
        state |= {k: v for k, v in weights.items() if "layer" in k}
    state = {f"backbone.{k}": v for k, v in state.items()} | {"head.fc.weight": torch.zeros(3, 64)}
    meta = {"mmpretrain_version": "1.2.0", "cfg": "norm = dict(mean=[127.5, 127.5, 127.5], std=[51, 51, 51])"}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "x.pth")
    card = same_maps(tmp_path / "x.pth", network, "mmpretrain_resnet").card
    assert (card.mean, card.std) == ((0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    ("config", "words"),
    [("dict(to_rgb=False)", "BGR"), ("dict(dilations=(1, 1, 2, 4))", "dilates"), ("dict(style='caffe')", "")],
)
def test_what_an_mmpretrain_config_says(config, words, tmp_path):
    """BGR and dilations are refused, the stride of `caffe` blocks is in the 1x1 convolution."""
    state = {f"backbone.{k}": v for k, v in libraries_conv.resnet_weights().items()}
    torch.save({"meta": {"mmcls_version": "0.25.0", "config": config}, "state_dict": state}, tmp_path / "x.pth")
    if words:
        with pytest.raises(UserError, match=words):
            open_checkpoint(tmp_path / "x.pth")
    else:
        assert open_checkpoint(tmp_path / "x.pth").card.block == "bottleneck, stride on the 1x1"


def test_vicregl_has_a_projector_of_maps(tmp_path):
    state = {f"module.backbone.{k}": v for k, v in libraries_conv.resnet_weights().items()}
    heads = ("maps_projector.0.weight", "projector.0.weight", "classifier.weight")
    torch.save({"model": state | {f"module.{k}": torch.zeros(2, 2) for k in heads}}, tmp_path / "x.pth")
    reading = open_checkpoint(tmp_path / "x.pth").reading
    assert (reading.format, set(reading.dropped.values())) == ("vicreg", {"counter", "head", "classifier"})


# -- Swins: torchvision's own network, and its tensors in the names of others


def torchvision_network(window: int = 2, eps: float = 1e-5) -> SwinTransformer:
    norm = partial(torch.nn.LayerNorm, eps=eps)
    sizes = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": [window, window]}
    return perturbed(SwinTransformer([4, 4], **sizes, num_classes=3, norm_layer=norm))


def official_names(network: SwinTransformer) -> dict:
    """The network's tensors in the official code's names, without classifier and buffers."""
    found = {}
    for key, value in network.state_dict().items():
        key = re.sub(r"^features\.0\.([02])", lambda m: f"patch_embed.{'norm' if m[1] == '2' else 'proj'}", key)
        key = re.sub(r"^features\.([135])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", key)
        key = re.sub(r"^features\.([24])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.", key)
        found[key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")] = value
    return {k: v for k, v in found.items() if not k.startswith("head.") and not k.endswith("index")}


def check_swin(path, network, format: str, sizes) -> None:
    """Read as that format, with the maps and vectors of torchvision's network; sizes: (H, W) -> is the rule its own?"""
    checkpoint = open_checkpoint(path)
    assert (checkpoint.reading.format, checkpoint.rivals, checkpoint.lacking) == (format, [], [])
    encoder = build(checkpoint)
    for size, own in sizes.items():
        images = torch.randn(1, 3, *size)
        assert (encoder.size_rule(size) == "official") == own, size
        with torch.inference_mode():
            maps = network.norm(network.features(images)).permute(0, 3, 1, 2)
            found = encoder(images)
        assert relative(found.patches[0], maps) < PARITY, size
        assert relative(found.image, maps.mean((2, 3))) < PARITY


def test_torchvision_swin(tmp_path):
    """A side of one window is not shifted, while the other one still is; the index is in the file."""
    network = torchvision_network()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    check_swin(tmp_path / "x.pth", network, "torchvision_swin", {(64, 64): True, (44, 92): True, (8, 96): True})


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5", "mmpretrain"])
def test_swin_in_other_names(names, tmp_path):
    """Bare and below a trainer's prefixes, at sizes of which all stages have more than one window."""
    network = torchvision_network()
    weights = official_names(network)
    if names == "mmpretrain":
        state = {re.sub(r"^norm\.", "norm2.", k): v for k, v in conv.mm_swin_names(weights).items()}
        state = {f"backbone.{k}": v for k, v in state.items()}
        tree = {"meta": {"mmengine_version": "0.10"}, "state_dict": state | {"head.fc.weight": torch.zeros(3, 32)}}
    else:
        state = libraries_conv.hf_swin_names(weights, int(names[-1]))
        tree = {"state_dict": {f"model.swin.{k}": v for k, v in state.items()}} if names[-1] == "5" else state
    torch.save(tree, tmp_path / "x.pth")
    format = "mm_swin" if names == "mmpretrain" else "hf_swin"
    check_swin(tmp_path / "x.pth", network, format, {(64, 64): True, (44, 92): True})
    assert build(open_checkpoint(tmp_path / "x.pth")).size_rule((16, 64)) == "padded_own (assumed)"


def test_ibot_swin(tmp_path):
    """Its eps, and a last stage that is never shifted, since it is one window at 224 pixels."""
    network = torchvision_network(window=14, eps=1e-6)
    for block in network.features[5]:
        block.attn.shift_size = [0, 0]
    teacher = {f"backbone.{k}": v for k, v in official_names(network).items()}
    student = teacher | {"backbone.masked_embed": torch.zeros(1, 8), "head.mlp.0.weight": torch.zeros(2, 32)}
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, tmp_path / "x.pth")
    check_swin(tmp_path / "x.pth", network, "ibot_swin", {(256, 256): True, (240, 272): False})


def test_hugging_face_swin_of_two_eps(tmp_path):
    """Another eps in config.json is that of some norms only."""
    path, _ = libraries_conv.hf_swin(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "swin", "layer_norm_eps": 1e-6}')
    with pytest.raises(UserError, match="layer_norm_eps 1e-06 beside 1e-5"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [('{"downsample_in_bottleneck": true}', ""), ('{"hidden_act": "gelu"}', "hidden_act gelu")],
)
def test_what_a_hugging_face_resnet_s_config_says(config, words, tmp_path):
    path, _ = libraries_conv.hf_resnet(tmp_path)
    (tmp_path / "config.json").write_text(config)
    if words:
        with pytest.raises(UserError, match=words):
            open_checkpoint(path)
    else:
        checkpoint = open_checkpoint(path)
        assert checkpoint.card.block == "bottleneck, stride on the 1x1"
        assert ("std" in checkpoint.assumed, "block" in checkpoint.assumed) == (True, False)


def test_a_hugging_face_config_says_the_stages(tmp_path):
    """A Swin of which blocks were lost is refused."""
    path, _ = libraries_conv.hf_swin(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "swin", "embed_dim": 8, "depths": [1, 2, 2, 2]}')
    with pytest.raises(UserError, match="depths 1,2,2,2 means depths=1,2,2,2, the weights have depths=1,2,1,2"):
        open_checkpoint(path)


@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone."])
def test_numbered_children_of_a_resnet(prefix, tmp_path):
    """A Sequential of torchvision's children, as many save it, below any prefix."""
    tree = torch.load(libraries_conv.lightly_resnet(tmp_path)[0])["state_dict"]
    mine = {k.removeprefix("backbone."): v for k, v in tree.items() if k.startswith("backbone.")}
    torch.save({prefix + k: v for k, v in mine.items()}, tmp_path / "x.pth")
    found, whole = (open_checkpoint(tmp_path / name) for name in ("x.pth", "lightly.ckpt"))
    assert (found.reading.format, found.fingerprint) == ("lightly_resnet", whole.fingerprint)
    assert "std 0.229,0.224,0.225 (assumed)" in found.assumed


def test_torchvision_s_training_code_keeps_an_average(tmp_path):
    """Beside `model`: dropped with its count, and taken by `--weights ema`."""
    online, average = libraries_conv.resnet_weights(), libraries_conv.resnet_weights()
    ema = {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in average.items()}
    torch.save({"model": online, "model_ema": ema, "epoch": 3}, tmp_path / "x.pth")
    torch.save(average, tmp_path / "average.pth")
    found = open_checkpoint(tmp_path / "x.pth")
    assert (found.reading.format, found.assumed) == ("torchvision_resnet", "")
    assert found.fingerprint != open_checkpoint(tmp_path / "average.pth").fingerprint
    assert "block bottleneck, stride on the 3x3 (assumed)" in open_checkpoint(tmp_path / "average.pth").assumed


def test_mmpretrain_vit_of_moco_v3(tmp_path):
    """Its average, neck and predictor lie beside the ViT; without them the file is the same."""
    path, facts = format_example("mmpretrain_vit", tmp_path)
    tree = torch.load(path, weights_only=False)
    alone = open_checkpoint(path, card=facts)
    state = {k: v for k, v in tree["state_dict"].items() if k.startswith("backbone.")}
    more = {f"momentum_encoder.module.0.{k.removeprefix('backbone.')}": v + 1 for k, v in state.items()}
    more |= {k: torch.zeros(2) for k in ("momentum_encoder.steps", "neck.fc0.weight", "head.predictor.fc0.weight")}
    torch.save(tree | {"state_dict": state | more}, tmp_path / "x.pth")
    assert open_checkpoint(tmp_path / "x.pth", card=facts).fingerprint == alone.fingerprint
