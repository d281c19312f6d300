"""ResNets and Swins of libraries and in whole training files: features by an independent forward, what is refused."""

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from format_examples import libraries_conv
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
