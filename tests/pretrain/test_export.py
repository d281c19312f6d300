"""From a run to the evaluation: exports read back to the very network, official layouts, `selfpatch run RUN`."""

import contextlib
from argparse import Namespace

import pytest
import torch

from checkpoint_files import read_refs
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.export import export, export_command
from selfpatch_bench.benchmarks.commands.pretrain import read_weights
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.positions import resize_positions
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.export import exports
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.model.initial import load_initial
from selfpatch_bench.pretrain.step import Learner, Trainer

SMALL = [
    "views.rows.0.size=32", "views.rows.1.size=32", "views.rows.2.size=16", "views.rows.2.count=2", "loop.batch=4",
    "loop.epochs=20", "loop.device=cpu", "network.backbone=vit_tiny_patch8", "objectives.dino.outputs=12",
    "objectives.dino.hidden=16", "objectives.dino.bottleneck=8",
]  # fmt: skip
NARROW = ["network.overrides.embed_dim=24", "network.overrides.depth=2", "network.overrides.num_heads=3"]
PATCH = ["objectives.selfpatch.outputs=6", "objectives.selfpatch.hidden=16", "objectives.selfpatch.bottleneck=8"]
NETWORKS = {
    "selfpatch": ("selfpatch", []),
    "dino": ("dino", []),
    "mean": ("dino", ["network.readout=mean", "network.class_token=false"]),
    "mean with class token": ("dino", ["network.readout=mean"]),
    "other norm, positions, grid": (
        "dino",
        ["data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.4]", "network.positions=timm", "network.image_size=48"],
    ),
    "class attention beside a class token": ("selfpatch", ["network.class_token=true"]),
}


def make_run(folder, recipe="selfpatch", values=(), steps=(100,), width=NARROW):
    """A run's folder with checkpoints of these steps, whose weights are unlike an initialisation and one another."""
    options = SMALL + list(width) + (PATCH if recipe == "selfpatch" else []) + list(values)
    cfg = load_recipe(recipe, options)
    run, trainer = Run(folder), Trainer(cfg, 10, Ranks("cpu"))
    with contextlib.ExitStack() as held:
        run.create(cfg, held)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for trainer.step in steps:
            for value in trainer.learner.state_dict().values():  # student, teacher and centres, apart from each other
                value.add_(torch.randn(value.shape, generator=noise), alpha=0.1)
            run.save(trainer.state() | {"steps_per_epoch": 10, "data": {}}, keep_every=1)
    return run, trainer.learner


def run_of(folder, case, **options):
    recipe, values = NETWORKS[case]
    return make_run(folder / "run", recipe, values, **options)


def features(network, images):
    """What a `Network` makes of normalised images: image vectors and the last block's raw patches."""
    network.eval()
    with torch.no_grad():
        found = tokens(network.backbone, images, None, network.cfg.positions)
        return network.image(found), found.patch


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (40, 56)], ids=str)
def test_an_export_is_the_network(case, size, tmp_path):
    """Nothing but the file is given to `load`. Same operations in the same order, except that the encoder puts class
    token and patches together before it adds positions: bits may differ there, at most a few of the last ones."""
    run, learner = run_of(tmp_path, case)
    encoder = load(export(run.folder))
    cfg = learner.cfg
    assert (encoder.card.mean, encoder.card.std) == (tuple(cfg.data.mean), tuple(cfg.data.std))
    assert (encoder.card.heads, encoder.card.readout) == (3, cfg.network.readout)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    image, patch = features(learner.teacher, images)
    found = encoder(images, blocks=[-1], norm=False)
    for ours, theirs in ((found.image, image), (found.patches[0].flatten(2).transpose(1, 2), patch)):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    other = features(learner.student, images)[0]
    assert (other - image).abs().max() > 1e-2 * image.abs().max()  # the student's would be seen
    assert not any("head" in k for k in open_checkpoint(export(run.folder)).reading.weights)


def test_the_student_can_be_had(tmp_path):
    run, learner = run_of(tmp_path, "selfpatch")
    path = export(run.folder, which="student")
    assert path.name == "step-00000100.student.safetensors"
    images = torch.randn(1, 3, 32, 32)
    assert torch.allclose(load(path)(images).image, features(learner.student, images)[0], rtol=0, atol=1e-5)
    assert exports(run.folder) == [run.folder / "exports/step-00000100.safetensors"]  # which is not the student's


