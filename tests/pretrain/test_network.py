"""Backbone, readout and heads."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plain_pretrain import (  # noqa: F401
    TINY,
    aggregate,
    chosen,
    class_attention,
    groups,
    one_thread,
    relative,
    tiny,
    vit_tokens,
)
from plain_pretrain import heads as small_heads
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.model.backbone import Tokens, build_backbone, set_fused_attention, tokens
from selfpatch_bench.pretrain.model.heads import PrototypeHead
from selfpatch_bench.pretrain.model.network import Network, most_similar
from selfpatch_bench.pretrain.objectives import Aggregated, HeadSpec, Spec, Step
from selfpatch_bench.pretrain.options import Network as NetworkConfig
from selfpatch_bench.pretrain.step import Learner

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def small_network(heads=(), side="student", readout="class_attention", groups=1, size=64, **spec):
    cfg = NetworkConfig("vit_tiny_patch16", readout == "token", readout, drop_path=0.0, overrides=SMALL)
    return Network(cfg, Spec(dict(heads), **spec), side, size, groups).double()


def group(views=2, batch=3, size=64, **more):
    x = torch.randn(views, batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Group(x, torch.zeros(views, batch, 4), torch.zeros(views, batch, dtype=torch.bool), **more)


# --- backbone


def test_tokens_are_timms_own_at_the_stored_size():
    vit = build_backbone(NetworkConfig("vit_tiny_patch16", overrides=SMALL), 64).double()
    x = group().x.flatten(0, 1)
    ours = tokens(vit, x)
    theirs = vit.forward_features(x)  # its norm is an identity here
    assert ours.hw == (4, 4)
    assert relative(torch.cat([ours.cls[:, None], ours.patch], 1), theirs) < 1e-12


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_other_vits_at_other_sizes(name):
    vit = build_backbone(NetworkConfig(name), 112)
    patch = vit.patch_embed.patch_size[0]
    out = tokens(vit, torch.randn(1, 3, 5 * patch, 7 * patch))
    assert out.hw == (5, 7)
    assert out.patch.shape == (1, 35, vit.embed_dim)
    assert out.cls.shape == (1, vit.embed_dim)


def test_positions_at_another_size():
    """Bicubic at the points that a scale factor of (h + 0.1) / G gives, written out; first and last as recorded."""
    stored, h = 14, 6
    vit = build_backbone(NetworkConfig("vit_tiny_patch16", False, overrides=SMALL | {"depth": 0}), 224).double()
    vit.patch_embed.proj.weight.data.zero_()
    vit.patch_embed.proj.bias.data.zero_()
    at = (torch.arange(h, dtype=torch.float64) + 0.5) * stored / (h + 0.1) - 0.5
    assert [round(float(v), 2) for v in (at[0], at[1], at[5])] == [0.65, 2.94, 12.12]

    def kernel(t, a=-0.75):
        t = t.abs()
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))

    rows = torch.zeros(h, stored, dtype=torch.float64)  # weights of the stored rows, edge rows repeated
    for offset in range(-1, 3):
        source = at.floor() + offset
        rows.scatter_add_(1, source.clamp(0, stored - 1).long()[:, None], kernel(at - source)[:, None])
    square = vit.pos_embed.view(stored, stored, -1)
    expected = torch.einsum("is,jt,std->ijd", rows, rows, square).flatten(0, 1)
    # float64 throughout; torch computes the sampling points in another order
    assert relative(tokens(vit, torch.zeros(1, 3, 96, 96).double()).patch[0].detach(), expected.detach()) < 1e-10


def test_drop_path_rises_linearly_and_only_in_the_student():
    learner = Learner(load_recipe("dino", ["network.backbone=vit_tiny_patch16", *small_heads("dino")]))
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in learner.student.backbone.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)], abs=1e-7)
    assert all(isinstance(b.drop_path2, nn.Identity) for b in learner.teacher.backbone.blocks)


def test_initialisation():
    learner = Learner(
        load_recipe(
            "selfpatch",
            [
                "network.backbone=vit_tiny_patch16",
                "network.overrides.depth=2",
                *small_heads("dino", "selfpatch", outputs=512, hidden=256),
            ],
        )
    )
    for name, p in learner.student.named_parameters():
        values = p.detach()
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "weight_g")):
            assert torch.all(values == 1), name
        elif name.endswith(".bias") and "patch_embed" not in name:
            assert torch.all(values == 0), name
        elif "patch_embed" in name or "weight_v" in name:  # uniform in +-1/sqrt(inputs), the framework's default
            bound = 1 / math.sqrt(p[0].numel() if p.ndim > 1 else 3 * 16 * 16)
            assert float(values.abs().max()) <= bound, name
            assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15), name
        else:  # truncated normal, 0.02; the smallest of these tensors has 192 values
            assert float(values.std()) == pytest.approx(0.02, rel=0.2), name
            assert abs(float(values.mean())) < 0.005, name


def test_published_sizes():
    """Millions of parameters of the official ViT-S/16 networks."""
    with torch.device("meta"):
        dino, selfpatch = (Learner(load_recipe(r)).student for r in ("dino", "selfpatch"))
    parts = selfpatch.backbone, selfpatch.readout, *selfpatch.heads.values()
    found = [[dino.backbone, dino.readout], [dino.heads["head"]], *([part] for part in parts)]
    counts = [sum(p.numel() for part in some for p in part.parameters()) / 1e6 for some in found]
    assert [round(c, 2) for c in counts] == [21.67, 22.35, 21.66, 3.55, 22.35, 6.56]


def test_plain_and_fused_attention_agree():
    vit = build_backbone(NetworkConfig("vit_tiny_patch16", overrides=SMALL), 64).double()
    x, out = group().x.flatten(0, 1), []
    for fused in (True, False):
        set_fused_attention([vit], fused)
        assert {b.attn.fused_attn for b in vit.blocks} == {fused}
        out.append(tokens(vit, x).patch)
    assert relative(*out) < 1e-12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["network.backbone=vit_smal_patch16"], "neither vit_"),
        (["network.backbone=resnet50", "network.overrides={}"], "network.backbone=resnet50"),
        (["network.backbone=eva02_tiny_patch14_224"], "not a plain ViT"),
        (["views.rows.2.size=50"], "views of 50 pixels with patches of 16"),
        (["network.class_token=false"], "needs a class token"),
        (["network.readout=sum"], "token, class_attention or mean"),
        (["network.positions=nearest"], "network.positions=nearest"),
        (["network.overrides.embed_dims=3"], "cannot be built"),
    ],
)
def test_networks_that_cannot_be(options, said):
    with pytest.raises(UserError, match=said):
        Learner(load_recipe("dino", [*TINY, *small_heads("dino"), *options]))


# --- readout and aggregation


def test_image_vector_is_the_plain_sequence():
    readout = tiny("selfpatch").student.readout
    patches = torch.randn(5, 16, 24, dtype=torch.float64)
    image, normed = readout(patches)
    assert relative(image, readout.norm(class_attention(readout, patches))) < 1e-12
    assert torch.equal(normed, readout.norm(patches))


HOW = [
    (4, 1, True),
    (8, 1, True),
    (20, 2, True),
    (1, "all", True),
    (4, 1, False),
    (8, 2, False),
]


@pytest.mark.parametrize("pool", ["class_attention", "mean"])
@pytest.mark.parametrize(("k", "radius", "wrap"), HOW)
@pytest.mark.parametrize("hw", [(6, 6), (2, 3)])
def test_aggregation_is_the_plain_one(hw, k, radius, wrap, pool):
    """Cached keys and values against a sequence of class token and neighbours for every patch."""
    patches = torch.randn(2, hw[0] * hw[1], 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = tiny("selfpatch").teacher
    ours = net.aggregate(Tokens(None, patches, hw), Aggregated(k, radius, wrap, pool))
    picks = chosen(patches, hw, k, radius, wrap)
    assert relative(ours, aggregate(net.readout, patches, picks, pool)) < 1e-12


def test_most_similar_leaves_out_what_is_beyond_the_border():
    patches = torch.randn(2, 36, 8, dtype=torch.float64)
    index, valid = most_similar(patches, (6, 6), Aggregated(k=4, wrap=False))
    assert index.shape == valid.shape == (2, 36, 4)
    assert valid.sum(2)[0, [0, 1, 7]].tolist() == [3, 4, 4]


def test_neighbours_are_compared_in_float32_under_autocast():
    patches = 1 + 1e-3 * torch.randn(1, 36, 16)  # in half precision nearly all similarities tie
    plain = most_similar(patches, (6, 6), Aggregated())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(most_similar(patches, (6, 6), Aggregated())[0], plain)


@pytest.mark.parametrize("readout", ["token", "mean", "class_attention"])
def test_inputs_of_heads(readout):
    """Image vector, normed, raw and all tokens, each in its own place, views and images apart."""
    names = ("image", "patch", "raw", "tokens")
    net = small_network({f"{n}_head": HeadSpec(lambda d: nn.Identity(), n) for n in names}, readout=readout)
    g = group()
    out = {n: net([g])[0][f"{n}_head"] for n in names}
    assert out["image"].shape == (2, 3, 24)
    assert out["patch"].shape == out["raw"].shape == (2, 3, 16, 24)
    toks = vit_tokens(net.backbone, g.x[1, :1])
    assert relative(out["raw"][1, 0], toks.patch[0]) < 1e-12
    assert relative(out["patch"][1, 0], net.readout.norm(toks.patch[0])) < 1e-12
    image = {
        "token": lambda: net.readout.norm(toks.cls),
        "mean": lambda: net.readout.norm(toks.patch).mean(1),
        "class_attention": lambda: net.readout.norm(class_attention(net.readout, toks.patch)),
    }[readout]()
    assert relative(out["image"][1, 0], image[0]) < 1e-12
    assert torch.equal(out["tokens"], torch.cat([out["image"][:, :, None], out["patch"]], 2))


# --- heads


def test_prototype_head_written_out():
    head = PrototypeHead(12, outputs=10, hidden=16, bottleneck=8, norm_last_layer=False).double()
    head.last_layer.weight_g.data.uniform_(0.5, 2)
    x = torch.randn(30, 12, dtype=torch.float64)
    y = x
    for i in (0, 2, 4):
        y = y if i == 0 else 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        y = y @ head.mlp[i].weight.T + head.mlp[i].bias
    y = y / y.norm(dim=1, keepdim=True)
    v, g = head.last_layer.weight_v, head.last_layer.weight_g
    ours, plain = head(x), y @ (g * v / v.norm(dim=1, keepdim=True)).T
    assert relative(ours, plain) < 1e-12
    up = torch.randn(30, 10, dtype=torch.float64)
    grads = (torch.autograd.grad((out * up).sum(), (v, g), retain_graph=True) for out in (ours, plain))
    assert max(relative(a, b) for a, b in zip(*grads, strict=True)) < 1e-12


def test_a_teachers_cosines_are_float32_under_autocast():
    """Divided by 0.04, cosines of bf16 are wrong by up to 0.09 in log-probabilities; and rows do not matter."""
    head = PrototypeHead(24, 512, 32, 16)
    x = torch.randn(32, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        bottleneck = F.normalize(head.mlp(x), dim=-1)
        plain = head(x)
        head.last_layer.exact = True
        exact, one = head(x), head(x[:1])
    expected = F.linear(bottleneck.float(), F.normalize(head.last_layer.weight_v, dim=1))
    log_p, moved, near = ((y.float() / 0.04).log_softmax(-1) for y in (expected, plain, exact))
    assert (plain.dtype, exact.dtype, one.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert (near - log_p).abs().max() < 1e-3 < 0.02 < (moved - log_p).abs().max()


def test_frozen_gain_has_no_gradient():
    head = PrototypeHead(12, outputs=10, hidden=16, bottleneck=8)
    assert not head.last_layer.weight_g.requires_grad
    head(torch.randn(3, 12)).sum().backward()
    assert head.last_layer.weight_g.grad is None


class Spy(nn.Module):
    """A head that notes the shapes it was called with and marks its output."""

    def __init__(self, dim, factor=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((), factor, dtype=torch.float64))
        self.calls = []

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        return x * self.weight


def both(**options):
    """Student with two groups: 2 x 64 pixels, 3 x 32; its head's calls and outputs."""
    bn_scope = options.pop("bn_scope", None)
    net = small_network({"spy": HeadSpec(Spy, bn_scope=bn_scope, **options)}, groups=2)
    return net, net([group(2, 3, 64), group(3, 3, 32)])


