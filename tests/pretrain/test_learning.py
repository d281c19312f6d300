"""A network learns: after some seconds of MoBY on drawn textures k-NN tells their colours better than with the initial
weights, and with the loss's sign turned it does not. So a sign error anywhere between loss and weights fails."""

import statistics

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.benchmarks.commands.watch import encoder_of
from selfpatch_bench.benchmarks.synthetic.textures import TEXTURES, palette, texture
from selfpatch_bench.benchmarks.tasks._vote import vote
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.objectives import moby
from selfpatch_bench.pretrain.step import Learner

SIDE, CLASSES, EACH, JUDGED, SEEDS = 32, 12, 40, 20, (0, 1, 2)  # EACH: of a class to learn from; JUDGED: to judge by
# Brightness and contrast vary from view to view, as they do from picture to picture; colours stay, and are the class.
SMALL = (
    f"views.rows=[{{role: global, count: 2, size: {SIDE}, scale: [0.2, 1.0], blur_p: 0.0, gray_p: 0.0, "
    "jitter: [0.8, 0.8, 0.0, 0.0], jitter_p: 1.0}]",
    "network.overrides={embed_dim: 64, depth: 2, num_heads: 2}", "objectives.moby.hidden=128",
    "objectives.moby.outputs=64", "objectives.moby.queue=128", "loop.epochs=6", "loop.batch=40", "schedule.lr_batch=40",
    "schedule.lr=0.005", "schedule.ema=0.9", "loop.device=cpu", "loop.precision=float32", "data.workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Textures of all kinds, light or dark, in the colours of their class: the folder to learn from, the pictures uint8
    [n, 3, S, S] of both parts and their classes [n]."""
    folder, rng, found = tmp_path_factory.mktemp("textures"), np.random.default_rng(5), ([], [])
    colours = [palette(rng) for _ in range(CLASSES)]
    for i in range(EACH + JUDGED):
        for k in range(CLASSES):
            light, surface = rng.uniform(0.2, 1.0), TEXTURES[rng.integers(len(TEXTURES))]
            picture = (light * texture(rng, surface, SIDE, SIDE, colours[k], rng.uniform(4, 10))).astype(np.uint8)
            found[i >= EACH].append(torch.from_numpy(picture).permute(2, 0, 1))
            if i < EACH:
                assert cv2.imwrite(str(folder / f"{i:03d}-{k}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return folder, *((torch.stack(part), torch.arange(len(part)) % CLASSES) for part in found)


def accuracy(state, cfg, drawn) -> float:
    """k-NN top-1 in percent of a network's image vectors."""
    _, (train, labels), (val, truth) = drawn
    encoder = encoder_of(state, cfg).eval()
    with torch.inference_mode():
        known, asked = (F.normalize(encoder(encoder.normalise(x)).image, dim=1) for x in (train, val))
    return 100 * float((vote(known, labels, asked, CLASSES, [10], 0.07)[10][:, 0] == truth).float().mean())


def learned(drawn, out, seed: int) -> tuple[float, float]:
    """Accuracy of the initial weights and after the run."""
    cfg = load_recipe("moby_small", [*SMALL, f"seed={seed}"])
    before = accuracy(Learner(cfg).student.state_dict(), cfg, drawn)
    assert pretrain_command("moby_small", drawn[0], out, overrides=[*SMALL, f"seed={seed}"]) == 0
    return before, accuracy(Run(out).newest()[1]["student"], cfg, drawn)


def test_moby_learns_and_with_its_sign_turned_it_does_not(drawn, tmp_path, monkeypatch):
    """Above the untrained network by twice the spread over seeds, of which neither side may be the luck."""
    before, after = zip(*(learned(drawn, tmp_path / f"{seed}", seed) for seed in SEEDS), strict=True)
    spread = max(statistics.stdev(before), statistics.stdev(after))
    needed = statistics.mean(before) + 2 * spread
    assert statistics.mean(after) > needed, (before, after)
    forward = moby.Objective.forward

    def turned(*given):
        losses, stats = forward(*given)
        return {name: -loss for name, loss in losses.items()}, stats

    monkeypatch.setattr(moby.Objective, "forward", turned)
    _, wrong = learned(drawn, tmp_path / "turned", SEEDS[0])
    assert wrong < needed, (before, after, wrong)
