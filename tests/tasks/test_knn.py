"""k-NN: the official figures on real pictures, the vote against a plain one, the feature cache, bad data."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_davis import rescaled

from conftest import shared_cases
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.benchmarks.metrics.significance import unpack
from selfpatch_bench.benchmarks.results import record
from selfpatch_bench.benchmarks.results.collect import collect
from selfpatch_bench.benchmarks.run.runner import Options, plan, run_command
from selfpatch_bench.benchmarks.tasks import TaskConfig
from selfpatch_bench.benchmarks.tasks._classes import accuracies
from selfpatch_bench.benchmarks.tasks._features import Crop, features, image_vector
from selfpatch_bench.benchmarks.tasks._vote import vote
from selfpatch_bench.benchmarks.tasks.knn import Protocol
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights

COLOURS = {"blue": (40, 60, 190), "green": (50, 160, 60), "red": (200, 50, 40)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def coloured(tmp_path) -> Path:
    """Three classes of noisy pictures of one colour, of several shapes: 8 + 4 each."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (40 + 8 * (i % 3), 56 - 4 * i, 3)
                pixels = np.clip(noise.normal(colour, 40, shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def network(tmp_path) -> Path:
    torch.manual_seed(0)
    card = Card("vit", 8, 24, 2, 3, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    path = tmp_path / "net.safetensors"
    save_weights(path, Encoder(card).vit.state_dict(), card, {})
    return path


@pytest.mark.shared
@pytest.mark.parametrize("case", shared_cases("golden/knn_*.json"))
def test_official_figures(case, tmp_path, need):
    """Every accuracy to within one picture, the recorded feature to 1e-4 (Pillow's decoders differ by rounding)."""
    wanted = json.loads(case.read_text())
    data = need(wanted["data"])
    checkpoint = need(wanted["checkpoint"])
    if "rescaled" in wanted.get("patch_embed", ""):
        checkpoint = rescaled(checkpoint, tmp_path / "rescaled.pth")
    card = {"heads": str(wanted["heads"])}
    ks = sorted(int(k) for k in wanted["k"])
    options = Options(data=[str(data)], out=tmp_path, card=card, device="cpu")
    options.overrides = [f"k={ks[0]}", f"other_k={ks[1:]}"]
    assert run_command([str(checkpoint)], ["knn"], options) == 0
    [path] = (tmp_path / "records/knn").glob("*.json")
    metrics = record.read(path).metrics
    picture = 100 / wanted["val"]
    for k in ks:
        for name in ("top1", "top5"):
            ours = metrics[name if k == ks[0] else f"{name}_k{k}"]
            assert abs(ours - wanted["k"][str(k)][name]) <= picture + 1e-9, (k, name)
    split = open_classes(data).val
    images = torch.tensor(Crop()(split.read(0))).permute(2, 0, 1)[None]
    encoder = load(checkpoint, heads=wanted["heads"])
    first = F.normalize(image_vector(encoder, encoder.normalise(images)))[0]
    golden = torch.tensor(wanted["val_feature_0"])
    assert (first - golden).abs().max() / golden.abs().max() < 1e-4


def test_vote_is_the_plain_one():
    """Against loops over neighbours in float64."""
    torch.manual_seed(1)
    train, val = (F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (30, 17))
    labels = torch.randint(7, (30,))
    ranked = vote(train, labels, val, 7, [1, 4, 99], 0.07, step=5)
    for k, best in ranked.items():
        for i, image in enumerate(val):
            cosine = (train @ image).tolist()
            scores = [0.0] * 7
            for j in sorted(range(30), key=lambda j: -cosine[j])[:k]:
                scores[labels[j]] += float(np.exp(cosine[j] / 0.07))
            wanted = sorted((c for c in range(7) if scores[c]), key=lambda c: -scores[c])[:5]
            assert best[i].tolist()[: len(wanted)] == wanted


def test_top5_is_over_no_more_classes_than_neighbours():
    """As the official script counts: of one neighbour the first class only, of two the first two ..."""
    torch.manual_seed(2)
    train, val = (F.normalize(torch.randn(n, 5), dim=1) for n in (60, 40))
    labels, truth = torch.randint(12, (60,)), torch.randint(12, (40,))
    ranked = vote(train, labels, val, 12, [1, 2, 3, 4, 5, 8, 200], 0.07, step=7)
    for k, best in ranked.items():
        assert best.shape == (40, min(5, k))
    first, five = accuracies(ranked[1], truth)
    assert np.array_equal(first, five)
    nearest = labels[(val.double() @ train.double().T).topk(2, 1).indices]
    agree = nearest[:, 0] == nearest[:, 1]  # both votes for one class: the second class has none, whichever it is
    assert np.array_equal(accuracies(ranked[2], truth)[1][~agree], (nearest == truth[:, None]).any(1).numpy()[~agree])
    few = vote(train[:3], labels[:3], val, 12, [20], 0.07)
    assert few[20].shape == (40, 3)  # three images are the neighbours in force


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.01, 0.003])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_votes_are_those_of_float64(temperature, spread):
    """Also where exp(cosine / T) is beyond float32, for features that are all alike (cosines above 0.9) or not."""
    torch.manual_seed(3)
    centres = torch.randn(9, 24)
    labels, truth = torch.randint(9, (400,)), torch.randint(9, (150,))
    common = 2 * torch.randn(24) / spread
    train, val = (F.normalize(common + centres[x] + 2 * torch.randn(len(x), 24), dim=1) for x in (labels, truth))
    cosines = (val.double() @ train.double().T).numpy()
    assert (cosines.min() > 0.9) == (spread < 1)
    ks = [1, 5, 20, 150]
    ranked = vote(train, labels, val, 9, ks, temperature)
    for k in ks:
        for row, best in zip(cosines, ranked[k].tolist(), strict=True):
            scores = np.zeros(9)
            for j in np.argsort(-row)[:k]:
                scores[labels[j]] += np.exp(row[j] / temperature)
            wanted = [c for c in np.argsort(-scores) if scores[c]][: min(5, k)]
            assert best[: len(wanted)] == wanted
    right = [accuracies(ranked[k], truth)[0].mean() for k in ks]
    assert min(right) > 0.25, right  # chance is 0.11


def test_a_far_vote_is_still_a_vote():
    """However low the temperature: a class with a neighbour comes before those without one."""
    train = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]]), dim=1)
    best = vote(train, torch.tensor([17, 25, 3]), torch.tensor([[1.0, 0.0]]), 40, [2, 3], 1e-4)
    assert best[2].tolist() == [[17, 25]]
    assert set(best[3][0].tolist()) == {17, 25, 3}