def test_rows_of_all_views_go_through_a_head_in_one_call():
    net, out = both(input="patch")
    assert net.heads["spy"].calls == [(2 * 3 * 16 + 3 * 3 * 4, 24)]
    assert [o["spy"].shape for o in out] == [(2, 3, 16, 24), (3, 3, 4, 24)]


def test_batch_statistics_by_group_or_view():
    net, grouped = both(input="image", bn_scope="group")
    assert net.heads["spy"].calls == [(6, 24), (9, 24)]
    net, viewed = both(input="image", bn_scope="view")
    assert net.heads["spy"].calls == [(3, 24)] * 5
    for a, b in zip(grouped, viewed, strict=True):
        assert relative(a["spy"], b["spy"]) < 1e-12


def test_instances_per_group_and_heads_for_global_views_only():
    net, out = both(input="raw", per_group=True, bn_scope="group")
    assert [h.calls for h in net.heads["spy"]] == [[(6, 16, 24)], [(9, 4, 24)]]
    net, out = both(input="image", groups="global")
    assert "spy" in out[0]
    assert out[1] == {}


def test_heads_per_side():
    """As MoBY's: a predictor on the student stands on the projector that both sides own."""
    heads = {
        "projector": HeadSpec(partial(nn.Linear, out_features=7), "image"),
        "predictor": HeadSpec(partial(nn.Linear, out_features=5), "projector", side="student"),
    }
    student, teacher = (small_network(heads, side) for side in ("student", "teacher"))
    assert list(student.heads) == ["projector", "predictor"]
    assert list(teacher.heads) == ["projector"]
    out = student([group()])[0]
    assert out["predictor"].shape == (2, 3, 5)
    assert torch.equal(out["predictor"], student.heads["predictor"](out["projector"]))
    assert list(teacher([group()])[0]) == ["projector"]


