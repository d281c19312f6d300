"""Schedules: the numbers of the official code, and those of the specification."""

import math

import numpy as np
import pytest

from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe, total_steps
from selfpatch_bench.pretrain.options import Schedule


def test_learning_rate():
    lr = optim.cosine(2e-3, 1e-6, steps=300, warmup=30)
    assert len(lr) == 300
    assert lr[0] == 0
    assert lr[29] == lr[30] == 2e-3
    np.testing.assert_allclose(lr[:30], 2e-3 * np.arange(30) / 29, rtol=1e-14)
    plain = [1e-6 + (2e-3 - 1e-6) / 2 * (1 + math.cos(math.pi * (t - 30) / 270)) for t in range(30, 300)]
    np.testing.assert_allclose(lr[30:], plain, rtol=1e-12)


@pytest.mark.parametrize(("base", "middle"), [(0.996, 0.998), (0.99, 0.995)])
def test_momentum_rises_to_one(base, middle):
    m = optim.cosine(base, 1.0, steps=1000)
    assert m[0] == pytest.approx(base, abs=1e-15)
    assert m[500] == pytest.approx(middle, abs=1e-15)
    assert np.all(np.diff(m) > 0)
    assert m[-1] < 1


def test_warm_up_that_does_not_fit_is_said():
    with pytest.raises(UserError, match="warm-up of 50 steps"):
        optim.cosine(1.0, 0.0, steps=20, warmup=50)
    with pytest.raises(UserError, match="warm-up of 410 steps does not fit a run of 100"):
        optim.build_schedules(Schedule(), batch=8, steps=100, steps_per_epoch=41)


def test_warm_up_as_long_as_the_run():
    assert optim.cosine(1.0, 0.0, steps=5, warmup=5).tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_teacher_temperature_by_epoch():
    values = [optim.warm_up(0.04, 0.07, 4, epoch) for epoch in range(7)]
    np.testing.assert_allclose(values, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07, 0.07], rtol=1e-14)
    assert optim.warm_up(0.04, 0.07, 0, 0) == 0.07


def test_a_run_of_the_selfpatch_recipe():
    cfg = load_recipe("selfpatch")
    per_epoch = 1251  # ImageNet-1k in batches of 1024
    steps = total_steps(cfg, per_epoch)
    run = optim.build_schedules(cfg.schedule, cfg.loop.batch, steps, per_epoch)
    assert len(run) == len(run.weight_decay) == len(run.ema) == steps == 200 * per_epoch
    assert run.lr.max() == pytest.approx(2e-3, rel=1e-14)
    assert run.lr[10 * per_epoch - 1] == run.lr[10 * per_epoch] == run.lr.max()
    assert run.lr[-1] == pytest.approx(1e-6, rel=1e-3)
    assert run.weight_decay[0] == pytest.approx(0.04, rel=1e-14)
    assert run.weight_decay[steps // 2] == pytest.approx(0.22, rel=1e-12)


def test_shifted_momentum():
    """A teacher that moves before the next forward: at its first update nothing but the step's weights is new."""
    plain = optim.build_schedules(Schedule(ema=0.99, warmup_epochs=0), 8, 20, 5).ema
    early = optim.build_schedules(Schedule(ema=0.99, warmup_epochs=0, ema_shift=1), 8, 20, 5).ema
    assert len(early) == 20
    np.testing.assert_array_equal(early[:-1], plain[1:])
    assert early[-1] == 1


def test_scaled_minimum():
    run = optim.build_schedules(Schedule(min_lr=1e-3, scale_min_lr=True, warmup_epochs=0), 512, 10000, 5)
    assert run.lr[-1] == pytest.approx(2e-3, rel=1e-4)


def test_steps_instead_of_epochs():
    assert total_steps(load_recipe("dino", ["loop.steps=100"]), 41) == 100
    assert total_steps(load_recipe("dino", ["loop.epochs=3"]), 41) == 123
