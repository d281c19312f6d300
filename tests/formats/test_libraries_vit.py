"""ViTs as other libraries save them: the network that is taken, its features by its forward, what is asked."""

import argparse

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer

import reference_vit as plain
from format_examples import example_vit, format_example
from format_examples.ports import names_since_5
from layouts import PARITY, relative
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.checkpoints.open import build, ready
from selfpatch_bench.benchmarks.formats import lightly_train, solo
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
GIVEN = {"heads": 2, "mean": 0.5, "std": 0.5}


def perturbed(network):
    """The network with every parameter moved, so that each shows in the features."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network.eval()


def flat(node, name="") -> dict:
    """Tensors of nested dicts by dotted name."""
    if isinstance(node, torch.Tensor):
        return {name: node}
    inner = node.items() if isinstance(node, dict) else ()
    return {k: v for key, value in inner for k, v in flat(value, f"{name}.{key}" if name else str(key)).items()}


def put(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


def same(path, image_vector, maps, sizes=((32, 32), (40, 64)), **facts):
    """The file's features are these functions' of an image, at every size."""
    encoder = load(path, **facts)
    for size in sizes:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            found, image, tokens = encoder(images), image_vector(images), maps(images)
        assert relative(found.image, image) < PARITY
        assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens) < PARITY
    return encoder


@pytest.fixture(scope="module")
def classifier():
    return VisionTransformer(**TINY, num_classes=5).state_dict()


@pytest.mark.parametrize("wrapper", ["model_state_dict", "model", "net", "state_dict", "state_dict.model", "teacher"])
def test_a_classifier_below_a_prefix_is_nobodys(wrapper, classifier, tmp_path):
    """Any trainer puts a head into a ViT that it took from DINO or timm; a flat file with one is timm's."""
    path = tmp_path / "x.pth"
    torch.save(
        {**put(classifier, f"{wrapper}."), "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}}, path
    )
    with pytest.raises(UserError, match="could be dino or timm"):
        ready(open_checkpoint(path, card=GIVEN))
    beside = {"loss": torch.tensor(0.5), "classifier.weight": torch.ones(5, 24)}
    torch.save(put(classifier, f"{wrapper}.") | beside, path)
    with pytest.raises(UserError, match="could be dino or timm"):
        ready(open_checkpoint(path, card=GIVEN))
    for format in ("dino", "timm"):
        assert open_checkpoint(path, card=GIVEN, format=format).reading.card.pos_resize == format
    torch.save(classifier, path)
    assert (open_checkpoint(path, card=GIVEN).reading.format, open_checkpoint(path, card=GIVEN).rivals) == ("timm", [])


def test_lone_numbers_beside_a_network_are_training_state(classifier, tmp_path):
    """As PyTorch's ImageNet example and AveragedModel save them."""
    path = tmp_path / "x.pth"
    numbers = {"best_acc1": torch.tensor(71.5), "epoch": torch.tensor([3]), "lr_scheduler_state_dict": {}}
    mean = {k: 2 * v for k, v in classifier.items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"model_state_dict": classifier, "ema": {f"module.{k}": v for k, v in mean.items()}} | numbers, path)
    with pytest.raises(UserError, match=r"2 networks: model_state_dict. \(dino or .*\), ema. \(timm\): take one"):
        open_checkpoint(path, card=GIVEN)
    with pytest.raises(UserError, match="could be dino or timm"):
        ready(open_checkpoint(path, card=GIVEN, part="model_state_dict"))
    for given, factor in (({"weights": "ema"}, 2), ({"part": "model_state_dict"}, 1)):
        found = open_checkpoint(path, card=GIVEN, format="timm", **given)
        assert torch.equal(found.reading.weights["norm.weight"], factor * classifier["norm.weight"])
    torch.save({"model_state_dict": classifier} | numbers, path)
    found = open_checkpoint(path, card=GIVEN, format="timm")
    assert found.accounting.endswith("4 dropped (2 head, 2 training state)")


def test_deit_with_a_distillation_token(tmp_path):
    """timm's and Facebook's names: both tokens make the image vector, as both heads' mean is what is evaluated."""
    network = perturbed(VisionTransformerDistilled(**TINY, num_classes=5))
    torch.save({"model": (tree := network.state_dict())}, tmp_path / "deit.pth")

    def both(images):
        return network.forward_head(network.forward_features(images), pre_logits=True)

    encoder = same(tmp_path / "deit.pth", both, lambda x: network.forward_features(x)[:, 2:], **GIVEN)
    assert (encoder.card.registers, encoder.card.readout) == (1, "token_pair")
    mean = {k: v * 1.5 for k, v in tree.items()}
    args = argparse.Namespace(model="deit_tiny_distilled_patch16_224")
    torch.save({"model": tree, "model_ema": mean, "optimizer": {}, "args": args}, tmp_path / "run.pth")
    for weights, factor in ((None, 1), ("ema", 1.5)):
        found = open_checkpoint(tmp_path / "run.pth", card=GIVEN, weights=weights)
        assert torch.equal(found.reading.weights["norm.bias"], tree["norm.bias"] * factor)