def test_teacher_with_another_module_and_input():
    """As SERE's and SelfPatch's."""
    spec = HeadSpec(Spy, "patch", teacher_factory=partial(Spy, factor=3.0), teacher_input="raw")
    student, teacher = (small_network({"a": spec}, side) for side in ("student", "teacher"))
    g = group()
    toks = vit_tokens(student.backbone, g.x[0]).patch
    assert relative(student([g])[0]["a"][0], 2 * student.readout.norm(toks)) < 1e-12
    assert relative(teacher([g])[0]["a"][0], 3 * toks) < 1e-12


def test_two_inputs_of_one_module():
    """As iBOT's shared head."""
    heads = {"a": HeadSpec(Spy, "image"), "b": HeadSpec(Spy, "patch", shares="a")}
    net = small_network(heads)
    out = net([group()])[0]
    assert list(net.heads) == ["a"]
    assert out["a"].shape == (2, 3, 24)
    assert out["b"].shape == (2, 3, 16, 24)


def test_masked_patches_of_the_student():
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    mask[1, 2, 0, 3] = True
    heads = {"a": HeadSpec(Spy, "raw")}
    student, teacher = (small_network(heads, side, needs_mask=True) for side in ("student", "teacher"))
    assert not hasattr(teacher.backbone, "masked_embed")
    masked, clean = group(mask=mask), group()
    other = group(mask=mask)
    other.x[1, 2, :, :16, 48:] = 7.0  # pixels of the masked patch
    run = lambda net, g: net([g])[0]["a"]  # noqa: E731
    assert torch.equal(run(student, masked), run(student, other))
    assert not torch.allclose(run(student, masked)[1, 2], run(student, clean)[1, 2])
    assert torch.equal(run(student, masked)[0], run(student, clean)[0])
    assert torch.equal(run(teacher, masked), run(teacher, clean))


