"""timm's networks as backbones of mmdet and mmseg: against the official maps, a plain ViT, and mmdet's own networks."""

import importlib.util
import logging
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfpatch_bench.benchmarks import load
from selfpatch_bench.benchmarks.backbones.conv import timm_network
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.mm import ops
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights

if not all(importlib.util.find_spec(name) for name in ops.PACKAGES):
    pytest.skip("the extra mm is not installed", allow_module_level=True)

from selfpatch_bench.benchmarks.mm.backbones import TimmResNet, TimmSwin, TimmViT

FLOAT32 = 1e-5  # the same sums in another order
BN = {"type": "BN"}
FACTS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def error(a, b):
    """max|a-b| / max|b|"""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert a.shape == b.shape
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


def vit_card(**facts):
    base = {"patch": 16, "dim": 24, "depth": 12, "heads": 3, "pos": "learned 4x4", "class_token": False}
    return Card("vit", **(base | {"final_norm": False, "readout": "mean"} | FACTS | facts))


SWIN = Card(
    "swin", patch=4, window=7, dim=12, depths=(2, 2, 3, 1), heads=(1, 2, 3, 4), class_token=False, patch_norm=True,
    absolute_pos=False, norm_eps=1e-5, sizes="padded", **FACTS,
)  # fmt: skip
RESNET = Card(
    "resnet", block="bottleneck, stride on the 3x3", blocks=(2, 1, 2, 1), stem_channels=64, bn_eps=1e-5,
    widths=(16, 32, 64, 128), **FACTS,
)  # fmt: skip


