"""Evaluation while a network trains: the same numbers as afterwards, and nothing of the training changes by it."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.benchmarks.commands.watch import Evaluator, encoder_of, some
from selfpatch_bench.benchmarks.datasets.imagenet import open_classes
from selfpatch_bench.benchmarks.pictures.maps import GAP, attention, draw, similarity
from selfpatch_bench.benchmarks.results.record import read as read_record
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.export import export
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.monitor import watch as watching
from selfpatch_bench.pretrain.monitor.collapse import Signs
from selfpatch_bench.pretrain.monitor.log import Log
from selfpatch_bench.pretrain.step import Learner
from training import DINO, SELFPATCH, SWIN, Jobs, final, lines, pictures, same
from training import one_thread as one_thread

SIZE = 64
BASE = (*SELFPATCH, "schedule.lr=0.5", "schedule.ema=0.5")  # epochs make a difference
EXACT = ("loop.precision=float64", "network.drop_path=0", "loop.steps=6", "schedule.warmup_epochs=0")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    pictures(folder / "train", 24)
    for i, path in enumerate(sorted(pictures(folder / "val", 10).rglob("*.png"))):
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)) // (1 + i % 2))  # else they are the training images
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos") / "set", sequences=2, frames=4, size=(72, 128))


def options(labelled, videos=None) -> list[str]:
    """Of the evaluations; without videos no process has to be started for them."""
    made = ["watch.every=1", f"watch.knn={labelled}", f"watch.size={SIZE}", "watch.pictures=2"]
    return made + ([f"watch.davis={videos}", "watch.davis_size=128", "watch.frames=3"] if videos else [])


@pytest.fixture(scope="module")
def scenes(data, labelled, videos, tmp_path_factory):
    """Runs in processes of their own, all in one go: folder, and for each scene [(exit status, stderr), ...]."""
    folder = tmp_path_factory.mktemp("scenes")
    jobs, order = Jobs(folder), []

    def scene(name, *happening, world=1, overrides):
        for number, event in enumerate([*happening, None]):
            fresh = {"recipe": "selfpatch", "data": data, "out": folder / name, "overrides": overrides}
            again = {"recipe": None, "resume": folder / name}
            jobs.job(when=event, world=world, **(again if number else fresh))
            order.append(name)

    scene("without", overrides=BASE)
    scene("videos", overrides=[*BASE, *options(labelled, videos), "watch.every=2"])
    fast = options(labelled)
    scene("whole", overrides=[*BASE, *fast])
    some = ("kill", 6), ("vote kill", 8), ("vote term", 8), ("term", 12), ("vote int", 12)
    scene("killed", *some, overrides=[*BASE, *fast])
    scene("full", ("draw full", 4), overrides=[*BASE, *fast])
    scene("one", overrides=[*SELFPATCH, *EXACT, *fast])
    scene("two", ("wait term", 4), world=2, overrides=[*SELFPATCH, *EXACT, *fast])
    found = {name: [] for name in order}
    for name, result in zip(order, jobs.run(), strict=True):
        found[name].append(result)
    return folder, found


def evaluations(folder) -> list[dict]:
    return [line for line in lines(folder) if watching.DONE in line]


def drawn(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "watch").rglob("*")) if p.is_file()}


def test_nothing_of_the_training_changes(scenes):
    """Weights, moments and centres to the last bit, and every line of the log."""
    folder, found = scenes
    for name in ("whole", "videos"):
        assert [code for code, _ in found["without"] + found[name]] == [0, 0], found[name]
        assert same(final(folder / name), final(folder / "without"))
        assert [x for x in lines(folder / name) if watching.DONE not in x] == lines(folder / "without")
    assert not (folder / "without" / "watch").exists()


def test_numbers_are_those_of_the_evaluation_afterwards(scenes, labelled, videos, tmp_path):
    """k-NN and DAVIS of the last epoch: what `selfpatch run` gives for the export, to a fifth of a point (weights that
    lie elsewhere in memory may round a product otherwise, and so turn a pixel at a border)."""
    folder, found = scenes
    said = evaluations(folder / "videos")
    assert [(x["step"], x["epoch"], x["watch.epochs"]) for x in said] == [(8, 1, 2), (12, 2, 3)]
    assert found["videos"][0][1].count("JF_m") == 2
    assert abs(said[0]["watch.davis.JF_m"] - said[1]["watch.davis.JF_m"]) > 0.5
    values = {
        "knn": (["resize=none", f"crop={SIZE}"], labelled),
        "davis": (["size=128", "frames=3"], videos),
    }
    for name, (overrides, root) in values.items():
        chosen = Options(data=[str(root)], out=tmp_path / "out", device="cpu", overrides=overrides)
        assert run_command([str(folder / "videos")], [name], chosen) == 0
        (path,) = (tmp_path / "out" / "records" / name).glob("*.json")
        expected = read_record(path).metrics
        mine = {k.rpartition(".")[2]: v for k, v in said[-1].items() if k.startswith(f"watch.{name}.")}
        assert mine
        assert mine == pytest.approx({k: expected[k] for k in mine}, abs=0.2)


def test_killed_and_told_to_stop(scenes):
    """SIGKILL between and within evaluations, SIGTERM within one and before the last, SIGINT within that: each is made
    when the run goes on, once; log, pictures and weights are those of a run that nothing happened to."""
    folder, found = scenes
    results = found["killed"]
    assert [code for code, _ in results] == [-9, -9, 143, 143, 130, 0], results
    for (_, said), name, step in zip(results[2:5], ("SIGTERM", "SIGTERM", "SIGINT"), (8, 12, 12), strict=True):
        end = f"stopped by {name} after step {step}: go on with selfpatch pretrain --resume {folder / 'killed'}"
        assert said.splitlines()[-1] == end
    assert lines(folder / "killed") == lines(folder / "whole")
    assert same(final(folder / "killed"), final(folder / "without"))
    assert drawn(folder / "killed") == drawn(folder / "whole")
    assert len(drawn(folder / "whole")) == 6  # two pictures, three times
    assert len(drawn(folder / "videos")) == 4  # nothing is left of the masks


def test_full_disk(scenes):
    """It stops the run, in one line; with room again the evaluation is made."""
    folder, found = scenes
    (code, said), (end, _) = found["full"]
    run = folder / "full"
    assert (code, end) == (1, 0)
    assert "Traceback" not in said
    assert [x for x in said.splitlines() if "error" in x] == [
        f"error: {run}: the evaluation cannot be written: File too large; the run is saved: free space, then "
        f"--resume {run}"
    ]
    assert lines(run) == lines(folder / "whole")


def test_two_processes(scenes):
    """A signal to the one that waits ends the evaluation of the other; they go on, and say what one process says."""
    folder, found = scenes
    (told, said), (end, again) = found["two"]
    assert (told, end) == (143, 0), (said, again)
    assert "stopped by SIGTERM after step 4" in said
    assert again.count("6 steps done") == 1
    assert len(evaluations(folder / "two")) == 2
    for a, b in zip(lines(folder / "two"), lines(folder / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-9)  # float64, sums in another order; evaluated in float32


# --- in this process


def test_speed_leaves_evaluations_out(tmp_path):
    with Log(Run(tmp_path), 0, 1, Signs({}, 1)) as log:
        log.count(800, 10.0)
        log.since -= 1000  # so many seconds ago
        log.leave_out(900)
        line = log.line({"step": 1, "loss": 1.0})
    assert line["images_per_s"] == pytest.approx(8, rel=0.1)
    assert line["data_wait"] == pytest.approx(0.1, rel=0.1)


def test_failure_is_a_warning(data, labelled, tmp_path, capsys, monkeypatch):
    """A picture that cannot be read ends the evaluation, not the training; the other parts are made."""
    left_out = []
    monkeypatch.setattr(Log, "leave_out", lambda self, seconds: left_out.append(seconds))
    root = tmp_path / "labelled"
    shutil.copytree(labelled, root)
    spoiled = next((root / "val").rglob("*.png"))
    spoiled.write_bytes(b"no")
    run = tmp_path / "run"
    given = [*DINO, *options(root), "loop.steps=8", "watch.every=2", "schedule.warmup_epochs=0"]
    assert pretrain_command("dino", data, run, overrides=given) == 0
    (line,) = evaluations(run)
    assert line["step"] == 8
    assert line["warning"].startswith(f"k-NN failed: {spoiled}: cannot be read")
    assert f"step 8: warning: k-NN failed: {spoiled}" in capsys.readouterr().err
    assert len(drawn(run)) == 2
    assert len(left_out) == 1
    assert not any("knn" in key for key in line)


def test_fewer_training_images_than_neighbours_are_said(data, labelled, tmp_path, capsys):
    run = tmp_path / "run"
    given = [*DINO, *options(labelled), "watch.knn_images=8", "watch.pictures=0", "loop.steps=4"]
    assert pretrain_command("dino", data, run, overrides=[*given, "schedule.warmup_epochs=0"]) == 0
    (line,) = evaluations(run)
    assert line["watch.knn.k"] == 8
    said = capsys.readouterr().err
    assert "watch.knn: k=20: there are only 8 training images, and all of them vote" in said
    assert "k 8" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["watch.knn=DIR"], "watch.knn: give the epochs between evaluations too, for example watch.every=10"),
        (["watch.every=1", "watch.knn=DIR"], r"watch.knn: .*has no train/"),
        (["watch.every=1", "watch.davis=DIR/none"], "watch.davis: .*none"),
        (["watch.every=1", "watch.davis=VIDEOS", "watch.davis_size=7"], "watch.davis: .*leave"),
        (["watch.every=1", "watch.davis=VIDEOS", "watch.frames=2"], "watch.davis: frames=2"),
        (["watch.every=1", "watch.images=DIR"], "watch.images: .*no images found"),
        (["watch.every=1", "watch.size=4"], "watch.size=4: smaller than a patch, 8"),
        (["watch.every=0"], "watch.every=0: it must be at least 1"),
        (["watch.every=1", "watch.sequences=0"], "watch.sequences=0: it must be at least 1"),
    ],
)
def test_mistakes_cost_nothing(data, videos, tmp_path, given, words):
    """One line, before the run's folder is made."""
    (tmp_path / "empty").mkdir()
    given = [g.replace("DIR", str(tmp_path / "empty")).replace("VIDEOS", str(videos)) for g in given]
    with pytest.raises(UserError, match=words):
        pretrain_command("dino", data, tmp_path / "run", overrides=[*DINO, *given])
    assert not (tmp_path / "run").exists()


