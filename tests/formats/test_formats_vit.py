"""ViT formats: features against a plain network that reads the original names, networks to choose from, positions."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import reference_vit as plain
from conftest import shared_cases
from format_examples import example_vit, format_example, ports
from format_examples import vit as examples
from layouts import PARITY, layouts, relative, tiny
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints.open import build
from selfpatch_bench.benchmarks.checkpoints.state import State
from selfpatch_bench.benchmarks.checkpoints.stated import heads_from
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.formats import _sincos, alone_vit
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.opened import describe
from selfpatch_bench.benchmarks.run.runner import Options, plan, run
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.positions import resize_positions, resizing

SIZES = ((32, 32), (48, 48), (24, 56))  # the examples' stored grid, a larger square one, another shape


def flat(node, name="") -> dict:
    """Tensors of nested dicts by dotted name; a name's own dots stay."""
    if isinstance(node, torch.Tensor):
        return {name: node}
    out = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        out |= flat(value, f"{name}.{key}" if name else str(key))
    return out


def names_of(path) -> dict:
    if path.is_dir():
        from safetensors.torch import load_file

        return load_file(path / "model.safetensors")
    return flat(torch.load(path, weights_only=False))


VIT = {  # format -> (reader, prefix of the network that is evaluated, heads, facts)
    "dino": (plain.timm_names, "teacher.backbone.", 2, {}),
    "ibot": (plain.timm_names, "teacher.backbone.", 2, {}),
    "sere": (plain.timm_names, "teacher.module.backbone.", 2, {}),
    "pwself": (plain.timm_names, "teacher.backbone.", 2, {}),
    "vissl": (plain.timm_names, "loss.momentum_teacher.module.trunk.", 2, {"resize": "size"}),
    "mae": (plain.timm_names, "model.", 2, {"resize": "size"}),
    "mocov3": (plain.timm_names, "state_dict.module.base_encoder.", 2, {}),
    "timm": (plain.timm_names, "", 2, {"resize": "antialias"}),
    "dinov2": (plain.timm_names, "", 2, {"resize": "antialias"}),
    "dinov3": (plain.timm_names, "", 3, {"eps": 1e-5}),
    "hf_vit": (plain.hugging_face, "vit.", 2, {"resize": "size", "eps": 1e-12}),
    "hf_dinov2": (plain.hugging_face, "", 2, {"resize": "antialias"}),
    "mmpretrain_vit": (plain.openmmlab, "state_dict.backbone.", 2, {"resize": "size"}),
}
SQUARE_ONLY = {"vissl", "mae"}  # elsewhere their official code has no answer, and DINO's rule is assumed


def compare(encoder, net, sizes=SIZES, assumed=()):
    for size in sizes:
        images = torch.randn(2, 3, *size)
        net.resize = "dino" if size in assumed else net.resize
        token, patches = plain.features(net, images)
        found = encoder(images)
        assert relative(found.patches[0], patches) < PARITY, size
        assert relative(found.image, patches.mean((2, 3)) if token is None else token) < PARITY, size


@pytest.mark.parametrize("name", VIT)
def test_features_are_those_of_a_plain_network_on_the_original_names(name, tmp_path):
    """Which network, which name is what, heads, eps, positions, registers, layer scale, SwiGLU, rotation, masked bias.

    float32 against float64; a norm eps of 1e-5 for 1e-6 shows at 1e-5, anything else above 1e-3.
    """
    torch.manual_seed(1)
    path, facts = format_example(name, tmp_path)
    reader, prefix, heads, more = VIT[name]
    net = reader(names_of(path), prefix, heads, **more)
    compare(load(path, **facts), net, assumed=[(24, 56)] if name in SQUARE_ONLY else ())


def test_every_vit_format_has_a_plain_network_here():
    """A format whose example is a ViT is compared above, or named here because another test does it."""
    elsewhere = {"selfpatch", "selfpatch_bench", "mm_finetuned", "moby", "dinov3_ports"}
    ours = {name for name in FORMATS.scan() if hasattr(examples, name) or hasattr(ports, name)}
    assert ours <= set(VIT) | elsewhere, "add it to VIT"


