"""Networks of relative or stored rotary positions, XCiT and ConvNeXt: against timm's, torchvision's and plain code."""

import json
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.xcit import Xcit
from torch import nn
from torchvision.models import VisionTransformer

from format_examples import families, format_example
from layouts import PARITY, relative
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.build import encoder_for
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.pictures.maps import attention
from selfpatch_bench.benchmarks.results.collect import backbone_name
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def perturbed(network: nn.Module) -> nn.Module:
    """The network with random weights of which each one shows in the features."""
    for value in network.parameters():
        value.add_(0.2 * torch.randn_like(value))
    return network.eval()


def saved(tree, tmp_path, name="x.pth"):
    torch.save(tree, tmp_path / name)
    return tmp_path / name


# --- torchvision's ViT

WRAPPED = {
    "flat": lambda state: state,
    "training": lambda state: {
        "model": state,
        "model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": 2 * v for k, v in state.items()},
        "optimizer": {"state": {}},
        "epoch": 3,
    },
    "lightning": lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()}, "global_step": 5},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_torchvision_vit(wrapping, tmp_path):
    network = perturbed(VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=5))
    path = saved(WRAPPED[wrapping](network.state_dict()), tmp_path)
    encoder, x = load(path, heads=2), torch.randn(2, 3, 32, 32)
    tokens = network._process_input(x)
    tokens = network.encoder(torch.cat([network.class_token.expand(2, -1, -1), tokens], 1))
    found = encoder(x)
    assert relative(found.image, tokens[:, 0]) < PARITY
    assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY
    if wrapping == "training":
        averaged = open_checkpoint(path, card={"heads": 2}, weights="ema")
        assert relative(averaged.reading.weights["cls_token"], 2 * network.class_token) == 0


# --- BEiT


def beit(shared: bool, pooled: bool, grid=(4, 4)) -> Beit:
    """timm's network; grid: patches of its images."""
    size, kind = tuple(8 * n for n in grid), {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared}
    pool = {"global_pool": "avg" if pooled else "token", "num_classes": 3, "init_values": 0.1, "mlp_ratio": 2.0, **kind}
    return Beit(size, 8, embed_dim=24, depth=2, num_heads=2, qkv_bias=True, use_abs_pos_emb=False, **pool)


def resized(state: dict, grid: tuple[int, int]) -> dict:
    """Tables of a 4 x 4 grid for another: bilinear, the class token's three entries kept."""
    out = dict(state)
    for name in state:
        if name.endswith("_table"):
            places = state[name][:-3].T.reshape(1, 2, 7, 7)
            places = F.interpolate(places, size=[2 * n - 1 for n in grid], mode="bilinear")
            out[name] = torch.cat([places.flatten(2)[0].T, state[name][-3:]])
    return out


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_beit(shared, pooled, tmp_path):
    """timm's own forward at the stored grid, and at another with tables that were resized; official buffers beside."""
    network = perturbed(beit(shared, pooled))
    state = dict(network.state_dict())
    homes = ["rel_pos_bias"] if shared else [f"blocks.{i}.attn" for i in range(2)]
    index = (network.rel_pos_bias if shared else network.blocks[0].attn).relative_position_index
    official = {f"{home}.relative_position_index": index for home in homes}
    path = saved({"model": state | official, "model_ema": {"a": torch.ones(2)}, "optimizer": {}}, tmp_path)
    encoder = load(path, mean=0.5, std=0.5)
    assert encoder.card.heads == 2
    for grid in ((4, 4), (3, 5)):
        other, x = beit(shared, pooled, grid), torch.randn(2, 3, *(8 * n for n in grid))
        other.load_state_dict(resized(state, grid))
        other.eval()
        found, tokens = encoder(x), other.forward_features(x)
        assert relative(found.image, other.forward_head(tokens, pre_logits=True)) < PARITY
        assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY
        assert encoder.pos_rule(tuple(x.shape[-2:])) == ("window" if grid == (4, 4) else "bilinear (assumed)")
    official[f"{homes[-1]}.relative_position_index"] = index.flip(0)
    with pytest.raises(UserError, match="orders relative positions in another way"):
        open_checkpoint(saved({"model": state | official}, tmp_path))