def export(card, path, spread=0.2):
    """An export of a network of this card whose weights are all random -> (path as text, weights)."""
    net = Encoder(card) if card.family == "vit" else timm_network(card)
    weights = {
        k.removeprefix("vit."): v if k.endswith("running_var") else v + spread * torch.randn_like(v)
        for k, v in net.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    save_weights(path, weights, card)
    return str(path), weights


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_maps_are_those_of_the_official_detection_backbone(need, tmp_path):
    golden = dict(np.load(need("golden/selfpatch_mm_backbones.npz")))
    checkpoint = open_checkpoint(need("golden/selfpatch_checkpoint.pth"), card={"heads": 3})
    path = str(tmp_path / "x.safetensors")
    save_weights(path, checkpoint.reading.weights, checkpoint.card)
    taken = sorted(int(k.removeprefix("det.block")) for k in golden if k.startswith("det.block"))
    blocks = (taken + taken[-1:] * 4)[:4]
    vit = TimmViT(checkpoint.card.as_dict(), path, blocks=blocks, norm_cfg=BN)
    layers = {k.removeprefix("det."): torch.as_tensor(v) for k, v in golden.items() if k.startswith("det.fpn")}
    own = {k for k in vit.state_dict() if k.startswith("fpn")}
    assert own == set(layers)  # the names that weight decay goes by
    vit.load_state_dict(layers, strict=False)
    vit.eval()
    images = torch.as_tensor(golden["image"])
    with torch.no_grad():
        tokens, maps = vit.tokens(images), vit(images)
    for i, block in enumerate(taken):
        assert error(tokens[i], golden[f"det.block{block}"]) < FLOAT32
    compared = [i for i in range(4) if f"det.map{i}" in golden]
    assert len(compared) >= 3
    for i in compared:
        assert error(maps[i], golden[f"det.map{i}"]) < FLOAT32
    for key in (k for k in golden if k.startswith("seg.pos_")):
        size = int(key.removeprefix("seg.pos_"))
        seg = TimmViT(checkpoint.card, path, blocks, rescale=False, pos_resize="size", img_size=size)
        assert error(seg.encoder.vit.pos_embed, golden[key]) < FLOAT32


def plain_vit(weights, card, images, rule):
    """A ViT in plain tensor arithmetic -> raw outputs of all blocks as maps [B, D, h, w]. rule: of the positions."""
    w, p = weights, card.patch
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=p)
    (b, d, gh, gw), g = x.shape, card.grid
    own = int(card.class_token)
    square = w["pos_embed"][:, own:].reshape(1, g, g, d).permute(0, 3, 1, 2)
    if (gh, gw) != (g, g):
        if rule == "dino":
            square = F.interpolate(square, scale_factor=((gh + 0.1) / g, (gw + 0.1) / g), mode="bicubic")
        else:
            square = F.interpolate(square, size=(gh, gw), mode="bicubic")
    x = (x + square).flatten(2).transpose(1, 2)
    if own:
        x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(b, -1, -1), x], 1)
    maps = []
    for i in range(card.depth):
        v = {k.removeprefix(f"blocks.{i}."): t for k, t in w.items() if k.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (d,), v["norm1.weight"], v["norm1.bias"], card.norm_eps)
        y = (y @ v["attn.qkv.weight"].T + v["attn.qkv.bias"]).reshape(b, -1, 3, card.heads, d // card.heads)
        q, k, value = y.permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2)) * (d // card.heads) ** -0.5).softmax(-1) @ value
        y = y.transpose(1, 2).reshape(b, -1, d) @ v["attn.proj.weight"].T + v["attn.proj.bias"]
        x = x + y
        y = F.layer_norm(x, (d,), v["norm2.weight"], v["norm2.bias"], card.norm_eps)
        y = F.gelu(y @ v["mlp.fc1.weight"].T + v["mlp.fc1.bias"]) @ v["mlp.fc2.weight"].T + v["mlp.fc2.bias"]
        x = x + y
        maps.append(x[:, own:].transpose(1, 2).reshape(b, d, gh, gw))
    return maps


@pytest.mark.parametrize(
    ("patch", "own", "rule"), [(16, False, None), (16, True, None), (8, True, None), (14, False, "size")]
)
def test_maps_are_those_of_a_plain_vit_and_plain_rescaling(tmp_path, patch, own, rule):
    card = vit_card(patch=patch, class_token=own, readout="token" if own else "mean", final_norm=own)
    path, weights = export(card, tmp_path / "x.safetensors")
    vit = TimmViT(card.as_dict(), path, norm_cfg=BN, pos_resize=rule, img_size=4 * patch)
    for name, value in vit.state_dict().items():
        if name.startswith("fpn") and not name.endswith(("running_var", "tracked")):
            value += 0.2 * torch.randn_like(value)
    vit.eval()
    images = torch.randn(2, 3, 5 * patch, 7 * patch)
    with torch.no_grad():
        maps, raw = vit(images), plain_vit(weights, card, images, rule or "dino")
        taken = [raw[b] for b in (3, 5, 7, 11)]

        def up(x, layer):
            """Every pixel becomes 2 x 2."""
            b, _, h, w = x.shape
            y = torch.einsum("bchw,cdij->bdhiwj", x, layer.weight).reshape(b, -1, 2 * h, 2 * w)
            return y + layer.bias[:, None, None]

        if patch == 8:
            expected = [up(taken[0], vit.fpn1[0]), taken[1], F.max_pool2d(taken[2], 2), F.max_pool2d(taken[3], 4)]
        else:
            bn = vit.fpn1[1]
            first = up(taken[0], vit.fpn1[0])
            first = (first - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps).sqrt()[:, None, None]
            first = F.gelu(first * bn.weight[:, None, None] + bn.bias[:, None, None])
            expected = [up(first, vit.fpn1[3]), up(taken[1], vit.fpn2[0]), taken[2], F.max_pool2d(taken[3], 2)]
    for a, b in zip(maps, expected, strict=True):
        assert error(a, b) < FLOAT32


@pytest.mark.parametrize(
    "facts",
    [
        {"class_token": True, "registers": 3, "layer_scale": True, "act": "swiglu", "readout": "token"},
        {"class_token": True, "registers": 2, "pos": "rotary", "pos_resize": "rotary", "readout": "token"},
        {"readout": "mean_norm", "pos_resize": "stored", "qkv_bias": False},
        {"class_token": True, "pos": "relative 4x4, shared", "pos_resize": "window", "readout": "token"},
        {"registers": 4, "pos": "rotary, stored", "pos_resize": "rotary", "norm": "rms", "proj_bias": False},
        {"readout": "class_attention", "patch": 8, "pos_resize": "timm"},
    ],
    ids=lambda facts: facts.get("readout", "") + facts.get("pos", ""),
)
def test_every_kind_of_vit_gives_the_encoders_maps(tmp_path, facts):
    card = vit_card(**facts)
    path, _ = export(card, tmp_path / "x.safetensors")
    encoder, vit = load(path), TimmViT(card.as_dict(), path, rescale=False).eval()
    images = torch.randn(1, 3, 96, 112)
    for a, b in zip(vit(images), encoder.patch_maps(images, [3, 5, 7, 11], norm=False), strict=True):
        assert error(a, b) < FLOAT32
    net = TimmViT(card.as_dict(), path, norm_cfg=BN, blocks=(0, 1, 2, 3))
    sum(m.square().mean() for m in net(images)).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_positions_that_are_not_stored_take_no_rule():
    card = vit_card(pos="rotary", pos_resize="rotary")
    with pytest.raises(UserError, match="pos_resize=size: this network's positions are rotary"):
        TimmViT(card, pos_resize="size")


def test_positions_by_output_size_are_stored_once_and_resized_from_there(tmp_path):
    """ADE20K: 4x4 -> 8x8 as the weights are loaded, and any other picture's from those 8x8, not from the 4x4."""
    card = vit_card()
    path, weights = export(card, tmp_path / "x.safetensors")
    vit = TimmViT(card, path, rescale=False, pos_resize="size", img_size=128).eval()
    once = F.interpolate(weights["pos_embed"].reshape(1, 4, 4, 24).permute(0, 3, 1, 2), size=(8, 8), mode="bicubic")
    assert vit.card.pos == "learned 8x8"
    assert error(vit.encoder.vit.pos_embed, once.flatten(2).transpose(1, 2)) < FLOAT32
    images = torch.randn(1, 3, 128, 160)
    twice = F.interpolate(once, size=(8, 10), mode="bicubic")
    x = vit.encoder.vit.patch_embed.proj(images) + twice
    assert error(vit.encoder.embed(images), x.flatten(2).transpose(1, 2)) < FLOAT32
    direct = F.interpolate(weights["pos_embed"].reshape(1, 4, 4, 24).permute(0, 3, 1, 2), size=(8, 10), mode="bicubic")
    assert error(twice, direct) > 1e-2


def test_pictures_are_padded_with_zeros_at_the_bottom_and_right(tmp_path):
    card = vit_card()
    path, _ = export(card, tmp_path / "x.safetensors")
    vit = TimmViT(card, path, rescale=False).eval()
    images = torch.randn(1, 3, 70, 90)
    padded = torch.zeros(1, 3, 80, 96)
    padded[:, :, :70, :90] = images
    for a, b in zip(vit(images), vit(padded), strict=True):
        assert a.shape == (1, 24, 5, 6)
        assert torch.equal(a, b)


def test_swin_is_that_of_mmdet(tmp_path):
    """mmdet's is Swin's detection code; sizes whose stages are not whole windows."""
    ops.install()
    from mmdet.models.backbones.swin import SwinTransformer, swin_converter

    path, weights = export(SWIN, tmp_path / "x.safetensors", 0.1)
    ours = TimmSwin(SWIN.as_dict(), path, drop_path=0.3)
    theirs = SwinTransformer(embed_dims=12, depths=SWIN.depths, num_heads=SWIN.heads, drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0) for stage in ours.net.layers for block in stage.blocks]
    assert rates == pytest.approx([b.attn.drop.drop_prob for s in theirs.stages for b in s.blocks], abs=1e-7)
    # official names: patch merging ends a stage, timm's begins the next one
    official = {
        re.sub(r"^layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", k): v for k, v in weights.items()
    }
    converted = {k.removeprefix("backbone."): v for k, v in swin_converter(official).items()}
    converted |= {f"norm{i}.{k}": v for i in range(4) for k, v in getattr(ours, f"norm{i}").state_dict().items()}
    missing, unexpected = theirs.load_state_dict(converted, strict=False)
    assert all(k.endswith("relative_position_index") for k in missing)
    assert unexpected == ["norm.weight", "norm.bias"]
    ours.eval(), theirs.eval()
    for size in ((256, 320), (230, 333)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            for a, b in zip(ours(images), theirs(images), strict=True):
                assert error(a, b) < FLOAT32


def test_resnet_is_that_of_mmdet(tmp_path):
    """Maps, gradients and batch-norm statistics of a training step, the very same weight names."""
    ops.install()
    from mmdet.models.backbones import ResNet

    card = RESNET.override({"blocks": (3, 4, 6, 3)})
    path, _ = export(card, tmp_path / "x.safetensors")
    ours = TimmResNet(card.as_dict(), path, norm_cfg=BN)
    theirs = ResNet(50, base_channels=4, stem_channels=64, norm_eval=False, frozen_stages=-1)
    assert [k for k, _ in theirs.named_parameters()] == [k.removeprefix("net.") for k, _ in ours.named_parameters()]
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in ours.state_dict().items()}, strict=True)
    images = torch.randn(2, 3, 64, 90)
    maps = [net(images) for net in (ours, theirs)]
    for a, b in zip(*maps, strict=True):
        assert error(a, b) < FLOAT32
    for m in maps:
        sum(x.square().mean() for x in m).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-4, name  # float32 through 50 layers of batch norm over few values
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_accounting(tmp_path):
    path, weights = export(vit_card(), tmp_path / "x.safetensors")
    vit = TimmViT(vit_card(), path)
    assert vit.accounting == "147/147 tensors loaded"
    for name, value in weights.items():
        assert torch.equal(vit.encoder.vit.state_dict()[name], value)
    card = vit_card(class_token=True, readout="token", final_norm=True)
    path, _ = export(card, tmp_path / "y.safetensors")
    assert TimmViT(card, path).accounting == "148/148 tensors loaded, 2 of the file not used by the maps"
    assert (
        TimmViT(card, path, blocks=(0, 1, 2, 3)).accounting
        == "52/52 tensors loaded, 98 of the file not used by the maps"
    )
    assert "random" in TimmViT(card).accounting


