"""What every method can do: go on after a kill as if nothing had been, train in two processes as in one, be exported
and evaluated. DINO and SelfPatch have tests of their own for this, which go further."""

import json
import re

import pytest
import torch

from selfpatch_bench.benchmarks import load
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.config import from_dict
from selfpatch_bench.pretrain.export import export
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.step import Learner
from training import METHODS, Jobs, difference, final, lines, pictures, same
from training import one_thread as one_thread

NAMES = sorted(METHODS.keys() - {"dino", "selfpatch"})
# Sums over images are made in another order; nothing else may differ.
EXACT = ("loop.precision=float64", "network.drop_path=0", "loop.steps=5", "schedule.warmup_epochs=0")
SAVED = ("loop.steps=6", "checkpoint.every_steps=2", "loop.per_gpu=2")  # 4 steps are an epoch; drop path is on
SAME = ("loop.checkpointing=true", "loop.deterministic=true")  # what may change meanwhile, to the same numbers


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, RECIPE-KIND. kind: one (process), two, whole, killed."""
    folder, asked = tmp_path_factory.mktemp("runs"), []
    data, jobs = pictures(tmp_path_factory.mktemp("pictures")), Jobs(folder)
    for recipe in NAMES:
        start = {"recipe": recipe, "data": data}
        for kind, world in (("one", 1), ("two", 2)):
            jobs.job(world=world, out=folder / f"{recipe}-{kind}", overrides=(*METHODS[recipe], *EXACT), **start)
            asked.append((recipe, kind, 0))
        for kind, event in (("whole", None), ("killed", ("kill", 3))):
            options = (*METHODS[recipe], *SAVED)
            jobs.job(when=event, out=folder / f"{recipe}-{kind}", overrides=options, **start)
            asked.append((recipe, kind, -9 if event else 0))
        for event, code in ((("write", 6), -9), (None, 0)):
            jobs.job(when=event, recipe=None, resume=folder / f"{recipe}-killed", overrides=SAME)
            asked.append((recipe, "killed", code))
    for (recipe, kind, code), (found, said) in zip(asked, jobs.run(), strict=True):
        assert found == code, (recipe, kind, said)
    return folder


@pytest.mark.parametrize("recipe", NAMES)
def test_killed_and_resumed(runs, recipe):
    """SIGKILL after step 3, and while the last checkpoint is written: the same to the last bit, and the same log; also
    where from then on activations are computed twice."""
    whole, killed = runs / f"{recipe}-whole", runs / f"{recipe}-killed"
    assert final(whole)["step"] == 6
    assert same(final(killed), final(whole))
    assert lines(killed) == lines(whole)


@pytest.mark.shared
def test_killed_and_resumed_on_photographs(need, tmp_path):
    """The same with data/photos, for the recipes that between them have all parts."""
    data, jobs, recipes = need("data/photos"), Jobs(tmp_path), ("sere", "pwself", "moby")
    for recipe in recipes:
        options = (*METHODS[recipe], *SAVED, "schedule.warmup_epochs=0")
        for kind, event in (("whole", None), ("killed", ("kill", 3))):
            jobs.job(when=event, recipe=recipe, data=data, out=tmp_path / f"{recipe}-{kind}", overrides=options)
        jobs.job(recipe=None, resume=tmp_path / f"{recipe}-killed")
    found = jobs.run()
    assert [code for code, _ in found] == [0, -9, 0] * len(recipes), found
    for recipe in recipes:
        whole, killed = (tmp_path / f"{recipe}-{kind}" for kind in ("whole", "killed"))
        assert final(whole)["step"] == 6
        assert same(final(killed), final(whole))
        assert lines(killed) == lines(whole)


@pytest.mark.parametrize("recipe", NAMES)
def test_two_processes_equal_one(runs, recipe):
    """Same global batch, no noise, float64, across an epoch's end: weights, teacher and buffers to 1e-10. Batch
    statistics, where a method has them, are those of the global batch."""
    two, one = (final(runs / f"{recipe}-{kind}") for kind in ("two", "one"))
    assert two["step"] == one["step"] == 5
    assert difference(two, one) < 1e-10
    for a, b in zip(lines(runs / f"{recipe}-two"), lines(runs / f"{recipe}-one"), strict=True):
        assert a == pytest.approx(b, rel=1e-10)


@pytest.mark.parametrize("recipe", NAMES)
def test_training_moves_everything(runs, recipe):
    """In the log every loss is a number; after five steps no weight of the student is where it began, except gains
    that are frozen, and what the first epoch freezes has moved in the second."""
    state = final(runs / f"{recipe}-one")
    fresh = Learner(from_dict(state["config"])).double().student.state_dict()
    still = [k for k, v in state["student"].items() if v.ndim and torch.equal(v, fresh[k])]
    # A bias that only batch norm sees has no gradient: those of MoBY's linear layers but the last one's.
    unseen = re.compile(r"heads\.(\w+_)?(projector\.mlp\.[03]|predictor\.mlp\.0)\.bias")
    assert all(k.endswith("weight_g") or unseen.fullmatch(k) for k in still), still
    assert all(json.dumps(x, allow_nan=False) for x in lines(runs / f"{recipe}-one"))


@pytest.mark.parametrize("recipe", NAMES)
@torch.no_grad()
def test_an_export_is_the_network(runs, recipe):
    """Nothing but the file is given to `load`; the encoder's image vector and patches are those of the side that the
    method is evaluated by."""
    run = runs / f"{recipe}-whole"
    state = final(run)
    learner = Learner(from_dict(state["config"]))
    side = learner.cfg.checkpoint.export
    getattr(learner, side).load_state_dict(state[side])
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(2))
    network = getattr(learner, side).eval()
    found = tokens(network.backbone, images, None, network.cfg.positions)
    encoded = load(export(run))(images, blocks=[-1], norm=False)
    for ours, theirs in (
        (encoded.image, network.image(found)),
        (encoded.patches[0].flatten(2).transpose(1, 2), found.patch),
    ):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()  # float32, sums in another order


def test_exports_are_evaluated(runs, tmp_path):
    """`selfpatch run` on the folders of the runs: DAVIS on a drawn video."""
    data = make_videos(tmp_path / "videos", sequences=1, frames=3, size=(48, 64))
    options = Options(data=[str(data)], out=tmp_path / "out", overrides=["size=48", "multiple=16"], device="cpu")
    assert run_command([runs / f"{recipe}-whole" for recipe in NAMES], ["davis"], options) == 0
    found = [record.read(p) for p in (tmp_path / "out/records/davis").glob("*.json")]
    assert sorted(r.model.name for r in found) == [
        f"{recipe}-whole/{export(runs / f'{recipe}-whole').stem}" for recipe in NAMES
    ]
    assert all(0 <= r.metrics["JF_m"] <= 100 for r in found)