def test_config_beside_a_hugging_face_file_decides(tmp_path):
    """layer_norm_eps and hidden_act; an activation that is not there is refused."""
    path, facts = ports.hf_vit_since_5(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_attention_heads": 3, "layer_norm_eps": 1e-3, "hidden_act": "gelu"}))
    encoder = load(path, mean=0.5, std=0.5)
    assert (encoder.card.heads, encoder.card.norm_eps) == (3, 1e-3)
    compare(encoder, plain.hugging_face(names_of(path), "", 3, resize="size", eps=1e-3), SIZES[:1])
    config.write_text(json.dumps({"hidden_act": "gelu_new"}))
    assert load(path, **facts).card.act == "gelu (tanh)"
    config.write_text(json.dumps({"hidden_act": "quick_gelu"}))
    with pytest.raises(UserError, match="hidden_act quick_gelu is not supported"):
        load(path, **facts)


def test_dinov2_without_registers_takes_dinos_positions(tmp_path):
    """The hub's arguments: scale factors with 0.1 without registers; antialiased to a size with them."""
    tree = example_vit(layer_scale=True) | {"mask_token": torch.zeros(1, 24)}
    torch.save(tree, tmp_path / "v2.pth")
    checkpoint = open_checkpoint(tmp_path / "v2.pth", card={"heads": 2})
    assert (checkpoint.reading.format, checkpoint.rivals) == ("dinov2", [])
    compare(build(checkpoint), plain.timm_names(tree, "", 2))


def test_dinov2_trained_in_chunks(tmp_path):
    """FSDP checkpoints call block 1 `blocks.0.1` or, in a second chunk, `blocks.1.1`; the teacher is taken."""
    vit = example_vit(layer_scale=True)
    chunked = {k.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v for k, v in vit.items()}
    tree = {f"{s}.backbone.{k}": v * f for s, f in (("teacher", 1), ("student", 2)) for k, v in chunked.items()}
    tree |= {f"{s}.dino_head.mlp.0.weight": torch.ones(3) for s in ("teacher", "student")}
    torch.save({"model": tree, "iteration": 3}, tmp_path / "c.pth")
    encoder = load(tmp_path / "c.pth", heads=2)
    assert "1 head" in encoder.accounting
    compare(encoder, plain.timm_names(vit, "", 2))
    student = load(tmp_path / "c.pth", heads=2, weights="student")
    compare(student, plain.timm_names({k: 2 * v for k, v in vit.items()}, "", 2), SIZES[:1])


def eva(gated: bool, bias: bool) -> tuple[Eva, dict]:
    """timm's own DINOv3, small and random, and its weights in the official names."""
    network = Eva(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, init_values=0.5, class_token=True,
        num_reg_tokens=2, qkv_bias=bias, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3",
        rope_temperature=100, rope_rotate_half=True, swiglu_mlp=gated, mlp_ratio=2.0, use_fc_norm=False, num_classes=0,
        dynamic_img_size=True, qkv_fused=True, norm_layer=lambda d, **_: torch.nn.LayerNorm(d, 1e-5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    pairs = {"gamma_": "ls", "reg_token": "storage_tokens", "fc1_g": "w1", "fc1_x": "w2"}
    pairs |= {".mlp.fc2": ".mlp.w3"} if gated else {}
    out = {"mask_token": torch.zeros(1, 24), "rope_embed.periods": network.rope.periods.clone()}
    for name, value in network.state_dict().items():
        for new, old in pairs.items():
            name = name.replace(new, old)
        if name.endswith((".q_bias", ".v_bias", ".k_bias")):
            continue
        out[name + (".gamma" if name.endswith((".ls1", ".ls2")) else "")] = value
    for i, block in enumerate(network.blocks):
        if bias:
            q, v = block.attn.q_bias, block.attn.v_bias
            out[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, 7.0), v])  # masked: of no effect
            out[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(72).index_fill(0, torch.arange(24, 48), 0)
    return network, out


@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, True), (True, False)])
def test_dinov3_is_timms(gated, bias, tmp_path):
    """Features of timm's Eva in DINOv3's arrangement, square and not; heads come from the stored periods."""
    torch.manual_seed(2)
    network, tree = eva(gated, bias)
    tree |= {"local_cls_norm.weight": torch.ones(24), "local_cls_norm.bias": torch.ones(24)}
    torch.save(tree, tmp_path / "v3.pth")
    encoder = load(tmp_path / "v3.pth")
    assert (encoder.card.heads, encoder.card.registers, encoder.card.norm_eps) == (3, 2, 1e-5)
    assert encoder.card.act == ("swiglu" if gated else "gelu (erf)")
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = network.forward_features(images)
        found = encoder(images)
        assert relative(found.image, wanted[:, 0]) < PARITY
        assert relative(found.patches[0].flatten(2).transpose(1, 2), wanted[:, 3:]) < PARITY


