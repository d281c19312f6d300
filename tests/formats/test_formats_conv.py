"""ResNet and Swin checkpoints: the official features, every tensor accounted for, layouts without a file at hand."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SHARED
from format_examples import conv, format_example
from layouts import PARITY, layouts, relative
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.conv import ConvEncoder, timm_network
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints import open as loading
from selfpatch_bench.benchmarks.checkpoints.open import build
from selfpatch_bench.benchmarks.checkpoints.state import State, read_file
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.pretrain.common.card import Card

# float32: right code is at 1e-7 (convolutions) to 7e-7 (attention); a batch norm eps of 1e-6 for 1e-5 shows at 1e-5.
NAMES = list(FORMATS.scan())


def conv_layouts() -> list:
    return layouts("resnet") + layouts("swin")


def tiny_file(file: Path) -> tuple[dict, Path]:
    layout = json.loads(file.read_text())
    path = next(SHARED / "checkpoints" / f for f in layout["tiny"]["files"] if not f.endswith((".npz", ".json")))
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return layout, path


@pytest.mark.shared
@pytest.mark.parametrize("file", conv_layouts())
def test_tiny_file_has_the_official_features(file):
    """All four stages, the image vector and Swin's normed tokens at every size recorded; the format and the card."""
    layout, path = tiny_file(file)
    found, asked = open_checkpoint(path), open_checkpoint(path, format=layout["plugin"])
    listed = {found.reading.format, *(r.format for r in found.rivals)}
    assert layout["plugin"] in listed or (found.fingerprint, found.card) == (asked.fingerprint, asked.card)
    encoder = build(asked)
    for key, value in layout["tiny"]["arch"].items():
        if key != "sizes":  # free text there, a rule's name here
            assert encoder.card.as_dict()[key] == value, key
    golden = np.load(path.with_suffix(".npz"))
    tags = sorted({name.partition(".")[0] for name in golden.files})
    assert tags
    for tag in tags:
        images = torch.from_numpy(golden[f"{tag}.image"])
        found = encoder(images, blocks=[0, 1, 2, 3])
        for i, stage in enumerate(found.patches):
            assert relative(stage, golden[f"{tag}.c{i + 2}"]) < PARITY, (tag, i)
        assert relative(found.image, golden[f"{tag}.pooled"]) < PARITY
        last = encoder(images).patches[0].flatten(2).transpose(1, 2)
        if f"{tag}.patch_norm" in golden.files:
            assert relative(last, golden[f"{tag}.patch_norm"]) < PARITY
        else:
            assert torch.equal(last, found.patches[3].flatten(2).transpose(1, 2))
        (alone,) = encoder.patch_maps(images, [2], norm=True)
        assert torch.equal(alone, found.patches[2])


@pytest.mark.shared
@pytest.mark.parametrize("file", conv_layouts())
def test_card_of_the_real_size(file):
    """The card from the names and shapes of the real file, built without memory, is the layout's `arch`."""
    layout = json.loads(file.read_text())

    class Shape:
        def __init__(self, shape, dtype):
            self.shape, self.dtype = shape, dtype

        def load(self):
            return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def kind(key):
        return torch.int64 if key.endswith(("num_batches_tracked", "ptr", "index")) else torch.float32

    refs = {k.replace("module.", ""): Shape(v, kind(k)) for k, v in layout["tensors"].items() if "_index" not in k}
    state = State(refs).split()
    plugin = FORMATS.get(layout["plugin"]).module
    while not plugin.claims(state.shapes, {}):
        state = state.inside()
    weights, card, dropped = plugin.convert(state, {})
    for key, value in layout["arch"].items():
        if key != "sizes" and card.as_dict()[key] is not None:  # mean and std may be left to the user
            assert card.as_dict()[key] == value, key
    assert state.used | dropped.keys() == set(state)
    with torch.device("meta"):
        assert ConvEncoder(card).named_shapes() == {k: tuple(v.shape) for k, v in weights.items()}