@pytest.mark.parametrize("kind", ["relative 4x4", "relative 4x4, shared"])
def test_what_a_class_token_attends_to(kind):
    """The map of its attention has the bias of relative positions: by the values that the attention itself weighs."""
    card = Card("vit", 8, 24, 1, 2, pos=kind, pos_resize="window")
    encoder, x = encoder_for(card), torch.randn(1, 3, 24, 40)
    perturbed(encoder)
    seen = {}
    attn = encoder.vit.blocks[0].attn
    attn.proj.register_forward_pre_hook(lambda module, inputs: seen.update(out=inputs[0]))
    tokens = encoder.vit.blocks[0].norm1(encoder.embed(x))
    attn(tokens)
    values = attn.qkv(tokens).unflatten(-1, (3, 2, 12))[0, :, 2]
    to_patches = attention(encoder, x).flatten(2)[0]
    whole = torch.cat([1 - to_patches.sum(-1, keepdim=True), to_patches], -1)
    assert relative(torch.einsum("hn,nhd->hd", whole, values).flatten(), seen["out"][0, 0]) < PARITY


@pytest.mark.parametrize(
    ("args", "extra", "mean"),
    [
        ({"imagenet_default_mean_and_std": True}, {}, 0.485),
        ({"imagenet_default_mean_and_std": False}, {"cls_pt_layers.0.norm1.weight": 24}, 0.5),
        (None, {"cls_pt_layers.0.norm1.weight": 24, "lm_head.weight": 24}, 0.485),
        (None, {"lm_head.weight": 24}, 0.5),
        (None, {"head.weight": 24}, None),
    ],
)
def test_mean_and_std_of_beit(args, extra, mean, tmp_path):
    """The training's arguments, BEiT v2's late class token, the pretraining's head: a classifier alone says nothing."""
    state = families.beit_names(families.example_vit(**families.RELATIVE)) | {
        k: torch.ones(n) for k, n in extra.items()
    }
    found = open_checkpoint(saved({"model": state} | ({"args": args} if args else {}), tmp_path)).card.mean
    assert (found and found[0]) == mean


def test_what_no_name_tells_of_a_bare_file_is_assumed(tmp_path):
    """Blurred pooling of a ResNet of basic blocks, another GELU, rotary positions: the names are the same."""
    resnet = timm.create_model("resnetblur18", channels=(8, 8, 16, 16), num_classes=3).state_dict()
    assert open_checkpoint(saved(resnet, tmp_path)).assumed == "block basic (assumed)"
    convnext = timm.create_model("test_convnext").state_dict()
    assert "act gelu (erf) (assumed)" in open_checkpoint(saved(convnext, tmp_path)).assumed
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    state = families.example_vit(layer_scale=True)
    for positions, change in ((False, {}), (True, names)):
        for old, new in change.items():
            state = {k.replace(old, new): v for k, v in state.items()}
        assert ("pos learned" in open_checkpoint(saved(state, tmp_path), format="timm").assumed) == positions


def test_convnext_of_pointwise_convolutions(tmp_path):
    """timm's smaller ConvNeXts, named and not."""
    network = perturbed(timm.create_model("convnext_atto", dims=(8, 16, 16, 24), num_classes=3))
    path, x = saved(network.state_dict(), tmp_path), torch.randn(1, 3, 64, 96)
    found, maps = load(path)(x), network.forward_features(x)
    assert relative(found.image, network.forward_head(maps, pre_logits=True)) < PARITY
    named = {"arch": "convnext_atto", "args": {"model": "convnext_atto", "model_kwargs": {"dims": [8, 16, 16, 24]}}}
    again = load(saved(named | {"state_dict": network.state_dict(), "epoch": 1}, tmp_path, "named.pth"))
    assert torch.equal(again(x).image, found.image)


def test_transformers_networks_go_by_their_model_type(tmp_path):
    """A ViT without biases of query, key and value is no BEiT, with a config.json or without."""
    folder, _ = format_example("hf_vit", tmp_path)
    state = load_file(folder / "model.safetensors")
    state = {k: v for k, v in state.items() if not re.search(r"(query|key|value)\.bias$", k)}
    found = open_checkpoint(saved(state, tmp_path), card={"heads": 2})
    assert (found.reading.format, found.card.qkv_bias) == ("hf_vit", False)
    beit, _ = format_example("hf_beit", tmp_path)
    config = json.loads((beit / "config.json").read_text())
    (beit / "config.json").write_text(json.dumps(config | {"model_type": "videomae"}))
    with pytest.raises(UserError, match="model_type videomae, which is not read here"):
        open_checkpoint(beit)