@pytest.mark.parametrize(
    ("kind", "card", "facts", "words"),
    [
        (TimmViT, vit_card(), {"depth": 13}, r"12 missing: blocks\.12\.attn\.proj\.bias"),
        (TimmViT, vit_card(), {"depth": 11}, r"12 unexpected: blocks\.11\.attn\.proj\.bias"),
        (TimmViT, vit_card(), {"pos": "learned 5x5"}, r"1 of another shape: pos_embed \[.*\] instead of \[.*\]$"),
        (TimmSwin, SWIN, {"window": 8}, "8 of another shape: .*relative_position_bias_table"),
        (TimmSwin, SWIN, {"depths": (2, 2, 4, 1)}, r"13 missing: layers\.2\.blocks\.3"),
        (TimmResNet, RESNET, {"blocks": (1, 1, 2, 1)}, r"15 unexpected: layer1\.1\.bn1\.bias"),
        (TimmResNet, RESNET, {"stem_channels": 32}, r"7 of another shape: bn1\.bias"),
    ],
    ids=lambda value: "" if isinstance(value, Card) else getattr(value, "__name__", None) or str(value)[:30],
)
def test_weights_of_another_network_are_refused(tmp_path, kind, card, facts, words):
    """The file agrees with its own card; the card given is another."""
    path, weights = export(card, tmp_path / "x.safetensors")
    assert re.match(r"(\d+)/\1 tensors loaded", kind(card, path).accounting)
    with pytest.raises(UserError, match=words):
        kind(card.override(facts), path)
    incomplete = tmp_path / "y.safetensors"
    save_weights(
        incomplete, {k: v for k, v in weights.items() if k != "bn1.bias" and k != "patch_embed.proj.bias"}, card
    )
    with pytest.raises(UserError, match="1 missing"):
        kind(card, str(incomplete))