@pytest.mark.parametrize("shape", [(64, 64), (375, 500), (301, 222), (225, 1000)])
def test_the_crop_of_the_official_scripts(shape):
    """Shorter side to 256 by bicubic, the longer one cut to whole pixels; then the middle, halves rounded to even."""
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    height, width = (256 if side == min(shape) else int(256 * side / min(shape)) for side in shape)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    resized = Image.fromarray(image).resize((width, height), Image.BICUBIC)
    assert np.array_equal(Crop()(image), np.asarray(resized.crop((left, top, left + 224, top + 224))))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 64), None), ((64, 96), None), ((32, 48), (64, 96)), ((65, 65), (73, 73)), ((256, 128), (146, 73))],
)
def test_small_pictures_are_not_cut(shape, size):
    """resize=none: a picture of the crop's size comes as it is, a smaller one is enlarged just so far, and only larger
    ones are cut in DINO's proportion; at 224 pixels that is DINO's own, and the official protocol is as it was."""
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    height, width = size or shape
    resized = Image.fromarray(image).resize((width, height), Image.BICUBIC) if size else Image.fromarray(image)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    assert np.array_equal(Crop(None, 64)(image), np.asarray(resized.crop((left, top, left + 64, top + 64))))
    large = np.random.default_rng(2).integers(0, 256, (225, 300, 3), np.uint8)
    assert np.array_equal(Crop(None)(large), Crop()(large))
    assert (Protocol().resize, Protocol().crop) == (256, 224)


def test_record_of_a_run(coloured, network, tmp_path):
    """Random weights tell the colours apart; flags and classes agree with the metric; a limit is shared out."""
    small = ["resize=32", "crop=32", "k=3", "other_k=[1]"]
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=small)
    assert run_command([str(network)], ["knn"], options) == 0
    options.limit = 6
    assert run_command([str(network)], ["knn"], options) == 0
    full, limited = sorted(
        (record.read(p) for p in (tmp_path / "out/records/knn").glob("*.json")), key=lambda r: str(r.limit)
    )[::-1]
    assert full.metrics["top1"] > 80
    assert full.metrics["top5"] == 100
    right = unpack(full.parts["correct"]["top1"], full.parts["images"])
    assert 100 * right.mean() == pytest.approx(full.metrics["top1"])
    assert np.mean(list(full.parts["classes"].values())) == pytest.approx(full.metrics["top1"])
    assert set(full.metrics) == {"top1", "top5", "top1_k1", "top5_k1"}
    assert limited.parts["images"] == 6
    assert None not in limited.parts["classes"].values()
    assert "3 classes instead of 1000" in full.data.differs