def test_hugging_face_beit_is_the_same_network(tmp_path):
    """The example's classifier in both namings, and its tables for every size by the library's own rule."""
    path, _ = format_example("hf_beit", tmp_path)
    encoder = load(path)
    names = {"encoder.layer.": "layers.", ".attention.attention.relative": ".relative", "intermediate.dense": "mlp.fc1"}
    names |= {"attention.output.dense": "attention.o_proj", ".output.dense": ".mlp.fc2"}
    names |= {f"attention.attention.{n}": f"attention.{n[0]}_proj" for n in ("query", "key", "value")}
    state = load_file(path / "model.safetensors")
    for old, new in names.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    again = load(saved(state, tmp_path), norm_eps=1e-12, mean=0.5, std=0.5)
    assert again.fingerprint == encoder.fingerprint
    own = {f"layernorm.{p}": state[f"beit.layernorm.{p}"] for p in ("weight", "bias")}
    rest = {
        k: v for k, v in state.items() if k.removeprefix("beit.") not in own
    }  # masked pretraining: the norm beside it
    for pretrained in (rest | own, state | {k: v + 1 for k, v in own.items()}):
        masked = open_checkpoint(saved(pretrained | {"lm_head.weight": torch.ones(5, 24)}, tmp_path, "mim.pth"))
        assert masked.fingerprint == encoder.fingerprint
    assert encoder.pos_rule((24, 40)) == encoder.pos_rule((32, 32)) == "bilinear"
    weights = families.beit_names(dict(encoder.vit.state_dict()))
    other, x = beit(False, False, (3, 5)).eval(), torch.randn(1, 3, 24, 40)
    assert not other.load_state_dict(resized(weights, (3, 5)), strict=False).unexpected_keys
    for module in other.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    tokens = other.forward_features(x)
    assert relative(encoder(x).image, tokens[:, 0]) < PARITY
    assert relative(encoder(x).patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pos_embed": (1, 17, 24)}, "positions of two kinds"),
        ({"blocks.0.attn.relative_position_bias_table": (53, 2)}, "not of a square grid"),
        ({"blocks.1.attn.relative_position_bias_table": (52, 3)}, r"\[52, 3\] instead of \[52, 2\]"),
        ({"blocks.1.attn.v_bias": (7,)}, "no v_bias of the same shape"),
        ({"blocks.1.attn.q_norm.weight": (12,)}, "q_norm"),
    ],
)
def test_impossible_beits_are_refused(change, words, tmp_path):
    state = families.beit_names(families.example_vit(**families.RELATIVE))
    path = saved(state | {k: torch.ones(shape) for k, shape in change.items()}, tmp_path)
    with pytest.raises(UserError, match=words):
        open_checkpoint(path, card={"mean": 0.5, "std": 0.5})


def test_a_rule_for_other_positions_is_refused():
    with pytest.raises(UserError, match="pos_resize=dino is no rule for positions that are relative 4x4"):
        Card("vit", 8, 24, 2, 2, pos="relative 4x4", pos_resize="dino")
    with pytest.raises(UserError, match="pos_resize=window is no rule for positions that are learned 4x4"):
        Card("vit", 8, 24, 2, 2, pos="learned 4x4", pos_resize="window")
    card = Card("vit", 8, 24, 2, 2, pos="relative 4x4, shared", pos_resize="window")
    assert Card.from_dict(card.as_dict()) == card
    assert not {"norm", "proj_bias"} & card.as_dict().keys()  # as the cards of all records are


# --- CAPI


