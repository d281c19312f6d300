"""Checkpoint files to encoders: detection, accounting, refusals, and parity with the official features."""

import json
import re

import numpy as np
import pytest
import torch

import warm
from conftest import shared_cases
from format_examples import format_example
from layouts import PARITY, layouts, relative, tiny
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints import open as loading
from selfpatch_bench.benchmarks.checkpoints.open import build, ready
from selfpatch_bench.benchmarks.checkpoints.state import State, read_file
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.formats import selfpatch_bench as own
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.positions import resize_positions
from selfpatch_bench.pretrain.common.shapes import vit_card
from selfpatch_bench.pretrain.common.weights import save_weights


@pytest.mark.shared
@pytest.mark.parametrize("file", layouts())
def test_layout_of_the_real_size_is_claimed_by_its_format(file):
    """Names and shapes of the real files: the plug-in that the layout names has the highest claim."""
    layout = json.loads(file.read_text())
    shapes = {k.replace("module.", ""): tuple(v) for k, v in layout["tensors"].items()}
    claims = {name: p.module.claims(shapes, {}) for name, p in FORMATS.scan().items()}
    assert claims[layout["plugin"]] == max(claims.values()) > 0, claims


@pytest.mark.shared
@pytest.mark.parametrize("file", layouts("vit"))
def test_tiny_file_has_the_official_features(file, shared):
    layout = json.loads(file.read_text())
    path, facts = tiny(layout)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    encoder = load(path, format=layout["plugin"], **facts)
    wanted = layout["tiny"]["arch"]
    for key in ("family", "patch", "dim", "depth", "heads", "class_token", "final_norm", "registers", "layer_scale"):
        assert getattr(encoder.card, key) == wanted[key], key
    assert encoder.card.pos == wanted["pos"]
    assert encoder.card.norm_eps == wanted["norm_eps"]
    golden = np.load(path.with_suffix(".npz"))
    tags = sorted({name.partition(".")[0] for name in golden.files})
    assert tags
    for tag in tags:
        images = torch.from_numpy(golden[f"{tag}.image"])
        last = encoder.card.depth - 1
        found = {"embed": encoder.embed(images), "last": encoder.tokens(images, [last])[last]}
        found["norm"] = encoder.vit.norm(found["last"])
        for name in golden.files:
            kind, _, stage = name.partition(".")[2].partition("_")
            if name.startswith(f"{tag}.") and (stage or kind) in found:
                tokens = found[stage or kind]
                part = {"cls": tokens[:, 0], "patch": tokens[:, encoder.prefix :]}.get(kind, tokens)
                assert relative(part, golden[name]) < PARITY, name
        # what tasks are given is the very same thing
        final = f"{tag}.patch_{'norm' if encoder.card.final_norm else 'last'}"
        features = encoder(images)
        assert relative(features.patches[0].flatten(2).transpose(1, 2), golden[final]) < PARITY
        if encoder.card.class_token:
            assert relative(features.image, golden[f"{tag}.cls_norm"]) < PARITY


