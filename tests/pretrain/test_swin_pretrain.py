"""Swin as a backbone of pretraining: the official network, any view size, SelfPatch on its last tokens, export."""

import re

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer, WindowAttention

from conftest import shared_cases
from plain_pretrain import groups, one_thread, relative, window  # noqa: F401
from selfpatch_bench.benchmarks import load
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command, read_weights
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.export import export
from selfpatch_bench.pretrain.geometry import neighbours
from selfpatch_bench.pretrain.model.backbone import build_backbone, tokens
from selfpatch_bench.pretrain.model.initial import load_initial
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.options import Network as NetworkConfig
from selfpatch_bench.pretrain.step import Learner
from training import final, pictures

# Windows of 2 on patches of 2: 32 pixels are grids of 16, 8, 4 and 2.
SMALL = {"embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 2, "patch_size": 2}
TINY = ["network.backbone=swin_tiny", "network.drop_path=0", "loop.device=cpu", "loop.batch=4"]
TINY += [f"network.overrides={SMALL}", "views.rows.0.size=32", "views.rows.1.size=32"]
HEADS = ["hidden=20", "outputs=12", "queue=12"]
MOBY = [*TINY, *(f"objectives.moby.{h}" for h in HEADS)]
PATCH = [*MOBY, *(f"objectives.moby_patch.{h}" for h in HEADS)]
PROTOTYPES = [f"objectives.{o}.{h}" for o in ("dino", "selfpatch") for h in ("hidden=16", "outputs=12", "bottleneck=8")]
MULTICROP = ["views.rows.2.size=16", "views.rows.2.count=3"]


def small(size=32, **changes):
    """A small Swin, its biases and tables far from their initial values."""
    swin = build_backbone(NetworkConfig("swin_tiny", overrides=SMALL | changes), size).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in swin.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64), alpha=0.3)
    return swin.eval()


