"""Linear probes: the training against torch's own optimiser and schedule, what they see, resuming, the two tasks."""

import json
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from test_knn import coloured, network, own_cache  # noqa: F401

import warm
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.tasks._joined import Joined, joined
from selfpatch_bench.benchmarks.tasks._probe import Plan, Probe, order, train
from selfpatch_bench.benchmarks.tasks.linear import Protocol
from selfpatch_bench.pretrain.common.card import Card

SMALL = ["resize=32", "crop=32", "batch=8"]


def plain_training(x, y, classes, plan, rate):
    """torch's SGD and CosineAnnealingLR, one classifier: what the official script sets up."""
    layer = torch.nn.Linear(x.shape[1], classes, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(Probe(x.shape[1], classes, plan).weight[0])
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), rate * plan.batch / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.epochs, eta_min=0)
    for epoch in range(plan.epochs):
        for picks in order(len(x), plan, epoch):
            loss = F.cross_entropy(layer(x[picks]), y[picks])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return layer


def data(count=50, dim=6, classes=4):
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(count, dim, dtype=torch.float64, generator=noise)
    return x, torch.randint(classes, (count,), generator=noise)


def fit(probe, x, y, file, stop=None):
    def stream(steps, epoch):
        if epoch == stop:
            raise KeyboardInterrupt
        yield from ((x[s], y[s]) for s in steps)

    train(probe, len(x), stream, file, "key", lambda *_: None)


def test_every_classifier_is_trained_as_by_torch(tmp_path):
    """float64, 5 epochs of unequal steps: 1e-10."""
    x, y = data()
    plan = Plan(5, 16, 3, (0.5, 4.0, 30.0))
    probe = Probe(6, 4, plan).double()
    probe.momentum = [m.double() for m in probe.momentum]
    fit(probe, x, y, tmp_path / "p.pt")
    for i, rate in enumerate(plan.rates):
        layer = plain_training(x, y, 4, plan, rate)
        for ours, theirs in ((probe.weight[i], layer.weight), (probe.bias[i], layer.bias)):
            assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()
        best = probe.top(x)[i]
        assert torch.equal(best[:, 0], layer(x).argmax(1))


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path):
    x, y = data()
    x = x.float()
    plan = Plan(6, 16, 0, (0.5, 4.0))
    whole, broken, resumed = (Probe(6, 4, plan) for _ in range(3))
    fit(whole, x, y, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, x, y, tmp_path / "p.pt", stop=4)
    fit(resumed, x, y, tmp_path / "p.pt")
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    assert Probe(6, 4, plan).resume(tmp_path / "p.pt", "another key") == 0
    (tmp_path / "p.pt").write_bytes(b"damaged")
    assert Probe(6, 4, plan).resume(tmp_path / "p.pt", "key") == 0
    for other in (["no state"], {"key": "key", "epoch": 6, "weight": torch.ones(1).expand(2**20, 2**20)}):
        torch.save(other, tmp_path / "p.pt")
        assert Probe(6, 4, plan).resume(tmp_path / "p.pt", "key") == 0


def test_a_rate_that_explodes_hinders_no_other_and_all_of_them_stop_the_run(tmp_path):
    x, y = data()
    x = x.float() * 1e20
    probe = Probe(6, 4, Plan(2, 16, 0, (1e-45, 1e30)))
    fit(probe, x, y, tmp_path / "p.pt")
    assert probe.weight[0].isfinite().all()
    with pytest.raises(UserError, match="not finite at any learning rate"):
        fit(Probe(6, 4, Plan(2, 16, 0, (1e30,))), x, y, tmp_path / "q.pt")


def test_what_the_classifier_sees(network):  # noqa: F811
    """Class tokens of the last blocks after the final norm, joined; and the mean patch token."""
    encoder = load(network)
    images = torch.randn(3, 3, 32, 40)
    raw = encoder.tokens(images, [0, 1])
    normed = [encoder.vit.norm(raw[b]) for b in (0, 1)]
    wanted = torch.cat([normed[0][:, 0], normed[1][:, 0], normed[1][:, 1:].mean(1)], 1)
    assert torch.equal(Joined(2, True)(encoder, images), wanted)
    assert torch.equal(Joined(2, False)(encoder, images), wanted[:, :48])
    assert torch.equal(Joined(0, False)(encoder, images), encoder(images).image)


def test_the_features_follow_the_network():
    small, base = Card("vit", 16, 384, 12, 6), Card("vit", 16, 768, 12, 12)
    assert joined(small, Protocol()) == Joined(4, False)
    assert joined(base, Protocol()) == Joined(1, True)
    assert joined(Card("vit", 16, 384, 2, 6), Protocol()) == Joined(2, False)
    assert joined(small, Protocol(blocks=2, avgpool=True)) == Joined(2, True)
    without = Card("vit", 16, 384, 12, 6, class_token=False, final_norm=False, readout="class_attention")
    assert joined(without, Protocol()) == Joined(0, False)
    with pytest.raises(UserError, match="class token"):
        joined(without, Protocol(blocks=4))
    with pytest.raises(UserError, match="the network has 12"):
        joined(small, Protocol(blocks=13))


@pytest.mark.parametrize(
    ("task", "values"), [("linear", ["epochs=6", "lr=3", "blocks=2"]), ("linear_sweep", ["epochs=20", "blocks=2"])]
)
def test_both_tasks_learn(coloured, network, tmp_path, task, values):  # noqa: F811
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=SMALL + values)
    assert run_command([str(network)], [task], options) == 0
    [path] = (tmp_path / "out/records" / task).glob("*.json")
    found = record.read(path)
    assert found.metrics["top1"] > 80
    assert found.protocol.effective["features"] == "class tokens of 2 blocks"
    if task == "linear_sweep":
        assert max(found.parts["rates"].values()) == found.metrics["top1"]


def test_a_killed_run_goes_on_to_the_same_numbers(coloured, network, tmp_path):  # noqa: F811
    """A real process, killed after an epoch is on disk; the views of later epochs are those of an unbroken run."""
    command = ["run", network, "--task", "linear", "--data", coloured, "--device", "cpu"]
    command += [*SMALL, "epochs=30", "lr=3", "blocks=1"]
    first = warm.Process(*command, "--out", tmp_path / "a")
    while not list((tmp_path / "a").glob("artifacts/*/*/probe.pt")):
        assert first.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not list((tmp_path / "a").glob("records/*/*.json"))
    for name in "ab":
        assert warm.run(*command, "--out", tmp_path / name).returncode == 0
    metrics, weights = zip(
        *(
            (json.loads(path.read_text())["metrics"], torch.load(state, weights_only=True)["weight"])
            for name in "ab"
            for path in (tmp_path / name).glob("records/*/*.json")
            for state in (tmp_path / name).glob("artifacts/*/*/probe.pt")
        ),
        strict=True,
    )
    assert metrics[0] == metrics[1]
    assert torch.equal(*weights)