def plain_capi(state: dict, x: torch.Tensor) -> torch.Tensor:
    """Normed tokens by facebookresearch/capi's model.py, written out for one image, 2 heads and 4 registers."""
    rows, columns = (side // 8 for side in x.shape[-2:])
    tokens = F.conv2d(x, state["patch_embed.weight"], state["patch_embed.bias"], stride=8).flatten(2)[0].T
    places = [(i / (rows - 1), j / (columns - 1)) for i in range(rows) for j in range(columns)]
    at = torch.tensor([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), *places])
    tokens = torch.cat([state["registers"][0], tokens])
    for i in range(2):
        own = {
            k.removeprefix(f"encoder.blocks.{i}."): v for k, v in state.items() if k.startswith(f"encoder.blocks.{i}.")
        }
        angle = at @ own["residual1.fn.rope.freqs"]
        y = F.rms_norm(tokens, (24,), own["residual1.norm.weight"], 1e-5)
        q, k, v = ((y @ own[f"residual1.fn.{n}_proj.weight"].T).view(-1, 2, 12).transpose(0, 1) for n in "qkv")
        q, k = (t * angle.cos() + torch.cat([-t[..., 6:], t[..., :6]], -1) * angle.sin() for t in (q, k))
        y = (q @ k.transpose(1, 2) / 12**0.5).softmax(-1) @ v
        tokens = tokens + y.transpose(0, 1).flatten(1) @ own["residual1.fn.proj.weight"].T
        y = F.rms_norm(tokens, (24,), own["residual2.norm.weight"], 1e-5) @ own["residual2.fn.fc1.weight"].T
        tokens = tokens + F.gelu(y) @ own["residual2.fn.fc2.weight"].T
    return F.rms_norm(tokens, (24,), None, 1e-5)


def test_capi(tmp_path):
    """Square and rectangular images; a training file, whose average is taken, and the student where it is asked for."""
    path, _ = format_example("capi", tmp_path)
    state = {k.removeprefix("backbone."): v for k, v in torch.load(path).items()}
    student = {k: 1.5 * v for k, v in state.items()}
    model = {f"{n}.backbone.{k}": v for n in ("student_ema", "teacher") for k, v in state.items()}
    model |= {f"student.backbone.{k}": v for k, v in student.items()} | {
        "student.head.last_layer.weight_v": torch.ones(2)
    }
    model |= {"teacher.head.layer.weight": torch.ones(2), "student_ema.head.last_layer.weight_v": torch.ones(2)}
    full = saved({"model": model, "optimizer": {}, "clustering_optimizer": {}, "iteration": 4}, tmp_path)
    for encoder, weights in ((load(path), state), (load(full), state), (load(full, weights="student"), student)):
        for size in ((32, 32), (24, 56)):
            x = torch.randn(1, 3, *size)
            found, tokens = encoder(x), plain_capi(weights, x)
            assert relative(found.patches[0].flatten(2)[0].T, tokens[4:]) < PARITY
            assert relative(found.image[0], tokens[4:].mean(0)) < PARITY
    with pytest.raises(UserError, match="6 registers do not lie evenly"):
        load(saved(state | {"registers": torch.ones(1, 6, 24)}, tmp_path))


# --- EVA-02