# --- every format's own example, found by scanning


@pytest.fixture(params=NAMES, scope="module")
def example(request, tmp_path_factory):
    """(name, path, card overrides) of every format whose example is no ViT."""
    torch.manual_seed(0)
    path, facts = format_example(request.param, tmp_path_factory.mktemp(request.param))
    if open_checkpoint(path, format=request.param, card=facts).card.family == "vit":
        pytest.skip("a ViT: test_formats.py has it")
    return request.param, path, facts


def test_example_loads_and_gives_features(example):
    """Recognised (or as another format that reads it alike), and features at sizes that are multiples of nothing."""
    name, path, facts = example
    found, asked = open_checkpoint(path, card=facts), open_checkpoint(path, format=name, card=facts)
    assert not found.rivals
    assert not found.lacking
    assert (found.card, found.fingerprint) == (asked.card, asked.fingerprint)
    shapes = {k: tuple(v) for k, v in read_file(path)[0].split().shapes.items()}
    claims = {n: p.module.claims(shapes, read_file(path)[1]) for n, p in FORMATS.scan().items()}
    assert claims[name] == max(claims.values()) > 0
    encoder = build(asked)
    for h, w in ((64, 64), (40, 72), (33, 97)):
        features = encoder(torch.randn(2, 3, h, w), blocks=list(range(encoder.count)))
        assert features.image.shape == (2, encoder.width)
        for stage, stride, width in zip(features.patches, encoder.strides, encoder.widths, strict=True):
            more = 0 if encoder.card.family in ("convnext", "eva") else stride - 1  # these leave out the rest
            assert stage.shape == (2, width, (h + more) // stride, (w + more) // stride)
        assert torch.isfinite(features.image).all()
    assert [w.shape for w in encoder.parameters() if w.requires_grad] == []


def test_every_tensor_is_accounted_for(example, monkeypatch):
    """One more tensor, one less, one of another shape or kind: refused with its name. One dropped: named as such."""
    name, path, facts = example
    state, meta = read_file(path)
    taken = open_checkpoint(path, format=name, card=facts).reading
    used = sorted(set(state) - taken.dropped.keys())
    stacked = sum(k.endswith(("self.key.weight", "self.key.bias")) for k in used)  # beside query and value, one in timm
    if taken.card.family not in ("xcit", "eva"):  # whose query, key and value are joined or taken apart
        assert len(used) == len(taken.weights) + 2 * stacked
    victim = next(k for k in used if k.endswith(("norm1.bias", "bn1.bias", "norm.bias", "normalization.bias")))

    class Other:
        def __init__(self, value):
            self.value, self.shape, self.dtype = value, tuple(value.shape), value.dtype

        def load(self):
            return self.value

    tensor = state[victim]
    stem = victim.rpartition(".")[0]
    for change, words in (
        ({f"{stem}.mystery": Other(torch.ones(2))}, "mystery"),
        ({victim: None}, "1 missing"),
        ({victim: Other(torch.ones(len(tensor) + 1))}, f"[{len(tensor) + 1}] instead of [{len(tensor)}]"),
        ({victim: Other(torch.ones(len(tensor)).long())}, "not floating-point"),
    ):
        refs = {k: v for k, v in (state.refs | change).items() if v is not None}
        monkeypatch.setattr(loading, "read_file", lambda _, refs=refs: (State(refs), dict(meta)))
        with pytest.raises(UserError) as error:
            open_checkpoint(path, format=name, card=facts)
        assert words in str(error.value)
        assert str(path) in str(error.value)


def test_the_half_precision_file_gives_nearly_the_same(example, tmp_path):
    """float16 weights: 11 bits, so that features are within a percent; integers stay what they are."""
    name, path, facts = example
    if path.suffix == ".pkl":
        pytest.skip("a pickle of arrays; the rest is the same code")

    def halve(node):
        if isinstance(node, dict):
            return {k: halve(v) for k, v in node.items()}
        return node.half() if torch.is_tensor(node) and node.is_floating_point() else node

    torch.save(halve(torch.load(path, weights_only=True)), tmp_path / "half.pth")
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        one, half = load(path, format=name, **facts)(x), load(tmp_path / "half.pth", format=name, **facts)(x)
    assert relative(half.image, one.image) < 1e-2


# --- layouts that no file was at hand for


def torch_tree(*parts: dict) -> dict:
    return {k: v for part in parts for k, v in part.items()}


def named(prefix: str, weights: dict) -> dict:
    return {prefix + k: v for k, v in weights.items()}


def test_densecl_full_checkpoint(tmp_path):
    """OpenSelfSup's file: the encoder twice, the momentum encoder (`--weights teacher`), both queues."""
    torch.manual_seed(0)
    online, momentum = conv.resnet_weights(), conv.resnet_weights()
    queues = {k: torch.zeros(2) for k in ("queue", "queue_ptr", "queue2", "queue2_ptr")}
    state = queues | named("backbone.", online) | named("encoder_q.0.", online) | named("encoder_k.0.", momentum)
    state |= {"encoder_q.1.mlp.0.weight": torch.ones(2), "encoder_k.1.mlp2.0.weight": torch.ones(2)}
    tree = {
        "meta": {"epoch": 200},
        "state_dict": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    }
    torch.save(tree, tmp_path / "full.pth")
    torch.save({"state_dict": online, "author": "DenseCL"}, tmp_path / "online.pth")
    torch.save({"state_dict": momentum, "author": "DenseCL"}, tmp_path / "momentum.pth")
    full = load(tmp_path / "full.pth")
    assert open_checkpoint(tmp_path / "full.pth").reading.format == "densecl"
    assert full.fingerprint == load(tmp_path / "online.pth").fingerprint
    teacher = load(tmp_path / "full.pth", weights="teacher")
    assert teacher.fingerprint == load(tmp_path / "momentum.pth").fingerprint != full.fingerprint


TWO_NETWORKS = [("mocov2", "teacher"), ("moby", "teacher"), ("dino_resnet50", "student"), ("pixpro", "teacher")]
TWO_NETWORKS += [("mocov3_resnet", "teacher"), ("mmpretrain_resnet", "teacher"), ("ibot_swin", "student")]


@pytest.mark.parametrize(("name", "other"), TWO_NETWORKS)
def test_the_other_network(name, other, tmp_path):
    path, _ = format_example(name, tmp_path)
    default, chosen = open_checkpoint(path), open_checkpoint(path, weights=other)
    assert chosen.reading.format == name
    assert chosen.card == default.card
    assert build(chosen)(torch.randn(1, 3, 64, 64)).image.isfinite().all()
    state, _ = read_file(path)
    kept = {k for k in state.split() if k not in chosen.reading.dropped}
    assert kept
    assert kept.isdisjoint(k for k in state if k not in default.reading.dropped)


@pytest.mark.parametrize("name", conv.SAME_NETWORK)
def test_formats_of_one_network(name, tmp_path):
    """The tests of tasks go over `vicreg` and `moby` for these: their cards are the same."""
    other = "moby" if "swin" in name else "vicreg"
    cards = [open_checkpoint(format_example(n, tmp_path)[0], format=n).card for n in (name, other)]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("name", ["swin", "resnet"])
def test_fine_tuned_by_us(name, tmp_path):
    """The backbone of a detector (TimmSwin, TimmResNet): without final norm, with norms of its outputs beside it."""
    torch.manual_seed(0)
    weights = conv.swin_weights() if name == "swin" else conv.resnet_weights()
    weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
    torch.save({"state_dict": weights}, tmp_path / "plain.pth")
    state = named("backbone.net.", weights) | {"rpn_head.rpn_cls.weight": torch.ones(2)}
    state |= {f"backbone.norm{i}.weight": torch.ones(8 << i) for i in range(4)} if name == "swin" else {}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "epoch_12.pth")
    checkpoint = open_checkpoint(tmp_path / "epoch_12.pth")
    assert checkpoint.reading.format == "mm_finetuned"
    assert checkpoint.fingerprint == open_checkpoint(tmp_path / "plain.pth").fingerprint
    assert build(checkpoint).card.family == name