def hub_names(official: dict) -> dict:
    """DINOv3's official names as transformers'."""
    out = {"embeddings.mask_token": torch.zeros(1, 1, 24)}
    parts = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj", "mlp.w1": "mlp.gate_proj"}
    parts |= {"mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    top = {"cls_token": "embeddings.cls_token", "storage_tokens": "embeddings.register_tokens"}
    for name, value in official.items():
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            part, _, kind = rest.rpartition(".")
            if part in ("ls1", "ls2"):
                out[f"layer.{i}.layer_scale{part[2]}.lambda1"] = value
            elif kind in ("weight", "bias") and part == "attn.qkv":
                q, k, v = value.chunk(3)
                named = {"q": q, "v": v} | ({"k": k} if kind == "weight" else {})
                out |= {f"layer.{i}.attention.{n}_proj.{kind}": t.clone() for n, t in named.items()}
            elif kind in ("weight", "bias"):
                out[f"layer.{i}.{parts[part]}.{kind}"] = value
        elif not name.startswith(("rope", "mask")):
            out[top.get(name) or name.replace("patch_embed.proj", "embeddings.patch_embeddings")] = value
    return out


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("names", ["timm", "hub", "memory"])
def test_dinov3_in_the_names_of_others(names, gated, tmp_path):
    """timm's own state dict, and transformers' names, as saved and as version 5 has them in memory; bare and beside a
    classifier: the periods are computed, the heads are of config.json or given. timm's image vector is the mean."""
    torch.manual_seed(4)
    network, tree = eva(gated, True)
    tree = network.state_dict() if names == "timm" else hub_names(tree)
    if names == "memory":
        tree = {k.replace("layer.", "model.layer.") if k.startswith("layer.") else k: v for k, v in tree.items()}
    torch.save(tree, tmp_path / "v3.bin")
    wrapped = {f"backbone.{k}": v for k, v in tree.items()} | {"fc.weight": torch.ones(5, 24)}
    torch.save({"state_dict": wrapped}, tmp_path / "v3.ckpt")
    given = open_checkpoint(tmp_path / "v3.ckpt", card={"heads": 3})
    assert given.fingerprint == open_checkpoint(tmp_path / "v3.bin", card={"heads": 3}).fingerprint
    with pytest.raises(UserError, match="rotary positions need the number of heads"):
        load(tmp_path / "v3.bin")
    about = {"num_attention_heads": 3, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-5}))
    checkpoint = open_checkpoint(tmp_path / "v3.bin")
    assert checkpoint.reading.format == "dinov3_ports"
    encoder = build(checkpoint)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = network.forward_features(images)
        image = network.forward_head(wanted, pre_logits=True) if names == "timm" else wanted[:, 0]
        assert relative(encoder(images).image, image) < PARITY
        assert relative(encoder(images).patches[0].flatten(2).transpose(1, 2), wanted[:, 3:]) < PARITY


def test_dinov3s_stored_periods_count(tmp_path):
    """Released files have them rounded to bfloat16: the features are those of the rounded ones."""
    path, _ = format_example("dinov3", tmp_path)
    tree = torch.load(path)
    images = torch.randn(1, 3, 32, 32)
    first = load(path)(images).image
    tree["rope_embed.periods"] = tree["rope_embed.periods"] * 1.01
    torch.save(tree, path)
    assert relative(load(path)(images).image, first) > 1e-4


def timm_features(network, images):
    with torch.no_grad():
        return network.eval().forward_features(images)


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_timms_registers_with_and_without_positions(no_embed_class, tmp_path):
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, reg_tokens=3, no_embed_class=no_embed_class,
        num_classes=5, dynamic_img_size=True, init_values=0.3,
    )  # fmt: skip
    torch.nn.init.normal_(network.reg_token)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    encoder = load(tmp_path / "r.pth", heads=2, mean=0.5, std=0.5)
    assert (encoder.card.registers, encoder.card.layer_scale) == (3, True)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        wanted = timm_features(network, images)
        assert relative(encoder(images).image, wanted[:, 0]) < PARITY
        assert relative(encoder(images).patches[0].flatten(2).transpose(1, 2), wanted[:, 4:]) < PARITY