@pytest.mark.parametrize(
    "facts",
    [
        {"qkv_fused": True, "scale_mlp": False, "global_pool": "avg"},
        {"qkv_fused": False, "scale_mlp": True, "global_pool": "avg"},
        {"qkv_fused": False, "scale_mlp": True, "scale_attn_inner": True, "global_pool": "token"},
    ],
    ids=["small", "base", "clip"],
)
def test_eva02(facts, tmp_path):
    """timm's forward at any size; what no file says is assumed, and heads are asked for."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 8 / 3}
    rotary = {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (16, 16), "dynamic_img_size": True}
    network = perturbed(Eva(**sizes, **rotary, **facts, num_classes=3))
    path = saved(network.state_dict(), tmp_path)
    with pytest.raises(UserError, match=r"need the number of heads: .* give --heads N"):
        open_checkpoint(path)
    found = open_checkpoint(path, card={"heads": 3})
    assert (found.overrides, found.facts["heads"]) == ({"heads": 3}, "given")
    assert found.warnings == ["unusual: depth 2 (usual: 12, 24, 38)"]
    assert "rope_grid 16 (assumed)" in found.assumed
    assert "mean 0.48145466" in found.assumed
    encoder = load(path, heads=3)
    for size in ((32, 32), (24, 40)):
        x = torch.randn(2, 3, *size)
        found, tokens = encoder(x), network.forward_features(x)
        assert relative(found.image, network.forward_head(tokens, pre_logits=True)) < PARITY
        assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY


# --- XCiT and ConvNeXt


@pytest.mark.parametrize(("dim", "patch"), [(24, 16), (192, 8)])
def test_xcit(dim, patch, tmp_path):
    """timm's forward at any size; official names, and DINO's teacher beside its student."""
    facts = {"patch_size": patch, "embed_dim": dim, "depth": 2, "num_heads": 4}
    network = perturbed(Xcit(img_size=64, num_classes=0, tokens_norm=dim == 192, **facts))
    state = dict(network.state_dict())
    for name in [k for k in state if re.search(r"cls_attn_blocks.*\.q\.", k)]:
        parts = [state.pop(name.replace(".q.", f".{n}.")) for n in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    state = {k.replace("pos_embed.", "pos_embeder."): v for k, v in state.items()}
    head = {"head.mlp.0.weight": torch.ones(2, dim)}
    tree = {"teacher": {f"backbone.{k}": v for k, v in state.items()} | head}
    tree["student"] = {f"module.backbone.{k}": v + 1 for k, v in state.items()} | head
    trees = [state] if dim == 192 else [state, tree, network.state_dict()]
    for path in [saved(tree, tmp_path, f"{i}.pth") for i, tree in enumerate(trees)]:
        encoder = load(path)
        assert encoder.card.tokens_norm == (dim == 192)
        for size in ((64, 64), (40, 72)):
            x = torch.randn(1, 3, *size)
            tokens = network.forward_features(x)
            found = encoder(x)
            assert relative(found.image, tokens[:, 0]) < PARITY
            assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY
            (first,) = encoder.patch_maps(x, [0], norm=False)
            assert relative(first, network.forward_intermediates(x, [0], intermediates_only=True)[0]) < PARITY
    assert "tokens_norm" in open_checkpoint(path).assumed


HUGGING_FACE = (
    (r"^stem\.", "stages.0.downsample_layers."),
    (r"\.downsample\.", ".downsample_layers."),
    (r"\.blocks\.(\d+)\.norm\.", r".layers.\1.layer_norm."),
    (r"\.blocks\.", ".layers."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc", ".pointwise_conv"),
    (r"^head\.norm\.", "layer_norm."),
)


@pytest.mark.parametrize("second", [False, True], ids=["V1", "V2"])
def test_convnext(second, tmp_path):
    """timm's forward at any size in timm's, Hugging Face's and the official names."""
    facts = {"depths": (1, 2, 1, 1), "dims": (8, 16, 16, 24), "ls_init_value": None if second else 1.0}
    network = perturbed(ConvNeXt(num_classes=3, use_grn=second, **facts))
    paths = {"timm": saved(network.state_dict(), tmp_path, "timm.pth")}
    renamed = network.state_dict()
    if not second:
        for old, new in HUGGING_FACE:
            renamed = {re.sub(old, new, k): v for k, v in renamed.items() if not k.startswith("head.fc")}
        paths["hf"] = saved({f"model.{k}" if k.startswith("stages") else k: v for k, v in renamed.items()}, tmp_path)
    for path in paths.values():
        encoder = load(path)
        for size in ((64, 64), (40, 107)):
            x = torch.randn(2, 3, *size)
            found = encoder(x, blocks=[0, 1, 2, 3])
            for stage, other in zip(
                found.patches, network.forward_intermediates(x, intermediates_only=True), strict=True
            ):
                assert relative(stage, other) < PARITY
            assert relative(found.image, network.forward_head(network.forward_features(x), pre_logits=True)) < PARITY
            last = network.head.norm(network.forward_features(x))
            assert relative(encoder(x).patches[0], last) < PARITY
    assert set(open_checkpoint(paths["timm"]).assumed.split()) >= {"mean", "std"}
    with pytest.raises(UserError, match=r"a 24x64 image is smaller than a place of stage4 \(32\)"):
        encoder(torch.zeros(1, 3, 24, 64))


# --- Swin V2


def swinv2(size, **more) -> SwinTransformerV2:
    facts = {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "num_classes": 3}
    return SwinTransformerV2(img_size=size, **facts, **more)