# --- both networks


def test_weights_do_not_depend_on_which_heads_there_are():
    """The controlled baseline starts where SelfPatch starts."""
    full, base = (tiny("selfpatch", f"objectives.selfpatch.weight={w}", spread=0).student for w in (0.1, 0))
    assert list(full.heads) == ["c_head", "p_head"]
    assert list(base.heads) == ["c_head"]
    theirs = full.state_dict()
    fresh = {k: torch.equal(v, theirs[k]) for k, v in base.state_dict().items() if "norm" not in k and "bias" not in k}
    assert len(fresh) > 20
    assert all(fresh.values())


def test_seed_changes_the_weights_and_not_the_global_stream():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (tiny("dino", f"seed={s}", spread=0).student.backbone.pos_embed for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_teacher_starts_as_a_copy_and_has_no_graph():
    learner = Learner(tiny("selfpatch").cfg)
    mine = learner.student.state_dict()
    assert all(torch.equal(v, mine[k]) for k, v in learner.teacher.state_dict().items())
    assert not any(p.requires_grad for p in learner.teacher.parameters())
    seen = []
    learner.teacher.register_forward_hook(lambda m, i, out: seen.extend(t for o in out if o for t in o.values()))
    learner.double()(groups(learner), Step())
    assert seen
    assert not any(t.requires_grad for t in seen)


def test_student_patches_and_the_token_of_both_paths():
    """The student's patches pass the last norm only; for equal weights its class token is the teacher's."""
    learner = tiny("selfpatch")
    learner.ema.copy()
    g = groups(learner)
    student, teacher = learner.student(g), learner.teacher(g)
    for s, t, views in zip(student, teacher, g, strict=True):
        assert relative(s["c_head"], t["c_head"]) < 1e-12
        raw = vit_tokens(learner.student.backbone, views.x.flatten(0, 1)).patch
        own = learner.student.heads["p_head"](learner.student.readout.norm(raw).flatten(0, 1))
        assert relative(s["p_head"].flatten(0, 2), own) < 1e-12
        assert relative(s["p_head"], t["p_head"]) > 1e-2


def test_uint8_views_are_normalised():
    learner = tiny("dino")
    pixels = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    ready = learner.normalised(Group(pixels, None, None)).x
    data = learner.cfg.data
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (data.mean, data.std))
    assert relative(ready, (pixels.double() / 255 - mean) / std) < 1e-12