def test_timms_pooled_network_gives_the_norm_of_the_mean(tmp_path):
    """global_pool=avg with fc_norm and no norm, as MAE's fine-tuned classifiers have it (`model`)."""
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, global_pool="avg", num_classes=5
    )
    torch.nn.init.normal_(network.fc_norm.weight)
    torch.save({"model": network.state_dict()}, tmp_path / "p.pth")
    checkpoint = open_checkpoint(tmp_path / "p.pth", card={"heads": 2, "mean": 0.5, "std": 0.5})
    assert (checkpoint.reading.format, checkpoint.card.readout) == ("timm", "mean_norm")
    images = torch.randn(2, 3, 32, 32)
    tokens = timm_features(network, images)
    found = build(checkpoint)(images)
    with torch.no_grad():
        assert relative(found.image, network.forward_head(tokens, pre_logits=True)) < PARITY
    assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens[:, 1:]) < PARITY  # not normed


def test_mmsegs_attention_is_read_too(tmp_path):
    """mmseg: torch's MultiheadAttention, in_proj being query, key and value; a patch embedding without bias."""
    path, facts = format_example("mmpretrain_vit", tmp_path)
    tree = torch.load(path)
    renamed = {}
    for name, value in tree["state_dict"].items():
        name = name.replace("attn.qkv.", "attn.attn.in_proj_").replace("attn.proj.", "attn.attn.out_proj.")
        renamed[name] = value
    del renamed["backbone.patch_embed.projection.bias"]
    torch.save(tree | {"state_dict": renamed}, path)
    encoder = load(path, **facts)
    assert encoder.card.mean == (0.485, 0.456, 0.406)
    compare(encoder, plain.openmmlab(names_of(path), "state_dict.backbone.", 2, resize="size"))


@pytest.mark.parametrize("inner", ["", "encoder.vit."])
def test_fine_tuned_model_gives_its_backbone_back(inner, tmp_path):
    """mmdet's and mmseg's checkpoints, ours too: heads, neck and rescale layers are dropped, all else is used."""
    vit = {k: v for k, v in example_vit(class_token=True).items() if not k.startswith("norm.")}
    state = {f"backbone.{inner}{k}": v for k, v in vit.items()}
    state |= {"backbone.fpn1.0.weight": torch.ones(2), "neck.convs.0.weight": torch.ones(2)}
    state |= {"rpn_head.rpn_cls.weight": torch.ones(2), "roi_head.bbox_head.fc_cls.bias": torch.ones(2)}
    torch.save(
        {"meta": {"cfg": "mean=[10.0, 20.0, 30.0], std=[51.0, 51.0, 51.0]"}, "state_dict": state}, tmp_path / "m.pth"
    )
    encoder = load(tmp_path / "m.pth", heads=2)
    assert np.allclose(encoder.card.std, 0.2)
    compare(encoder, plain.timm_names(vit, "", 2, resize="size"))
    torch.save({"meta": {"cfg": "bgr_to_rgb=False"}, "state_dict": state}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="BGR"):
        load(tmp_path / "m.pth", heads=2)


def test_moby_with_deit(tmp_path):
    """The online encoder; positions of the stored grid, and DINO's rule elsewhere, marked as assumed."""
    vit = example_vit()
    model = {f"encoder.{k}": v for k, v in vit.items()} | {f"encoder_k.{k}": 2 * v for k, v in vit.items()}
    model |= {"projector.linear_out.bias": torch.ones(2), "queue1": torch.ones(2), "queue_ptr": torch.zeros(1).long()}
    torch.save({"model": model, "epoch": 1}, tmp_path / "m.pth")
    encoder = load(tmp_path / "m.pth", heads=2)
    compare(encoder, plain.timm_names(vit, "", 2))
    assert encoder.pos_rule((48, 48)) == "dino (assumed)"


# -- positions