@pytest.mark.parametrize("before", [(0, 0, 0, 0), (6, 6, 6, 3)])
def test_swinv2(before, tmp_path):
    """timm's network of each image's size, in official names, which tell the windows, and in timm's, which do not."""
    network = perturbed(swinv2(64, pretrained_window_sizes=before))
    official = {"model": families.swinv2_names(network), "optimizer": {}, "epoch": 3}
    paths = [saved(official, tmp_path, "official.pth"), saved(network.state_dict(), tmp_path)]
    facts = {"window": 4, "pretrained_windows": ",".join(map(str, before))}
    encoders = [load(paths[0]), load(paths[1], **facts)]
    assert encoders[0].card == encoders[1].card
    assert encoders[0].card.pretrained_windows == before
    assert open_checkpoint(paths[0]).assumed == ""
    for size in ((64, 64), (96, 72), (20, 128), (64, 64)):
        other, x = swinv2(size, pretrained_window_sizes=before).eval(), torch.randn(2, 3, *size)
        other.load_state_dict(network.state_dict())
        maps = other.forward_intermediates(x, intermediates_only=True)
        for encoder in encoders:
            found = encoder(x, blocks=[0, 1, 2, 3])
            for stage, wanted in zip(found.patches, maps, strict=True):
                assert relative(stage, wanted) < PARITY
            last = other.forward_features(x)
            assert relative(found.image, other.forward_head(last, pre_logits=True)) < PARITY
            assert relative(encoder(x).patches[0], last.permute(0, 3, 1, 2)) < PARITY


def test_the_window_of_a_swinv2_is_never_guessed(tmp_path):
    """Named, it is that of timm's network; else it is asked for. Other distances or windows are refused."""
    state = swinv2(64).state_dict()
    path = saved({"state_dict": state, "arch": "other"}, tmp_path)
    with pytest.raises(UserError, match="nothing says how large its windows are: give --card window=N"):
        load(path)
    model = {"embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 2, 4], "pretrained_window_sizes": [6, 6, 6, 3]}
    args = {"model": "swinv2_tiny_window8_256", "model_kwargs": model}
    card = open_checkpoint(saved({"state_dict": state, "arch": args["model"], "args": args}, tmp_path)).card
    assert (card.window, card.pretrained_windows) == (8, (6, 6, 6, 3))
    stored = families.swinv2_names(swinv2(64))
    name = "layers.1.blocks.0.attn.relative_"
    for key, value, words in (
        ("coords_table", stored[f"{name}coords_table"] + 0.1, "holds other distances"),
        ("coords_table", stored["layers.3.blocks.0.attn.relative_coords_table"], "of another window"),
        ("position_index", stored[f"{name}position_index"].flip(0), "orders relative positions in another way"),
    ):
        with pytest.raises(UserError, match=words):
            open_checkpoint(saved(stored | {name + key: value}, tmp_path))


@pytest.mark.parametrize(
    "name", ["torchvision_vit", "beit", "hf_beit", "capi", "xcit", "timm_eva", "convnext", "timm_swinv2"]
)
def test_an_export_is_the_same_network(name, tmp_path):
    """What `convert` writes: timm's names with a card beside them, which is then the whole of the evidence."""
    path, facts = format_example(name, tmp_path)
    found = open_checkpoint(path, card=facts)
    save_weights(tmp_path / "own.safetensors", found.reading.weights, found.card)
    again = open_checkpoint(tmp_path / "own.safetensors")
    assert (again.reading.format, again.rivals) == ("selfpatch_bench", [])
    assert (again.fingerprint, again.card) == (found.fingerprint, found.card)


@pytest.mark.parametrize("name", ["xcit", "convnext"])
def test_lost_blocks_and_other_kernels(name, tmp_path):
    """What is no whole network, or of sizes that it is not built with, is refused in one line."""
    path, _ = format_example(name, tmp_path)
    state = torch.load(path)
    block = {"xcit": "blocks.1.", "convnext": "stages.2.1."}[name]
    gap = {k.replace(block, block.replace("1.", "2.")): v for k, v in state.items()}
    kernel = next(k for k in state if k.endswith(("dwconv.weight", "local_mp.conv1.weight")))
    bad = {kernel: torch.ones(*state[kernel].shape[:2], 5, 5)}
    for tree in (gap, state | bad):
        with pytest.raises(UserError) as error:
            open_checkpoint(saved(tree, tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (families.XCIT, "XCiT-242/8"),  # 24 wide, 2 blocks
        (Card("xcit", patch=8, dim=384, depth=12, heads=8, cls_depth=2, tokens_norm=True), "XCiT-S12/8"),
        (families.CONVNEXT, "ConvNeXt-8"),
        (families.SWINV2, "SwinV2-8"),
    ],
)
def test_names_and_cards(card, name):
    """What a table calls a network; a card survives JSON, and says whether its maps are those of stages."""
    assert backbone_name(card.as_dict()) == name
    assert Card.from_dict(card.as_dict()) == card
    assert card.staged == (card.family in ("convnext", "swinv2"))