def test_tensorboard_and_a_folder_of_pictures(data, labelled, tmp_path, monkeypatch):
    """Numbers, pictures and warnings are there too, at their step; an evaluation can be asked for when a run is
    resumed."""
    pytest.importorskip("tensorboard", reason="tensorboard (extra `track`) is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def fail(*_):
        raise RuntimeError("something\nelse")

    monkeypatch.setattr(Evaluator, "propagate", fail)
    run = tmp_path / "run"
    few = ["loop.steps=5", "schedule.warmup_epochs=0"]
    assert pretrain_command("dino", data, run, overrides=[*DINO, *few]) == 0
    more = [*options(labelled), f"watch.images={labelled / 'val'}", "watch.pictures=1", "log.tensorboard=true"]
    assert pretrain_command(None, resume=run, overrides=more) == 0
    (line,) = evaluations(run)
    assert line["step"] == 5
    assert line["warning"] == "DAVIS failed: RuntimeError: something else"
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (number,) = events.Scalars("watch.knn.top1")
    assert (number.step, number.value) == (5, pytest.approx(line["watch.knn.top1"], rel=1e-6))
    (text,) = events.Tensors("warning/text_summary")
    assert (text.step, text.tensor_proto.string_val[0].decode()) == (5, line["warning"])
    (tag,) = events.Tags()["images"]
    assert tag == "watch/0-000"
    (shown,) = events.Images(tag)
    (path,) = (run / "watch" / "step-00000005").iterdir()
    seen = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(seen, cv2.imread(str(path)))
    assert pretrain_command(None, resume=run) == 0  # once is enough
    assert len(evaluations(run)) == 1


@pytest.mark.parametrize(
    ("recipe", "given"), [("selfpatch", SELFPATCH), ("dino", (*DINO, "checkpoint.export=student"))]
)
def test_encoder_is_the_exports(data, tmp_path, recipe, given):
    """The same card, weights and vectors as the file's; a copy that later steps leave alone."""
    given = [*given, "loop.steps=2", "schedule.warmup_epochs=0"]
    assert pretrain_command(recipe, data, tmp_path / "run", overrides=given) == 0
    state, cfg = final(tmp_path / "run"), load_recipe(recipe, given)
    weights = state[cfg.checkpoint.export]
    mine, theirs = encoder_of(weights, cfg), load(export(tmp_path / "run"))
    assert (mine.card, mine.fingerprint) == (theirs.card, theirs.fingerprint)
    images = torch.randn(2, 3, 40, 32)
    expected = theirs(images)
    for value in weights.values():
        value.zero_()
    found = mine(images)
    for a, b in ((found.image, expected.image), (found.patches[0], expected.patches[0])):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()  # the file's weights may lie otherwise in memory
    assert not any(p.requires_grad for p in mine.parameters())


def test_some_images_of_every_class(labelled):
    """The first of the classes in turn, in their order, with their own labels."""
    whole = open_classes(labelled)
    few = some(whole, 5)
    assert [len(few.train), len(few.val)] == [5, 5]
    assert few.train.labels.tolist() == [0, 0, 0, 1, 1]
    for i in range(5):
        assert few.train.file(i).startswith("ab"[few.train.labels[i]])
    assert some(whole, None) is whole
    assert len(some(whole, 1000).train) == 24


# --- maps


def tiny(readout: str, depth: int = 2) -> Encoder:
    torch.manual_seed(3)
    token = readout == "token"
    made = Encoder(
        Card(
            "vit", 8, 24, depth, 3, class_token=token, pos="learned 4x4", readout=readout, mean=(0.5,) * 3, std=(1,) * 3
        )
    )
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.2)  # else every attention is nearly even
    return made.double()