def test_rules_where_the_official_code_has_no_answer():
    """mocov3 takes its stored grid only, mae and vissl square ones; elsewhere DINO's rule, by its name."""
    sizes = {"stored": [(32, 32)], "square": [(32, 32), (48, 48)], "dino": SIZES, "timm": SIZES, "size": SIZES}
    stored = torch.randn(1, 16, 24)
    for rule, answered in sizes.items():
        encoder = Encoder(Card("vit", 8, 24, 1, 2, pos="learned 4x4", pos_resize=rule))
        for size in SIZES:
            assert encoder.pos_rule(size) == (rule if size in answered else "dino (assumed)")
            grid = (size[0] // 8, size[1] // 8)
            found = resize_positions(stored, grid, rule)
            if size not in answered:
                assert torch.equal(found, resize_positions(stored, grid, "dino"))
    assert torch.equal(resize_positions(stored, (6, 6), "square"), resize_positions(stored, (6, 6), "size"))
    wanted = resample_abs_pos_embed(stored, [3, 7], num_prefix_tokens=0)
    assert relative(resize_positions(stored, (3, 7), "timm"), wanted) < 1e-6


@pytest.mark.parametrize("first", ["rows", "columns"])
def test_stored_sines_tell_mae_from_moco_v3(first, tmp_path):
    """One layout `model`, two formats: the order of the halves decides, in half precision too; learned ones are MAE's
    no more than MoCo v3's."""
    name = {"rows": "mocov3", "columns": "mae"}[first]
    vit = example_vit() | {"pos_embed": examples.sincos(4, 24, first)}
    for dtype in (torch.float32, torch.float16):
        torch.save({"model": {k: v.to(dtype) for k, v in vit.items()}}, tmp_path / "x.pth")
        checkpoint = open_checkpoint(tmp_path / "x.pth", card={"heads": 2})
        assert (checkpoint.reading.format, checkpoint.rivals) == (name, [])
        assert checkpoint.card.pos == "sincos 4x4, stored"
    torch.save({"model": example_vit()}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth", card={"heads": 2})
    assert {checkpoint.reading.format, *(r.format for r in checkpoint.rivals)} == {"dino", "timm"}
    with pytest.raises(UserError, match="learned, not the fixed ones"):
        open_checkpoint(tmp_path / "x.pth", format=name)


def test_sines_are_those_of_the_papers_formula():
    """Position p of channel 2i: sin or cos of p / 10000^(2i/d), d channels for each axis."""
    grid = examples.sincos(3, 8, "rows")[0, 1:].view(3, 3, 8)
    for row in range(3):
        for column in range(3):
            own = [f(p / 10000 ** (i / 2)) for p in (row, column) for f in (np.sin, np.cos) for i in (0, 1)]
            assert np.allclose(grid[row, column], own, atol=1e-6)
    assert _sincos.order(torch.randn(1, 17, 24)) is None


@pytest.mark.shared
@pytest.mark.parametrize("file", shared_cases("checkpoints/tiny/m*.npz"))
def test_the_small_files_positions_are_recognised(file):
    """mae.pth and mocov3.pth as their code wrote them."""
    if file.stem not in ("mae", "mocov3"):
        pytest.skip("no sine-cosine positions")
    pos = load(file.with_suffix(".pth"), heads=3).vit.pos_embed
    assert _sincos.order(pos) == {"mae": "columns", "mocov3": "rows"}[file.stem]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), sequences=1, frames=3, size=(72, 96), objects=1)


def davis(path, videos, out, facts, patch, **options) -> dict:
    """The record of the DAVIS task on one drawn video at three by four patches (and more)."""
    values = [f"size={4 * patch}", f"multiple={patch}", "context=1"]
    chosen = Options(data=[str(videos)], out=out, card=facts, overrides=values, device="cpu", **options)
    jobs = plan([path], ["davis"], chosen)
    assert run(jobs, chosen, Console(quiet=True)) == 0
    return record.read(record.done(out, "davis", jobs[0].key)[-1])


ASSUMED = {"mae", "mocov3", "vissl", "moby"}