@pytest.mark.shared
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_selfpatch_image_vector_is_the_official_readout(side, need, tmp_path):
    """golden/selfpatch_step.npz holds both networks and what their class-attention heads give, class token first."""
    golden = np.load(need("golden/selfpatch_step.npz"))
    network = {k.partition(".")[2]: torch.from_numpy(golden[k]) for k in golden.files if k.startswith(f"{side}.")}
    torch.save({"teacher": network}, tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth", heads=3)
    assert (
        relative(encoder(torch.from_numpy(golden["image0"]).float()).image, golden[f"{side}_head_global0"][:, 0])
        < PARITY
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    "file", shared_cases("checkpoints/tiny/malicious*.pth") + shared_cases("checkpoints/tiny/truncated*.pth")
)
def test_bad_files_are_refused_in_one_line(file, tmp_path):
    """A real process: exit status 2, one line, and the pickle's side effect (a file `pwned`) never happens."""
    done = warm.run("inspect", file, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=list(FORMATS.scan()))
def example(request, tmp_path):
    """Each format's own example: (name, path, card overrides). A new format is tested without touching this file."""
    torch.manual_seed(0)
    path, facts = format_example(request.param, tmp_path)
    if open_checkpoint(path, format=request.param, card=facts).card.family != "vit":
        pytest.skip("no ViT: test_formats_conv.py has it")
    return request.param, path, facts


def test_example_loads_and_gives_features(example):
    name, path, facts = example
    checkpoint = open_checkpoint(path, card=facts)
    assert checkpoint.reading.format == name
    assert not checkpoint.rivals
    encoder = build(checkpoint)
    for size in ((32, 32), (24, 48)):
        image, (patches,) = encoder(torch.randn(2, 3, *size))
        assert image.shape == (2, encoder.card.dim)
        assert patches.shape == (2, encoder.card.dim, size[0] // 8, size[1] // 8)
        assert torch.isfinite(image).all()
    maps = encoder(torch.randn(1, 3, 32, 32), blocks=[0, -1]).patches
    assert len(maps) == 2
    assert not torch.equal(*maps)


class Other:
    """A tensor in the place of one of a file's."""

    def __init__(self, value):
        self.value, self.shape = value, tuple(value.shape)

    def load(self):
        return self.value


def test_every_tensor_is_accounted_for(example, monkeypatch):
    """One more tensor, one less, one of another shape or kind: refused with its name. One dropped: named as such."""
    name, path, facts = example
    if name == own.__name__.rpartition(".")[2]:
        pytest.skip("its card is its own: the test below does the same on an export")
    state, meta = read_file(path)
    dropped = open_checkpoint(path, format=name, card=facts).reading.dropped
    assert set(dropped) < set(state)
    victim = next(
        k for k in sorted(set(state) - set(dropped)) if re.search(r"[.](layer)?(norm|ln)\w*[.](bias|weight)$", k)
    )
    for change, words in (
        ({f"{victim.rpartition('.')[0]}.mystery": Other(torch.ones(2))}, ".mystery"),
        ({victim: None}, "missing"),
        ({victim: Other(torch.ones(7))}, "[7] instead of [24]"),
        ({victim: Other(torch.ones(24).long())}, "not floating-point"),
    ):
        refs = {k: v for k, v in (state.refs | change).items() if v is not None}
        monkeypatch.setattr(loading, "read_file", lambda _, refs=refs: (State(refs), dict(meta)))
        with pytest.raises(UserError) as error:
            open_checkpoint(path, format=name, card=facts)
        assert words in str(error.value)
        assert str(path) in str(error.value)


def test_an_export_is_strict_and_round_trips(tmp_path):
    facts = {"pos": "learned 4x4", "readout": "class_attention", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    card = Card("vit", 8, 24, 2, 3, False, False, **facts)
    encoder = Encoder(card)
    weights = dict(encoder.vit.state_dict()) | {f"readout.{k}": v for k, v in encoder.readout.state_dict().items()}
    save_weights(tmp_path / "a.safetensors", weights, card, {"run": "x"})
    again = load(tmp_path / "a.safetensors")
    assert again.card == card
    x = torch.randn(1, 3, 40, 32)
    assert torch.equal(again(x).image, encoder(x).image)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]
    weights.pop("readout.norm.bias")
    save_weights(tmp_path / "b.safetensors", weights, card)
    with pytest.raises(UserError, match=r"1 missing: readout.norm.bias"):
        load(tmp_path / "b.safetensors")


def bare(**sizes) -> dict:
    card = Card("vit", 8, 24, 2, 2, pos="learned 4x4", **sizes)
    return dict(Encoder(card).vit.state_dict())


def test_a_tie_needs_a_choice(tmp_path):
    """Bare names fit DINO and timm, whose position rules differ: listed, refused, settled by --format or card."""
    path = tmp_path / "bare.pth"
    torch.save(bare(), path)
    checkpoint = open_checkpoint(path, card={"heads": 2, "mean": 0.5, "std": 0.5})
    assert [r.format for r in checkpoint.rivals] == ["timm"]
    with pytest.raises(UserError, match=r"could be dino or timm .*pos_resize dino or timm.*--format"):
        ready(checkpoint)
    assert "or timm" in report(path, None, {})
    assert load(path, format="dino", heads=2).card.pos_resize == "dino"
    assert load(path, format="timm", heads=2, mean=0.5, std=0.5).card.pos_resize == "timm"
    settled = {"heads": 2, "mean": 0.5, "std": 0.5, "pos_resize": "dino"}
    assert not open_checkpoint(path, card=settled).rivals  # a tie whose cards agree is none


def test_unknown_heads_and_normalisation_are_never_guessed(tmp_path):
    path = tmp_path / "x" / "v.pth"
    path.parent.mkdir()
    torch.save(bare() | {"head.weight": torch.ones(3, 24), "head.bias": torch.ones(3)}, path)
    text = report(path, None, {})
    assert "heads        unknown" in text
    assert "refuses: nothing in the file says how many attention heads" in text
    assert "usual number" not in text  # 24 is no multiple of 64: nothing to guess
    with pytest.raises(UserError, match="--heads N"):
        load(path)
    with pytest.raises(UserError, match=r"normalised: give --card mean=.. std=.."):
        load(path, heads=2)
    with pytest.raises(UserError, match="5 heads"):
        load(path, heads=5, mean=0.5, std=0.5)
    config = {"num_heads": 4, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.4] * 3}}
    (path.parent / "config.json").write_text(json.dumps(config))
    card = open_checkpoint(path).card
    assert (card.heads, card.std) == (4, (0.4,) * 3)
    assert open_checkpoint(path, card={"heads": "2"}).card.heads == 2  # what is given goes first