@pytest.mark.parametrize("depth", [1, 2])
def test_attention_of_the_class_token(depth):
    """What timm's own plain attention computes (float64: rounding only)."""
    encoder, seen = tiny("token", depth), []
    images = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    attn = encoder.vit.blocks[-1].attn
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
    encoder(images)
    found = attention(encoder, images)
    assert found.shape == (2, 3, 5, 3)
    assert (found.flatten(2) - seen[0][:, :, 0, 1:]).abs().max() < 1e-12
    assert found.std() > 0.01


def test_class_attention():
    """Its weights on the values, and the token's own, give what the module hands to its last projection."""
    encoder, seen = tiny("class_attention"), []
    images = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    block = encoder.readout.cls_blocks[-1]
    block.attn.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block.norm1.register_forward_hook(lambda module, inputs, out: seen.append(out))
    encoder(images)
    normed_patches, normed_token, out = seen[:3]
    weights = attention(encoder, images).flatten(2)  # [B, heads, N]
    values, own = (block.attn.split(block.attn.v(x)) for x in (normed_patches, normed_token))
    made = torch.einsum("bhn,bnhd->bhd", weights, values) + (1 - weights.sum(-1, keepdim=True)) * own
    assert (made.flatten(1) - out).abs().max() < 1e-12 * max(1, float(out.abs().max()))
    assert weights.std() > 0.01