@torch.no_grad()
def test_the_networks_own_sizes_are_timms():
    """Where no window reaches over the border: timm's network, made for that size, with the same weights."""
    swin = small()
    options = {k: v for k, v in SMALL.items()}
    for size in (32, 64):
        timms = SwinTransformer(img_size=size, num_classes=0, global_pool="", **options).double().eval()
        missing = timms.load_state_dict(swin.state_dict(), strict=False).missing_keys
        assert set(missing) <= {"norm.weight", "norm.bias"}
        timms.norm = torch.nn.Identity()
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        found = tokens(swin, x)
        assert found.hw == (size // 16, size // 16)
        assert found.cls is None
        assert relative(found.patch, timms.forward_features(x).flatten(1, 2)) < 1e-12


@pytest.mark.shared
@pytest.mark.parametrize("path", shared_cases("checkpoints/tiny/moby_swin*.pth"))
@torch.no_grad()
def test_the_official_network(path):
    """The recorded last stage of the official code, and its pooled tokens, through backbone and readout; 3e-6."""
    recorded = np.load(path.with_suffix(".npz"))
    checkpoint = open_checkpoint(path)
    card = checkpoint.card
    overrides = {"embed_dim": card.dim, "depths": list(card.depths), "num_heads": list(card.heads)}
    overrides |= {"window_size": card.window, "patch_size": card.patch}
    learner = Learner(load_recipe("moby", [*MOBY[:2], f"network.overrides={overrides}", *MOBY[7:]]))
    load_initial(learner, path, read_weights=read_weights)
    student = learner.student.eval()
    seen = 0
    for key in recorded.files:
        if m := re.fullmatch(r"(\w+)\.image", key):
            found = tokens(student.backbone, torch.from_numpy(recorded[key]).float())
            last = torch.from_numpy(recorded[f"{m[1]}.c5"]).flatten(2).transpose(1, 2)
            assert relative(found.patch, last) < 3e-6
            assert relative(student.readout.norm(found.patch), torch.from_numpy(recorded[f"{m[1]}.patch_norm"])) < 3e-6
            assert relative(student.image(found), torch.from_numpy(recorded[f"{m[1]}.pooled"])) < 3e-6
            seen += 1
    assert seen


def plain_block(block, x):
    """One block on x [B, h, w, D], window by window and pair by pair: padding, shift and regions by coordinates."""
    size, (batch, h, w, dim) = block.window_size[0], x.shape
    shift = size // 2 if any(block.shift_size) and min(h, w) > size else 0
    hp, wp = -(-h // size) * size, -(-w // size) * size
    padded = torch.zeros(batch, hp, wp, dim, dtype=x.dtype)
    padded[:, :h, :w] = block.norm1(x)
    update, attn = torch.zeros_like(padded), block.attn
    for top in range(0, hp, size):
        for left in range(0, wp, size):
            places = [((top + i + shift) % hp, (left + j + shift) % wp) for i in range(size) for j in range(size)]
            # what came round the border is another part of the picture
            part = [(top + i + shift >= hp, left + j + shift >= wp) for i in range(size) for j in range(size)]
            t = torch.stack([padded[:, a, b] for a, b in places], 1)
            q, k, v = attn.qkv(t).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            logits = q @ k.transpose(-2, -1) * attn.scale
            for n in range(size * size):
                for m in range(size * size):
                    away = [n // size - m // size + size - 1, n % size - m % size + size - 1]
                    logits[:, :, n, m] += attn.relative_position_bias_table[away[0] * (2 * size - 1) + away[1]]
                    logits[:, :, n, m] += 0.0 if part[n] == part[m] else -100.0
            out = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
            for n, (a, b) in enumerate(places):
                update[:, a, b] = out[:, n]
    x = x + update[:, :h, :w]
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("hw", [(32, 32), (16, 16), (48, 80), (96, 32)], ids=str)
@torch.no_grad()
def test_any_size_written_out(hw):
    """Grids smaller than a window, as long as one, and such that windows do not divide: windows of 3."""
    swin = small(window_size=3)
    x = torch.randn(1, 3, *hw, dtype=torch.float64)
    found = tokens(swin, x)
    y = swin.patch_embed(x)
    for stage in swin.layers:
        y = stage.downsample(y)
        for block in stage.blocks:
            y = plain_block(block, y)
    assert found.hw == (hw[0] // 16, hw[1] // 16)
    assert relative(found.patch, y.flatten(1, 2)) < 1e-10


def test_one_image_does_not_see_another():
    """The window's axis is not the batch's."""
    swin, x = small(window_size=3), torch.randn(3, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        whole, one = tokens(swin, x).patch, tokens(swin, x[1:2]).patch
    assert relative(whole[1:2], one) < 1e-12


def test_the_papers_network():
    """Swin-T: 27.5 M parameters, tokens of 32 pixels, 7x7 of them at 224; the official initial values, no norm at the
    end (the readout has it), drop path rising over all twelve blocks and in the student only."""
    learner = Learner(load_recipe("moby"))
    swin = learner.student.backbone
    assert sum(p.numel() for p in swin.parameters()) == pytest.approx(27.52e6, rel=1e-3)
    assert (swin.num_features, swin.stride, swin.final_eps) == (768, 32, 1e-5)
    assert learner.student.readout.norm.eps == 1e-5
    with torch.no_grad():
        assert tokens(swin, torch.randn(1, 3, 224, 224)).patch.shape == (1, 49, 768)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in swin.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])
    assert not any(getattr(b.drop_path1, "drop_prob", 0) for b in learner.teacher.backbone.blocks)
    for name, p in swin.named_parameters():
        if name.endswith("bias") and name != "patch_embed.proj.bias":
            assert not p.any(), name
        elif p.ndim == 2:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.1), name
    tables = [m.relative_position_bias_table for m in swin.modules() if isinstance(m, WindowAttention)]
    assert {t.shape for t in tables} == {(169, n) for n in (3, 6, 12, 24)}
    assert any(
        torch.equal(p, q) for p, q in zip(learner.teacher.parameters(), learner.student.parameters(), strict=False)
    )


def test_the_same_weights_at_any_size():
    """Names and shapes do not depend on the views; so runs at other sizes start from one another."""
    shapes = [{k: v.shape for k, v in small(size).state_dict().items()} for size in (16, 32, 64)]
    assert shapes[0] == shapes[1] == shapes[2]


# --- objectives on it


def test_selfpatch_on_the_last_tokens():
    """7x7 at 224 pixels: neighbours on that torus; the class attention has the last stage's heads and width."""
    options = [o for o in PATCH if "size=32" not in o]
    learner = Learner(load_recipe("moby_selfpatch", options))
    source = learner.teacher.specs["patch_projector"].input
    index, valid = neighbours(224 // 16, 224 // 16, source.radius, source.wrap)
    assert valid is None
    assert index.shape == (196, 8)
    full = load_recipe("moby_selfpatch", ["network.backbone=swin_tiny"])
    with torch.device("meta"):
        plan = build_backbone(NetworkConfig(full.network.backbone), 224)
    assert 224 // plan.stride == 7
    index, _ = neighbours(7, 7, source.radius, source.wrap)
    assert index.tolist() == window(7, 7, 1, True)
    attention = learner.student.readout.cls_blocks[0].attn
    assert (attention.num_heads, attention.q.in_features) == (8, 64)
    assert learner.student.readout.norm.eps == 1e-5


def test_pooled_tokens():
    """MoBY's image term untouched, as the recipe's header says: no class attention, targets are means of neighbours."""
    options = ["network.readout=mean", "objectives.moby_patch.aggregation=mean", "views.rows.0.size=64"]
    learner = Learner(load_recipe("moby_selfpatch", [*PATCH, *options, "views.rows.1.size=64"])).double()
    total, losses, _ = learner(groups(learner), Step())
    total.backward()
    assert losses.keys() == {"moby.image", "moby_patch.patch"}
    assert list(dict(learner.student.readout.named_parameters())) == ["norm.weight", "norm.bias"]
    assert all(p.grad is not None for p in learner.student.parameters())


def test_multi_crop_on_swin():
    """DINO and SelfPatch with local views: 2x2 tokens of a global view, 1x1 would leave a patch without neighbours, so
    views of 64 and 32 pixels; every parameter is trained."""
    sizes = ["views.rows.0.size=64", "views.rows.1.size=64", "views.rows.2.size=32", "views.rows.2.count=3"]
    options = [*TINY[:5], *sizes, *PROTOTYPES]
    learner = Learner(load_recipe("selfpatch", options)).double()
    views = groups(learner)
    total, losses, stats = learner(views, Step())
    total.backward()
    assert losses.keys() == {"dino.image", "selfpatch.patch"}
    trained = [n for n, p in learner.student.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []
    learner.finish_step(stats, 0.9)
    with pytest.raises(UserError, match="a view of a single patch has no neighbours"):
        Learner(load_recipe("selfpatch", [*TINY, *MULTICROP, *PROTOTYPES]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["views.rows.0.size=40", "views.rows.1.size=40"], "views of 40 pixels with a Swin .* 32 or 48"),
        (["views.rows.0.size=8", "views.rows.1.size=8"], "views of 8 pixels with a Swin .* 16"),
        (["network.class_token=true"], "a Swin has no class token: network.class_token=false"),
        (["network.readout=token"], "network.readout=token needs a class token"),
        (["network.backbone=swin_teeny"], "no Swin of timm; did you mean swin_tiny"),
        (["network.backbone=swin_s3_tiny_224", "network.overrides={depth: 3}"], "cannot be built"),
        (["network.backbone=swinv2_tiny_window8_256", "network.overrides={}"], "nor a plain Swin"),
        (["network.overrides.depths=[2,2,2,2,2]"], "cannot be built"),
    ],
)
def test_networks_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        Learner(load_recipe("moby", [*MOBY, *options]))


def test_masks_need_a_vit():
    with pytest.raises(UserError, match="a Swin has no token for masked patches: use a ViT"):
        build_backbone(NetworkConfig("swin_tiny", overrides=SMALL), 32, mask_token=True)


# --- from images to an evaluated file


@pytest.mark.parametrize("recipe", ["moby", "moby_selfpatch"])
def test_a_swin_from_pictures_to_a_number(recipe, tmp_path):
    """Two steps on small pictures; the exported file is the student; DAVIS runs on it; another run starts from it."""
    data, run = pictures(tmp_path / "pictures", 8), tmp_path / "run"
    options = [*(MOBY if recipe == "moby" else PATCH), "loop.epochs=1", "schedule.warmup_epochs=0", "data.workers=0"]
    assert pretrain_command(recipe, data, run, overrides=options) == 0
    path = export(run)
    assert path.name == "step-00000002.student.safetensors"
    encoder = load(path)
    assert encoder.card.family == "swin"
    assert encoder.card.as_dict().get("readout") == (None if recipe == "moby" else "class_attention")
    learner = Learner(Run(run).config([]))
    student, state = learner.student.eval(), final(run)
    student.load_state_dict(state["student"])
    for size in ((32, 32), (48, 80)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found, features = tokens(student.backbone, x), encoder(x, blocks=[-1], norm=False)
            assert relative(features.image, student.image(found)) < 1e-5  # float32, another order of operations
            assert relative(features.patches[0].flatten(2).transpose(1, 2), found.patch) < 1e-5
    said = load_initial(learner, path, read_weights=read_weights)
    assert "not taken" not in said
    assert "afresh" not in said
    teacher = learner.teacher.state_dict()
    body = [k for k in state["student"] if not k.startswith("heads.")]
    assert all(torch.equal(teacher[k], state["student"][k]) for k in body)
    videos = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(48, 64))
    asked = Options(data=[str(videos)], out=tmp_path / "out", overrides=["size=48", "multiple=16"], device="cpu")
    assert run_command([run], ["davis"], asked) == 0
    (found,) = [record.read(p) for p in (tmp_path / "out/records/davis").glob("*.json")]
    assert found.model.name == "run/step-00000002.student"
    other = export(run, which="teacher")
    assert other.name == "step-00000002.safetensors"
    assert open_checkpoint(other).fingerprint != open_checkpoint(path).fingerprint
    with pytest.raises(UserError, match=r"another network than network\.backbone=swin_tiny: depths"):
        load_initial(
            Learner(load_recipe("moby", [*MOBY, "network.overrides.depths=[2,2,2,2]"])), path, read_weights=read_weights
        )
    narrow = ["network.backbone=vit_tiny_patch8", "network.overrides={embed_dim: 24, depth: 2, num_heads: 2}"]
    vit = Learner(load_recipe("moby", [*MOBY[2:4], *MOBY[5:], *narrow]))
    with pytest.raises(UserError, match=r"another network than network\.backbone=vit_tiny_patch8: "):
        load_initial(vit, path, read_weights=read_weights)


# --- small pictures


@pytest.mark.parametrize("recipe", ["moby", "moby_selfpatch", "dino", "selfpatch"])
def test_small_pictures_at_patch_4(recipe, tmp_path):
    """As CIFAR-10: 32 pixels in 8x8 patches, local views of 16; a step, an export, features at that size."""
    data, run = pictures(tmp_path / "pictures", 4), tmp_path / "run"
    heads = [o for o in PATCH[6:] if "objectives" in o]
    if recipe == "moby":
        heads = [o for o in heads if "moby_patch" not in o]
    if "moby" not in recipe:
        heads = [o for o in PROTOTYPES if recipe == "selfpatch" or "selfpatch" not in o] + MULTICROP
    options = ["network.backbone=vit_tiny_patch4", "network.overrides={depth: 1}", *TINY[2:4], *TINY[5:], *heads]
    options += ["loop.epochs=1", "schedule.warmup_epochs=0", "data.workers=0"]
    assert pretrain_command(recipe, data, run, overrides=options) == 0
    encoder = load(export(run))
    assert (encoder.card.patch, encoder.card.grid, encoder.card.heads) == (4, 8, 3)
    with torch.no_grad():
        found = encoder(torch.randn(2, 3, 32, 32))
    assert found.patches[0].shape == (2, 192, 8, 8)
    assert torch.isfinite(found.image).all()