def test_one_network_only(tmp_path):
    path, _ = format_example("swav", tmp_path)
    with pytest.raises(UserError, match="--weights teacher"):
        open_checkpoint(path, weights="teacher")


@pytest.mark.parametrize("how", ["pickle", "torch"])
@pytest.mark.parametrize("pyramid", [True, False])
def test_detectron2_names_are_the_same_network(how, pyramid, tmp_path):
    """MoCo's converter pickles NumPy arrays, ReSim's saves them with torch: both give the converted file's network."""
    torch.manual_seed(0)
    tree = conv.detectron2_tree(pyramid)
    torch.manual_seed(0)
    torch.save({"state_dict": conv.resnet_weights(), "author": "DenseCL"}, tmp_path / "plain.pth")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(tree)) if how == "pickle" else torch.save(tree, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.reading.format == "resim"
    assert not checkpoint.rivals
    assert checkpoint.fingerprint == open_checkpoint(tmp_path / "plain.pth").fingerprint
    tree["model"]["res3.0.mystery"] = np.ones(3, np.float32)
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match="mystery"):
        open_checkpoint(path)


def test_moco_v1_and_resim_heads(tmp_path):
    """MoCo v1 has a linear head; a feature pyramid makes it ReSim's, and MoCo does not take it."""
    torch.save(conv.moco_tree(("fc.weight",)), tmp_path / "v1.pth")
    assert open_checkpoint(tmp_path / "v1.pth").reading.format == "mocov2"
    torch.save(conv.moco_tree(("fc.0.weight", "fpn_lateral5.weight", "fpn_output4.weight")), tmp_path / "fpn.pth")
    assert open_checkpoint(tmp_path / "fpn.pth").reading.format == "resim"
    with pytest.raises(UserError, match="fpn_lateral5"):
        open_checkpoint(tmp_path / "fpn.pth", format="mocov2")