def test_a_card_of_another_family_is_refused():
    for kind, card in ((TimmViT, SWIN), (TimmSwin, RESNET), (TimmResNet, vit_card())):
        with pytest.raises(UserError, match=f"{kind.__name__} takes a card of family .*, not {card.family}"):
            kind(card)


def test_blocks():
    vit = TimmViT(vit_card(depth=24), rescale=False)
    assert vit.blocks == (7, 11, 15, 23)
    assert TimmViT(vit_card(), blocks=[2, 5, 8, -1]).blocks == (2, 5, 8, 11)
    with pytest.raises(UserError, match="block 12 does not exist"):
        TimmViT(vit_card(), blocks=(3, 5, 7, 12))
    with pytest.raises(UserError, match=r"blocks=3,5,7: .*four"):
        TimmViT(vit_card(), blocks=(3, 5, 7))
    with pytest.raises(UserError, match="8, 14 and 16 pixels, not 32"):
        TimmViT(vit_card(patch=32))


@pytest.mark.parametrize("kind", ["mmdet", "mmseg"])
def test_mm_finds_them_and_does_not_initialise_them_again(tmp_path, kind):
    """timm's modules have an `init_weights` of their own; mmengine calls those of a BaseModule's parts in every run."""
    ops.install()
    from mmengine.model import BaseModule

    registry = importlib.import_module(f"{kind}.registry").MODELS

    class Detector(BaseModule):
        def __init__(self, cfg):
            super().__init__()
            self.backbone = registry.build(cfg)

    for card, name in ((vit_card(), "TimmViT"), (SWIN, "TimmSwin"), (RESNET, "TimmResNet")):
        path, weights = export(card, tmp_path / f"{name}.safetensors")
        model = Detector({"type": name, "card": card.as_dict(), "weights": path})
        model.init_weights()
        inner = model.backbone.encoder.vit if name == "TimmViT" else model.backbone.net
        for key, value in inner.state_dict().items():
            if key in weights:
                assert torch.equal(value, weights[key]), key