def test_the_record_counts_one_neighbour_once(coloured, network, tmp_path):
    """Blue and red validation pictures change places; the right one is always among three classes."""
    for a, b in (("blue", "other"), ("red", "blue"), ("other", "red")):
        (coloured / "val" / a).rename(coloured / "val" / b)
    values = ["resize=32", "crop=32", "k=1", "other_k=[3]"]
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=values)
    assert run_command([str(network)], ["knn"], options) == 0
    [path] = (tmp_path / "out/records/knn").glob("*.json")
    made = record.read(path)
    assert made.metrics["top1"] == made.metrics["top5"] < 50
    assert made.metrics["top5_k3"] == 100
    assert made.parts["correct"]["top1"] == made.parts["correct"]["top5"]


def test_more_neighbours_than_training_images(coloured, network, tmp_path, capsys):
    """All 24 images vote; it is said once, and the record has the numbers in force, for the other k as well."""
    values = ["resize=32", "crop=32", "k=25", "other_k=[3,24,200]"]
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=values)
    assert run_command([str(network)], ["knn"], options) == 0
    said = "note: k=25, 200: there are only 24 training images, and all of them vote"
    assert capsys.readouterr().out.count(said) == 1
    [path] = (tmp_path / "out/records/knn").glob("*.json")
    made = record.read(path)
    assert made.protocol.effective["k"] == 24
    assert made.protocol.effective["other_k"] == [3, 24, 24]
    assert made.protocol.values["k"] == 25
    assert made.metrics["top1"] == made.metrics["top1_k24"] == made.metrics["top1_k200"]
    options.overrides = ["resize=32", "crop=32", "k=24", "other_k=[3]"]
    assert run_command([str(network)], ["knn"], options) == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_temperatures_that_are_none(coloured, network, value):
    options = Options(data=[str(coloured)], device="cpu", overrides=[f"temperature={value}"])
    with pytest.raises(UserError, match=f"temperature={value}.*: it must be (above 0|finite)"):
        plan([network], ["knn"], options)


@pytest.mark.shared
def test_cases_that_once_failed(need, tmp_path, capsys):
    """k = 1 to 3 of many classes, a low temperature, and few training images."""
    network = need("checkpoints/tiny/dino.pth")

    def run(case: str, *values: str) -> dict:
        out = tmp_path / case
        options = Options(data=[str(need(f"cases/{case}/D"))], out=out, card={"heads": "4"}, device="cpu")
        options.overrides = ["precision=float32", *values]
        assert run_command([str(network)], ["knn"], options) == 0
        [path] = (out / "records/knn").glob("*.json")
        return record.read(path)

    found = run("knn_k1_top5", "k=1", "other_k=[2,3,5]").metrics
    assert found["top1"] == found["top5"] < found["top5_k2"] < found["top5_k5"]
    cold = run("knn_T001", "k=20", "temperature=0.01", "other_k=[1]").metrics
    assert cold["top1"] > 12.5  # chance, of eight classes

    def top1(case: str, folder: str) -> float:
        options = Options(data=[str(need(f"cases/{case}/{folder}"))], out=tmp_path / case, card={"heads": "4"})
        options.overrides, options.device = ["resize=64", "crop=64"], "cpu"
        assert run_command([str(network)], ["knn"], options) == 0
        made = sorted(record.records(tmp_path / case), key=lambda r: r.created)
        return made[-1].metrics["top1"]

    assert top1("knn_bmp_stale", "A") == 100 > top1("knn_bmp_stale", "B")
    small = run("knn_small_k", "k=20", "other_k=[1,100]")
    images = len(list(need("cases/knn_small_k/D/train").rglob("*.jpg")))
    assert f"k=20, 100: there are only {images} training images" in capsys.readouterr().out
    assert small.protocol.effective["other_k"] == [1, images]
    assert small.metrics["top5_k1"] == small.metrics["top1_k1"]