OWN = {  # format -> (networks by `--weights`, the default first, and their factors; how a square is resized)
    "ijepa": ({"teacher": 1.0, "student": 1.5}, None),
    "msn": ({"teacher": 1.0, "student": 1.5}, "size"),
    "solo": ({"student": 1.0, "teacher": 1.5}, "antialias"),
    "lightly": ({"teacher": 1.0, "student": 1.5}, "antialias"),
    "lightly_train": ({"teacher": 1.0, "student": 1.5}, "antialias"),
}
PREFIX = {"ijepa": "target_encoder.module.", "msn": "target_encoder.module.", "solo": "state_dict.backbone."}
PREFIX |= {"lightly": "state_dict.backbone.vit.", "lightly_train": f"state_dict.teacher_{lightly_train.INNER}"}


@pytest.mark.parametrize("name", OWN)
def test_a_library_s_training_file_gives_the_network_that_it_evaluates(name, tmp_path):
    """The default network and the other one, by a plain float64 ViT; bare, wrapped, in half precision; and no format
    besides claims it."""
    torch.manual_seed(1)
    path, facts = format_example(name, tmp_path)
    weights, resize = OWN[name]
    tree = torch.load(path, weights_only=False)
    for asked, factor in [(None, 1.0), *weights.items()]:
        checkpoint = open_checkpoint(path, card=facts, weights=asked)
        assert (checkpoint.reading.format, checkpoint.rivals) == (name, [])
        names = {k: v * (factor if v.is_floating_point() else 1) for k, v in flat(tree).items()}
        net = plain.timm_names(names, PREFIX[name], 2, **({"resize": resize} if resize else {}))
        for size in ((32, 32), (48, 48))[: 1 + bool(resize)]:
            images = torch.randn(1, 3, *size)
            token, patches = plain.features(net, images)
            found = build(checkpoint)(images)
            assert relative(found.patches[0], patches) < PARITY
            token = None if name == "lightly_train" else token
            assert relative(found.image, patches.mean((2, 3)) if token is None else token) < PARITY
    state = {k: v.half() for k, v in flat(tree).items()}
    torch.save({"net": {f"_orig_mod.{k}": v for k, v in state.items() if "opt." not in k}}, path)
    again = open_checkpoint(path, card=facts)
    assert (again.reading.format, len(again.reading.weights)) == (name, len(checkpoint.reading.weights))


def hugging_face(tree: dict, before: dict, beside: dict) -> dict:
    """Names of transformers 5 in memory below `model.vit.`, with what lies around."""
    return {f"model.vit.{k}": v for k, v in (tree | before).items()} | {f"model.{k}": v for k, v in beside.items()}


@pytest.mark.parametrize("kind", ["vit", "mae", "deit", "ijepa"])
def test_transformers_vits_below_any_wrapper_and_beside_their_heads(kind, tmp_path):
    """Class token, class and distillation token (whose position is its own), or none; positions resized by size."""
    torch.manual_seed(5)
    tree = names_since_5(example_vit(class_token=kind != "ijepa"))
    own, heads = {}, {"classifier.weight": torch.ones(5, 24)}
    if kind == "deit":
        row = torch.randn(1, 1, 24)
        positions = tree["embeddings.position_embeddings"]
        tree["embeddings.position_embeddings"] = torch.cat([positions[:, :1], row, positions[:, 1:]], 1)
        own["embeddings.distillation_token"] = torch.randn(1, 1, 24)
        heads = {"cls_classifier.weight": torch.ones(5, 24), "distillation_classifier.weight": torch.ones(5, 24)}
    if kind == "mae":
        heads = {"decoder.mask_token": torch.ones(1, 1, 8), "decoder.decoder_encoder.layer.0.x": torch.ones(2)}
    state = hugging_face(tree, own, heads)
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(5)}, "optimizer_states": []}, tmp_path / "x.ckpt")
    checkpoint = open_checkpoint(tmp_path / "x.ckpt", card=GIVEN)
    assert (checkpoint.reading.format, checkpoint.rivals) == ("hf_vit", [])
    assert "norm_eps 1e-12 (assumed), act gelu (erf) (assumed)" in checkpoint.assumed
    if kind == "deit":
        positions = tree["embeddings.position_embeddings"]
        tree["embeddings.register_tokens"] = own["embeddings.distillation_token"] + row
        tree["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], 1)
    net = plain.hugging_face(tree, "", 2, resize="size", eps=1e-12)
    for size in ((32, 32), (40, 64)):
        images = torch.randn(1, 3, *size)
        (token, patches), found = plain.features(net, images), build(checkpoint)(images)
        assert relative(found.patches[0], patches) < PARITY
        assert relative(found.image, patches.mean((2, 3)) if token is None else token) < PARITY
    two = {f"{side}.{k}": v for side in ("student", "teacher") for k, v in state.items()}
    torch.save({"state_dict": two}, tmp_path / "two.ckpt")
    with pytest.raises(UserError, match=r"2 networks: state_dict.student.model.vit. \(hf_vit\), .* take one by --part"):
        open_checkpoint(tmp_path / "two.ckpt", card=GIVEN)
    part = open_checkpoint(tmp_path / "two.ckpt", card=GIVEN, part="state_dict.teacher")
    assert part.fingerprint == checkpoint.fingerprint


def test_deit_iii_has_bare_names_of_its_layer_scale(tmp_path):
    """And no position of the class token."""
    network = perturbed(VisionTransformer(**TINY, num_classes=5, init_values=0.1, no_embed_class=True))
    tree = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in network.state_dict().items()
    }
    torch.save({"model": tree}, tmp_path / "deit3.pth")

    def token(images):
        return network.forward_head(network.forward_features(images), pre_logits=True)

    same(tmp_path / "deit3.pth", token, lambda x: network.forward_features(x)[:, 1:], **GIVEN)