# --- training --------------------------------------------------------------------------------------------------------


def built(family, tmp_path, **kwargs):
    """(backbone with random weights, images), the same ones every time"""
    torch.manual_seed(1)
    card = {"vit": vit_card(class_token=True, readout="token", final_norm=True), "swin": SWIN, "resnet": RESNET}[family]
    path, _ = export(card, tmp_path / f"{family}.safetensors")
    kind = {"vit": TimmViT, "swin": TimmSwin, "resnet": TimmResNet}[family]
    if family != "swin":
        kwargs.setdefault("norm_cfg", BN)
    return kind(card, path, **kwargs), torch.randn(2, 3, 64, 80)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_checkpointing_changes_no_map_gradient_or_statistic(tmp_path, family):
    results = []
    for with_cp in (False, True):
        net, images = built(family, tmp_path, with_cp=with_cp)
        calls = []
        inside = {"vit": "encoder.vit.blocks.3", "swin": "net.layers.1.blocks.0", "resnet": "net.layer2.0"}
        net.get_submodule(inside[family]).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        maps = net(images)
        sum(m.square().mean() for m in maps).backward()
        assert len(calls) == 1 + with_cp
        grads = [p.grad for p in net.parameters()]
        assert all(g is not None for g in grads)  # DDP waits for every parameter
        counted = [b for k, b in net.named_buffers() if not k.endswith("num_batches_tracked")]
        results.append([*maps, *grads, *counted])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) or error(a, b) < FLOAT32


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_mixed_precision(tmp_path, family):
    """Training under autocast, as COCO's recipes do on a GPU; bfloat16, of which CPUs are capable."""
    net, images = built(family, tmp_path, with_cp=True)
    with torch.autocast("cpu", torch.bfloat16):
        sum(m.float().square().mean() for m in net(images)).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    with torch.no_grad():
        single = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(images)
    for a, b in zip(half, single, strict=True):
        assert error(a.float(), b) < 0.1  # 2^-9 for each rounding, over a dozen blocks