def test_the_same_names_and_sizes_are_not_the_same_data(coloured, network, tmp_path, capsys):
    """Uncompressed pictures whose classes are exchanged in val/: other numbers, whatever is known of the first."""
    for path in coloured.rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path.with_suffix(".bmp"))
        path.unlink()
    other = Path(shutil.copytree(coloured, tmp_path / "other"))
    for i, name in enumerate(COLOURS):
        for path in (other / "val" / name).iterdir():
            shutil.copy(coloured / "val" / [*COLOURS][i - 1] / path.name, path)
    values = ["resize=32", "crop=32", "k=3", "other_k=[1]"]
    for data in (coloured, other, coloured):
        options = Options(data=[str(data)], out=tmp_path / "out", device="cpu", overrides=values)
        assert run_command([str(network)], ["knn"], options) == 0
    first, second = sorted(record.records(tmp_path / "out"), key=lambda r: r.created)
    assert first.metrics["top1"] > 80
    assert second.metrics["top1"] < 20
    assert capsys.readouterr().out.count("done already") == 1  # the third
    # A record of an older version, which knew names and sizes alone, is neither this result nor nothing.
    stored = json.loads(first.path.read_text())
    stored["data"]["fingerprint"] = "sha256:" + "0" * 64
    first.path.with_stem("0" * 16).write_text(json.dumps(stored | {"key": "0" * 16}))
    first.path.unlink()
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=values)
    assert run_command([str(network)], ["knn"], options) == 0
    said = capsys.readouterr().out
    assert re.search(r"note: .* on knn: .*/0{16}\.json is older: its data are known by names and sizes alone", said)
    assert "done already" not in said
    assert len(record.records(tmp_path / "out")) == 3
    assert run_command([str(network)], ["knn"], options) == 0
    said = capsys.readouterr().out
    assert "done already" in said
    assert "older" not in said
    found = collect(record.records(tmp_path / "out"))
    stale = ["older: data known by names and sizes alone" in result.differs for result in found]
    assert stale == [result.record.key == "0" * 16 for result in found]


def test_features_are_computed_once_and_survive_damage(coloured, network, monkeypatch, tmp_path):
    monkeypatch.setattr("selfpatch_bench.benchmarks.tasks._features.CHUNK", 5)
    encoder, split = load(network), open_classes(coloured).as_data().content.train
    calls = []

    def counted(net, images):
        calls.append(len(images))
        return image_vector(net, images)

    def compute(crop):
        calls.clear()
        return features(encoder, split, counted, "x", TaskConfig(Protocol(resize=crop, crop=crop)))

    first = compute(32)
    assert sum(calls) == len(split)
    plain = torch.stack(
        [
            image_vector(encoder, encoder.normalise(torch.tensor(Crop(32, 32)(split.read(i))).permute(2, 0, 1)[None]))[
                0
            ]
            for i in range(len(split))
        ]
    )
    assert (first - plain).abs().max() < 1e-5 * plain.abs().max()
    assert torch.equal(compute(32), first)
    assert not calls
    files = sorted((tmp_path / "cache/features").glob("*/*.npy"))
    assert len(files) == 5
    files[1].write_bytes(files[1].read_bytes()[:-9])  # cut off
    assert torch.equal(compute(32), first)
    assert sum(calls) == 5
    assert not torch.equal(compute(24), first)
    assert sum(calls) == len(split)
    kept = sorted((tmp_path / "cache").rglob("*"))
    cfg = TaskConfig(Protocol(resize=16, crop=16))
    assert len(features(encoder, split, image_vector, None, cfg)) == len(split)  # without a name: kept nowhere
    assert sorted((tmp_path / "cache").rglob("*")) == kept


def test_several_devices_share_the_work(coloured, network, monkeypatch):
    encoder, split = load(network), open_classes(coloured).as_data().content.train
    monkeypatch.setattr("selfpatch_bench.benchmarks.tasks._features.BATCH", 3)
    cfg = TaskConfig(Protocol(resize=32, crop=32))
    alone = features(encoder, split, image_vector, "x", cfg)
    monkeypatch.setenv("SELFPATCH_CACHE", str(coloured / "other_cache"))
    monkeypatch.setattr("selfpatch_bench.benchmarks.tasks._features.devices", lambda _: ["cpu", "cpu"])
    cfg.device = "cuda"
    assert torch.equal(features(encoder, split, image_vector, "x", cfg), alone)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "val").rename(d / "test"), "has no val/"),
        (lambda d: (d / "val/red").rename(d / "val/pink"), "class red is in train/ but not in val/"),
        (lambda d: (d / "train/red/0.png").rename(d / "train/0.png"), "is not in a class folder"),
        (lambda d: (d / "val/red/0.png").write_bytes(b"no"), "val/red/0.png: cannot be read"),
    ],
)
def test_bad_data_is_named(coloured, network, tmp_path, spoil, said, capsys):
    spoil(coloured)
    options = Options(data=[str(coloured)], out=tmp_path / "out", device="cpu", overrides=["resize=32", "crop=32"])
    if "cannot be read" in said:  # found while the pictures are read
        assert run_command([str(network)], ["knn"], options) == 1
        assert said in capsys.readouterr().out
        return
    with pytest.raises(UserError, match=re.escape(said)):
        run_command([str(network)], ["knn"], options)


@pytest.mark.parametrize("task", ["knn", "linear", "linear_sweep"])
def test_masks_are_for_videos(coloured, task):
    options = Options(data=[str(coloured)], device="cpu", own={"masks": coloured})
    with pytest.raises(UserError, match=f"--masks: is for davis; {task} has no such flag"):
        plan([], [task], options)