def test_arch_counts_only_if_its_width_fits(tmp_path):
    """The fixture's args say vit_small (384 wide); its weights are 24 wide: the error names both."""
    path, _ = format_example("dino", tmp_path)
    with pytest.raises(UserError, match=r"arch vit_small is 384 wide, the weights are 24 wide"):
        load(path)
    tree = torch.load(path, weights_only=False)
    tree["args"].num_heads = 3
    torch.save(tree, path)
    assert load(path).card.heads == 3


def test_the_zoo_knows_a_file_by_its_hash(tmp_path, monkeypatch):
    import hashlib

    path = tmp_path / "v.pth"
    torch.save(bare(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "plug").mkdir()
    zoo = f"{digest}: {{format: timm, heads: 3, mean: 0.5, std: 0.5, row: 'A|B'}}\n"
    (tmp_path / "plug" / "zoo.yaml").write_text(zoo)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.reading.format, checkpoint.card.heads, checkpoint.row) == ("timm", 3, "A|B")
    assert checkpoint.facts["heads"] == "zoo"
    ready(checkpoint)


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_are_peeled(tmp_path, wrap):
    torch.save({f"{wrap}{k}": v for k, v in bare().items()}, tmp_path / "w.pth")
    assert open_checkpoint(tmp_path / "w.pth", format="dino").accounting.startswith("30/30 tensors")


def test_half_precision_becomes_float32(tmp_path):
    weights = bare()
    torch.save({k: v.bfloat16() for k, v in weights.items()}, tmp_path / "h.pth")
    encoder = load(tmp_path / "h.pth", format="dino", heads=2)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert torch.equal(encoder.vit.pos_embed, weights["pos_embed"].bfloat16().float())


def test_fingerprint_is_that_of_the_weights(tmp_path):
    weights = bare()
    torch.save(weights, tmp_path / "a.pth")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in weights.items()}}, tmp_path / "b.pth")
    a, b = (open_checkpoint(tmp_path / f"{n}.pth", format="dino").fingerprint for n in "ab")
    weights["norm.bias"] = weights["norm.bias"] + 1e-6
    torch.save(weights, tmp_path / "a.pth")
    assert a == b != open_checkpoint(tmp_path / "a.pth", format="dino").fingerprint