@pytest.mark.parametrize(("readout", "shape"), [("class_attention", (1, 8, 2, 2)), ("mean", None)])
def test_swin(readout, shape):
    """A Swin's class attention sees the last stage's tokens; without it there is nothing that attends."""
    cfg = load_recipe("moby", [*SWIN, f"network.readout={readout}"])
    network = Learner(cfg).student
    encoder, images = encoder_of(network.state_dict(), cfg), torch.randn(1, 3, 32, 32)
    found = attention(encoder, images)
    assert (found if found is None else found.shape) == shape
    with torch.no_grad():
        expected = network.image(tokens(network.eval().backbone, images))
    assert (encoder(images).image - expected).abs().max() < 1e-5 * expected.abs().max()
    assert attention(tiny("mean").float(), images) is None


def test_similarity_and_picture():
    """Cosines by hand; the picture has the photo, a bright query, dark opposites, the most attended patch bright."""
    patches = torch.randn(7, 3, 4)
    patches[:, 0, 0] = -2 * patches[:, 1, 2]
    found = similarity(patches, (1, 2))
    for r in range(3):
        for c in range(4):
            expected = torch.cosine_similarity(patches[:, r, c], patches[:, 1, 2], dim=0)
            assert abs(found[r, c] - expected) < 1e-6
    attended = np.zeros((3, 4), np.float32)
    attended[2, 3] = 0.2
    photo = np.full((24, 24, 3), 90, np.uint8)
    picture = draw(photo, found.numpy(), (1, 2), attended)
    assert picture.shape == (24, 3 * 24 + 2 * GAP, 3)
    assert draw(photo, found.numpy(), (1, 2), None).shape == (24, 2 * 24 + GAP, 3)
    assert (picture[2, 2] == 90).all()
    assert picture[8, 14].tolist() == [220, 30, 30]  # the frame of the query
    light = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(int)
    likeness, at = light[:, 24 + GAP : 48 + GAP], light[:, -24:]
    assert likeness[12, 15] == likeness.max() > likeness[3, 3] + 100
    assert likeness[3, 3] == likeness.min()
    assert at[20, 21] == at.max() > at[3, 3] + 100