@pytest.mark.parametrize("name", [*VIT, "selfpatch", "selfpatch_bench", "mm_finetuned"])
def test_davis_runs_on_every_vit_format(name, videos, tmp_path):
    """The whole task on the format's own example; the record says which rule made the positions."""
    path, facts = format_example(name, tmp_path)
    found = davis(path, videos, tmp_path / "out", facts, 8)
    assert 0 <= found.metrics["JF_m"] <= 100
    assert (found.model.format, found.model.card["patch"]) == (name, 8)
    rule = found.protocol.effective["pos_rule"]
    assert rule == ("dino (assumed)" if name in ASSUMED else found.model.card["pos_resize"])


def needs_format(layout) -> bool:
    """Bare names, whatever they are wrapped in, of which values do not tell either who wrote them."""
    names = [name.replace("module.", "") for name in layout["tensors"]]
    return alone_vit(names) is not None and "sincos" not in layout["arch"]["pos"]


@pytest.mark.shared
@pytest.mark.parametrize("file", layouts("vit"))
def test_davis_runs_on_the_small_files(file, shared, videos, tmp_path):
    layout = json.loads(file.read_text())
    path, facts = tiny(layout)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    options = {"format": layout["plugin"]} if needs_format(layout) else {}
    found = davis(path, videos, tmp_path, facts, layout["tiny"]["arch"]["patch"], **options)
    assert found.model.format == layout["plugin"]
    code_has_none = "square" in layout["arch"]["pos_resize"] or "only the stored" in layout["arch"]["pos_resize"]
    assumed = code_has_none or "for both sides" in layout["arch"]["pos_resize"]
    assert (found.protocol.effective["pos_rule"] == "dino (assumed)") == assumed


def test_davis_on_the_student_says_so(videos, tmp_path):
    path, facts = format_example("dino", tmp_path)
    found = davis(path, videos, tmp_path / "out", facts, 8, weights="student")
    assert found.model.overrides["weights"] == found.model.facts["weights"] == "student"


# -- which network


CHOICES = {  # format -> (default, its prefix, other, its prefix)
    "dino": ("teacher", "teacher.backbone.", "student", "student.module.backbone."),
    "ibot": ("teacher", "teacher.backbone.", "online", "student.module.backbone."),
    "vissl": ("teacher", "loss.momentum_teacher.module.trunk.", "student", "classy_state_dict.base_model.model.trunk."),
    "mocov3": ("online", "state_dict.module.base_encoder.", "teacher", "state_dict.module.momentum_encoder."),
}


@pytest.mark.parametrize("name", CHOICES)
def test_weights_chooses_the_network(name, tmp_path):
    """`--weights` overrides the default; what was taken is reported, and what was asked for is in the record."""
    path, facts = format_example(name, tmp_path)
    default, first, other, second = CHOICES[name]
    tree, images = names_of(path), torch.randn(1, 3, 32, 32)
    for weights, prefix in ((None, first), (other, second)):
        token, _ = plain.features(plain.timm_names(tree, prefix, 2), images)
        assert relative(load(path, weights=weights, **facts)(images).image, token) < PARITY
    assert f"weights      {default}\n" in report(path, None, facts)
    shown = "student" if other == "online" else other
    assert f"weights      {shown} (given)\n" in report(path, None, facts, other)
    model = describe(path, Options(card=facts, weights=other)).model
    assert model.overrides["weights"] == other
    assert model.facts["weights"] == shown
    assert model.fingerprint != describe(path, Options(card=facts)).model.fingerprint


@pytest.mark.parametrize("name", [*CHOICES, "mocov2"])
def test_a_damaged_network_is_never_exchanged_for_the_other(name, tmp_path):
    """The default network lacks its first tensor: an error that offers the other one, which is whole, by name."""
    path, facts = format_example(name, tmp_path)
    whole = load(path, format=name, **facts)
    tree = torch.load(path, weights_only=False)
    first = CHOICES[name][1] if name in CHOICES else "state_dict.module.encoder_q."
    lost = "conv1.weight" if name == "mocov2" else "pos_embed"
    table, key = tree, f"{first}{lost}"
    while key not in table:  # dicts within dicts, whose keys hold dots themselves
        part = next(k for k in table if key.startswith(f"{k}."))
        table, key = table[part], key.removeprefix(f"{part}.")
    del table[key]
    torch.save(tree, path)
    with pytest.raises(UserError, match="is no whole network; --weights"):
        load(path, format=name, **facts)
    other = {"vissl": "student", "mocov3": "teacher", "mocov2": "teacher"}.get(name, "student")
    assert load(path, format=name, weights=other, **facts).fingerprint != whole.fingerprint