def test_inspect_warns_of_untrained_weights(tmp_path):
    weights = bare()
    torch.save(weights, tmp_path / "a.pth")
    assert "look untrained: every LayerNorm" in report(tmp_path / "a.pth", None, {})
    weights |= {k: v + 0.1 for k, v in weights.items() if "norm" in k}
    torch.save(weights, tmp_path / "a.pth")
    assert "look untrained: neighbouring positions" in report(tmp_path / "a.pth", None, {})
    smooth = torch.linspace(0, 3, 16)[:, None] + torch.linspace(1, 2, 24)
    weights["pos_embed"] = torch.cat([torch.zeros(1, 24), smooth])[None]
    torch.save(weights, tmp_path / "a.pth")
    assert "untrained" not in report(tmp_path / "a.pth", None, {})


def cubic(values: np.ndarray, at: float) -> float:
    """Cubic convolution (a = -0.75, edges repeated) of a row at a fractional index, from its definition."""
    total = 0.0
    for i in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
        d = abs(at - i)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        total += (near if d <= 1 else far) * values[np.clip(i, 0, len(values) - 1)]
    return total


def test_dino_positions_are_sampled_by_scale_factor():
    """14 -> 6: rows 0.65, 2.94 ... 12.12 of the stored grid (methods.md 1.1), not 0.67, 3.00 ... as by size."""
    row = np.random.default_rng(0).normal(size=14)
    stored = torch.tensor(row, dtype=torch.float32).repeat_interleave(14).view(1, 196, 1)
    for rule, points in (("dino", [(i + 0.5) * 14 / 6.1 - 0.5 for i in range(6)]), ("size", None)):
        points = points or [(i + 0.5) * 14 / 6 - 0.5 for i in range(6)]
        found = resize_positions(stored, (6, 6), rule).view(6, 6)[:, 0]
        assert relative(found, [cubic(row, at) for at in points]) < 1e-5  # float32
    assert abs(points[0] - 0.667) < 1e-3
    assert resize_positions(stored, (14, 14), "dino") is stored


def test_a_text_for_a_yes_or_no():
    card = Card("vit", 8, 24, 2, 2)
    assert not card.override({"qkv_bias": "no"}).qkv_bias
    with pytest.raises(UserError, match="card qkv_bias=maybe: not bool"):
        card.override({"qkv_bias": "maybe"})


def test_card_reads_shapes_and_refuses_nonsense():
    shapes = {k: tuple(v.shape) for k, v in bare().items()}
    card = vit_card(shapes)
    found = (card.patch, card.dim, card.depth, card.pos, card.class_token, card.final_norm)
    assert found == (8, 24, 2, "learned 4x4", True, True)
    for change in ({"pos_embed": (1, 20, 24)}, {"patch_embed.proj.weight": (24, 4, 8, 8)}, {"pos_embed": (1,)}):
        with pytest.raises(UserError):
            vit_card(shapes | change)
    with pytest.raises(UserError, match="no field head"):
        card.override({"head": 3})
    with pytest.raises(UserError, match="std"):
        card.override({"std": "0"})
    assert card.override({"mean": "0.1,0.2, 0.3"}).mean == (0.1, 0.2, 0.3)


def test_images_smaller_than_a_patch_and_wrong_blocks_are_named(tmp_path):
    encoder = Encoder(Card("vit", 8, 24, 2, 2, pos="learned 4x4"))
    with pytest.raises(UserError, match="smaller than a patch"):
        encoder(torch.zeros(1, 3, 7, 32))
    with pytest.raises(UserError, match="block 2 does not exist"):
        encoder(torch.zeros(1, 3, 32, 32), blocks=[2])


def test_absurd_sizes_are_refused_before_a_network_is_built(tmp_path):
    torch.save(bare() | {"blocks.999999999.norm1.bias": torch.ones(1)}, tmp_path / "deep.pth")
    with pytest.raises(UserError, match="numbering of blocks"):
        open_checkpoint(tmp_path / "deep.pth", format="dino")
    for field, value in (("depth", 10**9), ("dim", 10**12), ("mlp_ratio", 1e9), ("pos", "learned 99999x99999")):
        with pytest.raises(UserError, match=field):
            Card("vit", 8, 24, 2).override({field: value})