def test_drop_path_rises_over_the_blocks_and_rests_in_evaluation(tmp_path):
    card = vit_card()
    path, _ = export(card, tmp_path / "x.safetensors")
    vit = TimmViT(card, path, drop_path=0.22, norm_cfg=BN)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in vit.encoder.vit.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    assert rates == [getattr(b.drop_path2, "drop_prob", 0.0) for b in vit.encoder.vit.blocks]
    images = torch.randn(1, 3, 64, 64)
    first, second = vit(images)[3], vit(images)[3]
    assert not torch.equal(first, second)
    vit.eval()
    still = TimmViT(card, path, norm_cfg=BN).eval()
    assert torch.equal(vit(images)[3], still(images)[3])


def test_norms_can_be_called_otherwise(tmp_path):
    """The segmentation backbone's ln1 and ln2 are decayed, norm1 and norm2 are not: by name, so names are all."""
    net, images = built("vit", tmp_path)
    other, _ = built("vit", tmp_path, norm_names=("ln1", "ln2"))
    usual = [k for k, _ in net.named_parameters()]
    assert [k for k, _ in other.named_parameters()] == [re.sub(r"norm(\d)", r"ln\1", k) for k in usual]
    assert sum("norm" in k for k in usual) == 48
    assert not any("norm" in k for k, _ in other.named_parameters())
    assert any("pos_embed" in k for k in usual)
    assert any("cls_token" in k for k in usual)
    net.eval(), other.eval()
    for a, b in zip(net(images), other(images), strict=True):
        assert torch.equal(a, b)


def test_frozen_stages_and_statistics(tmp_path):
    """Also after mmengine has put batch norms in the place of SyncBN, as it does in a run of one process."""
    from mmengine.model import revert_sync_batchnorm

    def moved(**kwargs):
        net, images = built("resnet", tmp_path, **kwargs)
        net = revert_sync_batchnorm(net)
        before = {k: v.clone() for k, v in net.named_buffers()}
        net.eval().train()
        net(images)
        trained = {k.split(".")[1] for k, p in net.named_parameters() if p.requires_grad}
        return trained, {k.split(".")[1] for k, v in net.named_buffers() if not torch.equal(v, before[k])}

    layers = {"layer1", "layer2", "layer3", "layer4"}
    sync = {"type": "SyncBN"}
    assert moved() == ({"conv1", "bn1"} | layers, {"bn1"} | layers)
    assert moved(frozen_stages=0, norm_cfg=sync) == (layers, layers)
    assert moved(frozen_stages=2) == ({"layer3", "layer4"}, {"layer3", "layer4"})
    assert moved(norm_eval=True, norm_cfg=sync) == ({"conv1", "bn1"} | layers, set())


def test_batch_norms_are_those_of_the_config():
    resnet = TimmResNet(RESNET, norm_cfg={"type": "SyncBN", "requires_grad": False})
    norms = [m for m in resnet.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1 + 6 * 3 + 4
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert {(m.weight.requires_grad, m.eps) for m in norms} == {(False, RESNET.bn_eps)}
    assert isinstance(TimmViT(vit_card()).fpn1[1], nn.SyncBatchNorm)


# --- silence ---------------------------------------------------------------------------------------------------------


def test_only_known_noise_is_dropped(capsys, monkeypatch):
    import mmengine.logging

    monkeypatch.setattr(mmengine.logging, "print_log", mmengine.logging.logger.print_log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ops.silence()
        from mmengine.logging import print_log

        print_log("Could not import what nobody needs", level=logging.DEBUG)
        print_log("the disk is full")
        print_log("the weights are missing", level=logging.WARNING)
        warnings.warn("``MultiScaleDeformableAttention`` has been moved to somewhere", ImportWarning, stacklevel=1)
        warnings.warn("the GPU is lost", UserWarning, stacklevel=1)
    out, err = capsys.readouterr()
    assert (out, err) == ("the disk is full\nthe weights are missing\n", "")
    assert [str(w.message) for w in caught] == ["the GPU is lost"]