def test_weights_that_a_file_lacks_are_an_error(tmp_path):
    path, facts = format_example("dino", tmp_path)
    tree = torch.load(path, weights_only=False)
    del tree["student"]
    torch.save(tree, path)
    with pytest.raises(UserError, match="--weights student: it holds teacher"):
        load(path, weights="student", **facts)
    with pytest.raises(UserError, match="it is one of teacher, student, online, ema"):
        load(path, weights="other", **facts)
    path, facts = format_example("dinov3", tmp_path)
    with pytest.raises(UserError, match="--weights teacher: it holds one network"):
        load(path, weights="teacher", **facts)
    path, facts = format_example("hf_vit", tmp_path)
    with pytest.raises(UserError, match="hf_vit knows one network"):
        load(path, weights="teacher", **facts)


def test_moco_v3s_vit_small_has_12_heads():
    """The same arch in DINO's files has 6: the format decides, and only where the width is that of the name."""

    class Shaped:
        def __init__(self, shape):
            self.shape = shape

        def load(self):
            return (
                torch.zeros(self.shape, device="meta")
                if self.shape[1:2] != (197,)
                else examples.sincos(14, 384, "rows")
            )

    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 3, 16, 16)}
    shapes |= {"norm.weight": (384,), "blocks.0.attn.qkv.weight": (1152, 384)}
    shapes |= {"blocks.0.mlp.fc1.weight": (1536, 384), "blocks.0.mlp.fc2.weight": (384, 1536)}
    state = State({f"state_dict.base_encoder.{k}": Shaped(v) for k, v in shapes.items()})
    state.refs["state_dict.momentum_encoder.x"] = state.refs["state_dict.predictor.x"] = Shaped((1,))
    convert = FORMATS.get("mocov3").module.convert
    assert convert(state, {"arch": "vit_small"})[1].heads == 12
    assert convert(state, {"arch": "vit_base"})[1].heads is None
    assert heads_from({"arch": "vit_small"}, 384)[0] == 6


def test_pwselfs_centre_keeps_it_from_being_dino(tmp_path):
    """A centre with a row for each token is PW-Self's; [1, K] is DINO's."""
    path, facts = format_example("pwself", tmp_path)
    tree = torch.load(path, weights_only=False)
    for centre, name in (((1, 17, 4), "pwself"), ((17, 4), "pwself"), ((1, 4), "dino")):
        torch.save(tree | {"dino_loss": {"center": torch.zeros(centre)}}, path)
        checkpoint = open_checkpoint(path, card=facts)
        assert (checkpoint.reading.format, checkpoint.rivals) == (name, [])


@pytest.mark.shared
@pytest.mark.parametrize("file", layouts("vit"))
def test_small_file_is_recognised_without_help(file, shared):
    """Its format alone, or a tie that the layout's notes announce; never a refusal, and no tensor unaccounted for."""
    layout = json.loads(file.read_text())
    path, facts = tiny(layout)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    checkpoint = open_checkpoint(path, card=facts)
    found = [checkpoint.reading.format, *(r.format for r in checkpoint.rivals)]
    own = open_checkpoint(path, card=facts, format=layout["plugin"])
    assert (own.card, own.fingerprint) in [(c.card, checkpoint.fingerprint) for c in (checkpoint, *checkpoint.rivals)]
    if len(found) > 1:
        assert needs_format(layout)


@pytest.mark.parametrize("rule", ["dino", "timm", "size"])
@pytest.mark.parametrize("grid", [(6, 6), (3, 7), (20, 14)])
def test_positions_by_a_constant_matrix(rule, grid):
    """What GPUs use where positions are trained equals the interpolation, and its gradient that one's."""
    stored = torch.randn(1, 196, 24, requires_grad=True)
    found = (resizing((14, 14), grid, rule) @ stored.double()).float()
    wanted = resize_positions(stored, grid, rule)
    assert relative(found.detach(), wanted.detach()) < 1e-6
    pull = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(out, stored, pull)[0] for out in (found, wanted)]
    assert relative(*gradients) < 3e-6  # the interpolation's adds up in float32