def test_moby_deit(tmp_path):
    """A ViT under the same wrapper; heads are those of DeiT-S at its size only."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    weights = network.state_dict()
    model = named("encoder.", weights) | named("encoder_k.", weights) | {"queue1": torch.zeros(2)}
    torch.save({"model": model}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth", card={"heads": 2})
    assert (checkpoint.reading.format, checkpoint.card.family) == ("moby", "vit")
    assert open_checkpoint(tmp_path / "x.pth").lacking
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = network.eval().forward_features(x)[:, 0]
        assert relative(build(checkpoint)(x).image, expected) < PARITY


def test_timm_says_its_own_normalisation(tmp_path):
    """config.json's mean and std; one ResNet-34 of timm wants 0.5, so that a bare one is not taken for granted."""
    torch.manual_seed(0)
    torch.save(conv.resnet_weights(), tmp_path / "model.pth")
    config = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path / "model.pth")
    assert checkpoint.reading.format == "timm_resnet"
    assert (checkpoint.card.mean, checkpoint.card.std) == ((0.5,) * 3, (0.25,) * 3)
    (tmp_path / "config.json").unlink()
    card = Card("resnet", block="basic", blocks=(3, 4, 6, 3), stem_channels=64, widths=(4,) * 4, bn_eps=1e-5)
    torch.save(timm_network(card).state_dict(), tmp_path / "resnet34.pth")
    assert open_checkpoint(tmp_path / "resnet34.pth").rivals
    assert (
        "nothing says how images are normalised"
        in open_checkpoint(tmp_path / "resnet34.pth", format="timm_resnet").lacking[0]
    )