def raw(path):
    """An official file as its own code reads it."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


@pytest.mark.parametrize("case", ["selfpatch", "dino"])
def test_official_layouts_come_back_bit_for_bit(case, tmp_path, capsys):
    run, learner = run_of(tmp_path, case)
    assert export_command(run.folder, format=case) == 0
    assert f"format {case}" in capsys.readouterr().out
    path, own = run.folder / f"exports/step-00000100.{case}.pth", open_checkpoint(export(run.folder))
    found = open_checkpoint(path)  # detected, nothing given
    assert (found.reading.format, found.lacking, found.rivals) == (case, [], [])
    assert (found.card, found.fingerprint) == (own.card, own.fingerprint)
    assert found.reading.weights.keys() == own.reading.weights.keys()
    for key, value in own.reading.weights.items():
        assert torch.equal(found.reading.weights[key], value)
    for size in ((32, 32), (24, 48)):  # weights lie in the two files at other alignments, which moves last bits
        images = torch.randn(1, 3, *size)
        a, b = (load(p)(images) for p in (path, export(run.folder)))
        for got, want in ((a.image, b.image), (a.patches[0], b.patches[0])):
            assert (got - want).abs().max() <= 1e-6 * want.abs().max()
    tree = raw(path)
    state, heads = (
        learner.state_dict(),
        {"c_head": "c_head", "p_head": "p_head"} if case == "selfpatch" else {"head": "head"},
    )
    assert all(k.startswith("module.") for k in tree["student"])
    assert {k.removeprefix("module.") for k in tree["student"]} == tree["teacher"].keys()
    for side, prefix in (("student", "module."), ("teacher", "")):
        assert torch.equal(tree[side][f"{prefix}backbone.pos_embed"], state[f"{side}.backbone.pos_embed"])
        for name in (f"{head}.last_layer.weight_v" for head in heads):
            assert torch.equal(tree[side][prefix + name], state[f"{side}.heads.{name}"])
    centre = state["objectives.dino.centre"]
    assert torch.equal(tree["dino_loss"]["center"], centre[None] if case == "selfpatch" else centre)
    if case == "selfpatch":
        assert torch.equal(tree["dino_loss"]["patch_center"], state["objectives.selfpatch.centre"])
    assert (tree["args"].num_heads, tree["args"].patch_size, tree["epoch"]) == (3, 8, 10)


def test_an_official_layout_names_no_architecture_of_another_depth(tmp_path):
    """A ViT-Ti with two blocks: a file that says vit_tiny would be refused, for ten of them would seem lost."""
    run, _ = make_run(tmp_path / "run", width=["network.overrides.depth=2"])
    found = open_checkpoint(export(run.folder, format="selfpatch"))
    assert (found.card.dim, found.card.depth, found.card.heads) == (192, 2, 3)


@pytest.mark.shared
@pytest.mark.parametrize("case", ["selfpatch", "dino"])
def test_official_layouts_have_the_official_names(case, need, tmp_path):
    """Tensors of student, teacher and loss as in a file of the official shape; both have two blocks."""
    tensors, _ = read_refs(need(f"checkpoints/tiny/{case}.pth"))
    wanted = {k: len(r.shape) for k, r in tensors.items() if not k.startswith("optimizer")}
    blocks = 1 + max(int(k.split(".blocks.")[1].split(".")[0]) for k in wanted if ".backbone.blocks." in k)
    recipe, values = NETWORKS[case]
    run, _ = make_run(tmp_path / "run", recipe, [*values, f"network.overrides.depth={blocks}"])
    found, _ = read_refs(export(run.folder, format=case))
    assert {k: len(r.shape) for k, r in found.items()} == wanted


def test_the_controlled_baseline_has_the_layout_without_patch_head(tmp_path):
    run, _ = make_run(tmp_path / "run", values=["objectives.selfpatch.weight=0"])
    path = export(run.folder, format="selfpatch")
    assert not any("p_head" in k for k in raw(path)["teacher"])
    assert open_checkpoint(path).fingerprint == open_checkpoint(export(run.folder)).fingerprint


def test_export_then_import_is_the_identity(tmp_path):
    """On backbone and readout, through every kind of file."""
    run, learner = run_of(tmp_path, "selfpatch")
    for format in (None, "selfpatch"):
        fresh = Learner(learner.cfg)
        assert not torch.equal(fresh.student.backbone.pos_embed, learner.teacher.backbone.pos_embed)
        load_initial(fresh, export(run.folder, format=format), read_weights=read_weights)
        for part in ("backbone", "readout"):
            want = getattr(learner.teacher, part).state_dict()
            got = getattr(fresh.student, part).state_dict()
            assert all(torch.equal(got[k], v) for k, v in want.items())


@pytest.mark.parametrize(
    ("case", "values", "format", "words"),
    [
        ("dino", [], "selfpatch", "network.readout=token"),
        ("selfpatch", [], "dino", "objective selfpatch"),
        ("selfpatch", ["objectives.selfpatch.weight=0"], "dino", "network.readout=class_attention"),
        ("class attention beside a class token", [], "selfpatch", "a class token"),
        ("dino", ["network.overrides.reg_tokens=2", "network.overrides.no_embed_class=true"], None, "positions"),
        ("dino", ["data.mean=[0.5,0.5,0.5]"], "dino", "mean"),
        ("dino", ["network.positions=timm"], "dino", "pos_resize timm"),
        ("dino", ["network.overrides.init_values=0.1"], "dino", "LayerScale"),
        ("selfpatch", ["network.readout_depth=3"], None, "readout_depth=3"),
        ("dino", [], "mae", "selfpatch or dino"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(case, values, format, words, tmp_path):
    recipe, more = NETWORKS[case]
    run, _ = make_run(tmp_path / "run", recipe, [*more, *values])
    with pytest.raises(UserError, match=words):
        export(run.folder, format=format)
    assert [p.name for p in run.folder.glob("exports/*")] == []  # nothing half-written


def test_the_newest_or_a_given_step_once(tmp_path):
    run, _ = make_run(tmp_path / "run", steps=(10, 20, 25, 30))
    path = export(run.folder)
    assert path.name == "step-00000030.safetensors"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert export(run.folder) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    older = export(run.folder, step=20, out=tmp_path / "elsewhere/older.safetensors")
    assert open_checkpoint(older).fingerprint != open_checkpoint(path).fingerprint
    with pytest.raises(UserError, match="steps 10, 20, 25, 30"):
        export(run.folder, step=15)
    assert [p.stem for p in exports(run.folder, 10)] == ["step-00000010", "step-00000020", "step-00000030"]
    with pytest.raises(UserError, match="--every 7: no such checkpoint"):
        exports(run.folder, 7)
    for step in run.steps().values():
        step.unlink()
    assert exports(run.folder) == [path]  # the export outlives its checkpoint


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    run, _ = make_run(tmp_path / "run", steps=(10, 20))
    run.steps()[20].write_bytes(run.steps()[20].read_bytes()[:1000])
    assert export(run.folder).name == "step-00000010.safetensors"
    with pytest.raises(UserError, match="damaged"):
        export(run.folder, step=20)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no pretraining run is there"):
        export(tmp_path)
    with contextlib.ExitStack() as held:
        Run(tmp_path / "run").create(load_recipe("dino", SMALL + NARROW), held)
    with pytest.raises(UserError, match="no checkpoint yet"):
        export(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint yet"):
        run_command([tmp_path / "run"], ["davis"], Options())
    with pytest.raises(UserError, match="--every 2: is for folders"):
        run_command([tmp_path / "x.pth"], ["davis"], Options(every=2))
    run, _ = make_run(tmp_path / "other")
    (run.folder / "exports").write_text("in the way")
    with pytest.raises(UserError, match="exports cannot be made"):
        export(run.folder)
    with pytest.raises(UserError, match="--which both"):
        export(run.folder, which="both")


def test_a_run_is_evaluated_by_its_checkpoints(tmp_path):
    """DAVIS on a drawn video: the newest, then every tenth; what is done already is not done again."""
    run, _ = make_run(tmp_path / "mine", steps=(10, 15, 20))
    data = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(48, 64))
    options = {"data": [str(data)], "out": tmp_path / "out", "overrides": ["size=48", "multiple=16"], "device": "cpu"}

    def evaluated():
        found = [record.read(p) for p in (tmp_path / "out/records/davis").glob("*.json")]
        return {r.model.name: r.metrics["JF_m"] for r in found}

    assert run_command([run.folder], ["davis"], Options(**options)) == 0
    first = evaluated()
    assert list(first) == ["mine/step-00000020"]
    assert run_command([run.folder], ["davis"], Options(**options, every=10)) == 0
    assert evaluated().keys() == {"mine/step-00000010", "mine/step-00000020"}
    direct = run.folder / "exports/step-00000020.safetensors"
    assert run_command([direct], ["davis"], Options(**options)) == 0  # the same model by another way
    assert len(list((tmp_path / "out/records/davis").glob("*.json"))) == 2
    assert evaluated()["mine/step-00000020"] == first["mine/step-00000020"]


def test_start_from_a_file_that_two_formats_claim(tmp_path):
    """Bare names: DINO's code and timm's resize positions differently, which matters only on another grid."""
    encoder = Encoder(Card("vit", 16, 48, 3, 3, pos="learned 4x4"))
    path = tmp_path / "bare.pth"
    torch.save(encoder.vit.state_dict(), path)
    small = ["network.overrides={embed_dim: 48, depth: 3, num_heads: 3}", "network.image_size=112"]
    small += ["objectives.dino.outputs=16", "objectives.dino.hidden=16"]
    learner = Learner(load_recipe("dino", ["network.backbone=vit_tiny_patch16", *small]))
    with pytest.raises(UserError, match=r"could be dino or timm .*init_format=NAME"):
        load_initial(learner, path, read_weights=read_weights)
    stored = encoder.vit.pos_embed[:, 1:]
    for format in ("dino", "timm"):
        assert f"format {format}" in load_initial(learner, path, format, read_weights)
        assert torch.equal(learner.teacher.backbone.pos_embed[:, 1:], resize_positions(stored, (7, 7), format))