def layers(*names: str) -> dict:
    return {f"{name}.weight": torch.ones(5, 24) for name in names}


MODULES = {  # what a method keeps -> format, network that is evaluated; `V`: a masked ViT, `T`: timm's, `R`: a ResNet
    "dinov2": ("lightly", "teacher", "teacher_backbone:V student_backbone:V student_dino_head teacher_ibot_head"),
    "ibot": (
        "lightly",
        "teacher",
        "teacher_backbone:V student_backbone:V teacher_head.head student_head cls_loss.center",
    ),
    "mae": ("lightly", None, "backbone:V decoder.decoder_embed online_classifier.linear"),
    "moco": ("lightly", "student", "backbone:V backbone_momentum:V projection_head projection_head_momentum"),
    "byol": ("lightly_resnet", "student", "backbone:R teacher_backbone:R prediction_head online_classifier.linear"),
    "mocov2": (
        "lightly_resnet",
        "teacher",
        "backbone:R query_backbone:R query_projection_head online_classifier.linear",
    ),
    "simclr": ("solo", "student", "backbone:T classifier projector.0"),
    "swav": ("solo", "student", "backbone:R classifier projector.0 prototypes queue"),
    "all4one": (
        "solo",
        "student",
        "backbone:R momentum_backbone:R classifier predictor2.0 transformer_encoder.layers.0",
    ),
    "distillation": (
        "lightly_train",
        "student",
        f"student_{lightly_train.INNER}:T student_projection_head teacher_queue",
    ),
    "resnet": ("lightly_train", None, f"{lightly_train.FEATURES}:R projection_head.layers.0"),
    "densecl": ("lightly_train", None, f"{lightly_train.INNER}:T key_encoder.{lightly_train.INNER}:T memory_bank.bank"),
}


@pytest.fixture(scope="module")
def networks():
    timm = example_vit()
    resnet = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=0, channels=(2, 4, 8, 16)).state_dict()
    return {"V": put(timm, "vit.") | {"mask_token": torch.ones(1, 1, 24)}, "T": timm, "R": resnet}


@pytest.mark.parametrize("method", MODULES)
def test_a_lightning_module_s_parts_say_which_network_is_evaluated(method, networks, tmp_path):
    format, network, parts = MODULES[method]
    pairs = [part.partition(":")[::2] for part in parts.split()]
    state = layers(*(name for name, kind in pairs if not kind))
    for number, (name, kind) in enumerate((n.rstrip("."), kind) for n, kind in pairs if kind):
        state |= {f"{name}.{k}": v + number for k, v in networks[kind].items()}
    torch.save({"state_dict": state, "global_step": 3, "optimizer_states": []}, tmp_path / "x.ckpt")
    checkpoint = open_checkpoint(tmp_path / "x.ckpt", card={"heads": 2} if pairs[0][1] != "R" else {})
    assert (checkpoint.reading.format, checkpoint.rivals, checkpoint.reading.network) == (format, [], network)
    first = networks[pairs[0][1]]
    for name, value in checkpoint.reading.weights.items():
        assert torch.equal(value, first.get(name, first.get(f"vit.{name}")))


def test_solo_s_configuration_says_the_heads_of_mae():
    """12 up to ViT-B in MAE and MoCo v3, where timm's small ViT has 6; only if the width is that of the name."""
    stated = {"method": "mae", "backbone": {"name": "vit_small"}}
    assert [solo._heads(stated | {"method": m}, 384) for m in ("mae", "mocov3", "dino")] == [12, 12, 6]
    assert (solo._heads(stated, 768), solo._heads({}, 384)) == (None, None)
