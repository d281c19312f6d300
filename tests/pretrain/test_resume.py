"""A run that is killed, stopped, or meets a full disk, and goes on: the same to the last bit as one never stopped."""

import hashlib
import io
import os
import platform
import re
import shutil
import signal
import tarfile
import time
import types

import pytest
import torch

import warm
from checkpoint_files import read_refs
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.pretrain.checkpoint import Run, read, write_atomic
from selfpatch_bench.pretrain.common import locks
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.data.identity import check_identity, identity
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.monitor.log import drop_later
from selfpatch_bench.pretrain.step import Trainer
from training import DINO, SELFPATCH, Jobs, environment, final, lines, pictures, same, tensors
from training import one_thread as one_thread

# SIGKILL before the first checkpoint, while one is written, between two, just before it gets its name, right after, at
# the end of an epoch, and around the last.
KILLS = [("kill", 1), ("write", 2), ("kill", 3), ("write", 6), ("rename", 6), ("kill", 7), ("kill", 8)]
KILLS += [("renamed", 10), ("write", 12), ("renamed", 12)]
OPTIONS = (*SELFPATCH, "checkpoint.every_steps=2")  # of 12; drop path is on


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def scenes(data, tmp_path_factory):
    """All runs that something happens to, in one go: folder, and for each scene [(exit status, stderr), ...]."""
    folder = tmp_path_factory.mktemp("scenes")
    jobs, order = Jobs(folder), []

    def scene(name, *events, options=OPTIONS):
        """A run to which these things happen one after the other, each time it is resumed; the last time nothing."""
        for number, event in enumerate([*events, None]):
            fresh = {"recipe": "selfpatch", "data": data, "out": folder / name, "overrides": options}
            jobs.job(when=event, **({"recipe": None, "resume": folder / name} if number else fresh))
            order.append(name)

    scene("whole")
    scene("killed", *KILLS)
    scene("term", ("term", 5))
    scene("int", ("int", 5))
    scene("full", ("full", 5), options=(*OPTIONS, "log.every=100"))
    found = {name: [] for name in order}
    for name, result in zip(order, jobs.run(), strict=True):
        found[name].append(result)
    assert found["whole"][0][0] == 0, found["whole"]
    return folder, found


@pytest.fixture(scope="module")
def whole(scenes):
    """A run that nothing happened to."""
    return scenes[0] / "whole"


def test_killed_at_any_point(scenes, whole):
    """The run goes on after each SIGKILL and ends with the same weights, moments, centres and log."""
    folder, found = scenes
    run = folder / "killed"
    assert [code for code, _ in found["killed"]] == [-9] * len(KILLS) + [0], found["killed"]
    assert f"{run}: all of its 12 steps are done" in found["killed"][-1][1]
    assert same(final(run), final(whole))
    assert final(run)["step"] == 12
    assert [x["step"] for x in lines(run)] == list(range(1, 13))
    assert lines(run) == lines(whole)
    left = sorted(p.name for p in run.rglob("*") if p.is_file())
    assert left == ["config.yaml", "log.jsonl", "step-00000010.pt", "step-00000012.pt"]


@pytest.mark.parametrize(("what", "code", "name"), [("term", 143, "SIGTERM"), ("int", 130, "SIGINT")])
def test_told_to_stop(scenes, whole, what, code, name):
    """A signal during step 5: it is finished and saved, though no checkpoint was due; one line says how to go on."""
    folder, found = scenes
    run = folder / what
    (stopped, said), (end, _) = found[what]
    assert (stopped, end) == (code, 0)
    assert said.splitlines()[-1] == f"stopped by {name} after step 5: go on with selfpatch pretrain --resume {run}"
    assert same(final(run), final(whole))
    assert lines(run) == lines(whole)


def test_disk_full(scenes, whole):
    """From the end of step 5 on no file can grow above 4 KB: one line, nothing half-written, step 4 is still good."""
    folder, found = scenes
    run = folder / "full"
    (code, said), (end, again) = found["full"]
    assert (code, end) == (1, 0)
    assert [x for x in said.splitlines() if "error" in x] == [
        f"error: {run}/checkpoints/step-00000006.pt cannot be written: File too large; the last checkpoint is "
        f"{run}/checkpoints/step-00000004.pt: free space, then --resume {run}"
    ]
    assert "Traceback" not in said
    assert "from step 4 of 12" in again
    assert same(final(run), final(whole))


LONG = (*SELFPATCH, "checkpoint.every_steps=5", "loop.epochs=20")  # of 80 steps, so that it can be met at work


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """A run of LONG that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start("selfpatch", "--data", data, "--out", run, *LONG).wait(timeout=300) == 0
    return run


def start(*arguments, **more) -> warm.Process:
    return warm.Process("pretrain", *arguments, env=environment() | more)


def at_work(process, run, steps: int = 8) -> None:
    """Wait until a run has done some steps."""
    while process.poll() is None and not (run / "log.jsonl").exists():
        time.sleep(0.01)
    while process.poll() is None and (run / "log.jsonl").read_text().count("\n") < steps:
        time.sleep(0.01)
    assert process.poll() is None, process.err


def test_a_second_process_is_refused(data, undisturbed, tmp_path):
    """One line that names who works there, for a resume and for a new run; nothing of the first run is touched, and it
    ends as if alone."""
    run = tmp_path / "run"
    first = start("selfpatch", "--data", data, "--out", run, *LONG)
    at_work(first, run)
    first.send_signal(signal.SIGSTOP)  # so that it is there as long as the others need
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for second in (start("--resume", run), start("selfpatch", "--data", data, "--out", run, *LONG)):
        said = second.communicate(timeout=120)[1]
        who = rf"process {first.pid} on {re.escape(platform.node())} since \S+"
        todo = rf"wait for it or stop it, then go on with --resume {run}"
        assert re.fullmatch(rf"error: {run} is in use by {who}: {todo}\n", said), said
        assert second.returncode == 1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=120) == 0
    assert same(final(run), final(undisturbed))
    assert lines(run) == lines(undisturbed)
    assert not list(run.rglob(".*"))


def test_two_new_runs_in_one_folder(data, undisturbed, tmp_path):
    """Started at the same moment: one works, the other one is refused in one line."""
    both = [start("selfpatch", "--data", data, "--out", tmp_path / "run", *LONG) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode == 0 for process in both) == [False, True], said
    (refused,) = [text for process, text in zip(both, said, strict=True) if process.returncode]
    assert re.fullmatch(rf"error: {tmp_path}/run is (in use by process|not empty).*\n", refused), refused
    assert same(final(tmp_path / "run"), final(undisturbed))
    assert lines(tmp_path / "run") == lines(undisturbed)


def test_resumed_right_after_a_kill(data, undisturbed, tmp_path):
    """Its data workers may live a moment longer: no reason to refuse."""
    run, workers = tmp_path / "run", "data.workers=2"
    first = start("selfpatch", "--data", data, "--out", run, *LONG, workers)
    at_work(first, run)
    first.send_signal(signal.SIGKILL)
    second = start("--resume", run, workers)
    said = second.communicate(timeout=120)[1]
    assert (first.wait(), second.returncode) == (-9, 0), said
    assert same(final(run), final(undisturbed))
    assert lines(run) == lines(undisturbed)


@pytest.mark.parametrize("count", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_run_waits_for_the_former(whole, tmp_path, monkeypatch, count):
    """A launcher's restart meets processes that are about to end; the first start does not."""
    run, _ = damaged_copy(whole, tmp_path, lambda c: c)
    hold = "import sys, time; from pathlib import Path; from selfpatch_bench.pretrain.common.locks import lock\n"
    hold += "with lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    former = warm.Process(run / ".lock", code=hold)
    try:
        while former.out != "held\n":
            assert former.poll() is None, former.err
            time.sleep(0.01)
        monkeypatch.setenv(count, "0")
        with pytest.raises(UserError, match=f"is in use by process {former.pid}"):
            pretrain_command(None, resume=run)
        monkeypatch.setenv(count, "1")
        clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: former.send_signal(signal.SIGKILL))
        monkeypatch.setattr(locks, "time", clock)
        assert pretrain_command(None, resume=run) == 0
    finally:
        former.send_signal(signal.SIGKILL)
        former.wait()


def damaged_copy(whole, tmp_path, damage):
    """A copy of the finished run whose newest checkpoint is damaged."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "checkpoints" / "step-00000012.pt"
    path.write_bytes(damage(bytearray(path.read_bytes())))
    (run / "checkpoints" / ".step-00000014.pt.tmp").write_bytes(b"left by a kill")
    return run, path


def flipped(content: bytearray) -> bytearray:
    """One bit of a weight, which changes nothing but a number."""
    content[content.index(b"/data/") + 1000] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: c[:-1], lambda c: b"", flipped],
    ids=["half", "last byte", "empty", "one bit"],
)
def test_damaged_newest(whole, tmp_path, damage, caplog):
    """It is named, the one before is taken, and the run ends as it should."""
    run, path = damaged_copy(whole, tmp_path, damage)
    assert pretrain_command(None, resume=run) == 0
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1
    assert warned[0].startswith(f"{path} is damaged: ")
    assert warned[0].endswith("; going back to the checkpoint before it")
    assert not list(run.rglob(".*"))
    assert lines(run)[:10] == lines(whole)[:10]
    assert [x["step"] for x in lines(run)] == list(range(1, 13))


def test_all_damaged(whole, tmp_path):
    run, path = damaged_copy(whole, tmp_path, lambda c: b"no")
    (path.parent / "step-00000010.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read"):
        pretrain_command(None, resume=run)


def test_file_is_plain(whole):
    """weights_only reads it, and so does the package's own reader, with every tensor."""
    path = max((whole / "checkpoints").iterdir())
    state = read(path)
    keys = {"student", "teacher", "objectives", "optimizer", "scaler", "step", "epoch", "config"}
    assert keys <= state.keys()
    assert (state["step"], state["epoch"]) == (12, 3)
    refs, rest = read_refs(path)
    found = tensors(state)
    assert len(refs) == len(found)
    assert all(torch.equal(refs[k.removeprefix(".")].load(), v) for k, v in found.items())
    assert rest["config"]["objectives"] == state["config"]["objectives"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.lr=0.1", r"schedule.lr is 0.02 in this run and cannot become 0.1"),
        ("seed=1", "seed is 0 in this run and cannot become 1"),
        ("objectives.selfpatch.k=2", "objectives.1.k is 4 in this run and cannot become 2"),
        ("loop.epochs=4", "loop.epochs is 3 in this run and cannot become 4"),
    ],
)
def test_options_that_change_the_result(whole, override, words):
    with pytest.raises(UserError, match=words):
        pretrain_command(None, resume=whole, overrides=[override])


def test_edited_config(whole, tmp_path):
    """An edit of config.yaml is an override like any other."""
    run, _ = damaged_copy(whole, tmp_path, lambda c: c)
    text = run.joinpath("config.yaml").read_text()
    run.joinpath("config.yaml").write_text(text.replace("lr_batch: 256", "lr_batch: 128"))
    with pytest.raises(UserError, match=r"schedule\.lr_batch is 256 in this run and cannot become 128"):
        pretrain_command(None, resume=run)
    run.joinpath("config.yaml").write_text(text.replace("every_steps: 2", "every_steps: 5"))
    assert pretrain_command(None, resume=run, overrides=["log.every=7"]) == 0
    assert Run(run).config([]).checkpoint.every_steps == 5
    assert Run(run).config([]).log.every == 7


def test_data(whole, data, tmp_path):
    """Moved data go on; other data do not."""
    run, _ = damaged_copy(whole, tmp_path, lambda c: b"")
    pictures(tmp_path / "fewer", 12)
    with pytest.raises(UserError, match="its 12 images are not the 16 images that this run began with"):
        pretrain_command(None, resume=run, data=tmp_path / "fewer")
    assert pretrain_command(None, resume=run, data=pictures(tmp_path / "moved")) == 0
    assert Run(run).config([]).data.path == str(tmp_path / "moved")


def test_a_changed_picture_is_named(whole, data, tmp_path):
    """Under the same name and of the same size, with the same time. A state of an older version knows names alone."""
    run, _ = damaged_copy(whole, tmp_path, lambda c: b"")
    moved = pictures(tmp_path / "moved")
    path = sorted(p for p in moved.rglob("*") if p.is_file())[5]
    about, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(UserError, match=rf"{path.name} is not what it was when this run began: 1 of 16 images"):
        pretrain_command(None, resume=run, data=moved)
    assert pretrain_command(None, resume=run, data=data) == 0
    state = read(max((run / "checkpoints").iterdir()))
    assert state["data"]["drawn"].tolist() == list(range(16))
    del state["data"]["drawn"], state["data"]["contents"]
    check_identity(open_source(data), state["data"])


def test_a_thousand_images_are_drawn(tmp_path):
    """Whatever the number of images; the members of shards, and images that cannot be read, too."""
    members = {f"{k:04d}.jpg": b"%d" % k * 300 for k in range(1200)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "files").mkdir()
    for name, data in members.items():
        (tmp_path / "files" / name).write_bytes(data)
    shard, files = open_source(tmp_path / "a.tar"), open_source(tmp_path / "files")
    found = identity(files)
    assert len(set(found["drawn"].tolist())) == 1000
    first, last = (files.name(int(found["drawn"][k])) for k in (0, -1))
    assert found["contents"][0].numpy().tobytes() == hashlib.sha256(members[first]).digest()
    of_shard = identity(shard)
    number = int(of_shard["drawn"][7])
    assert of_shard["contents"][7].numpy().tobytes() == hashlib.sha256(members[f"{number:04d}.jpg"]).digest()
    (tmp_path / "files" / last).unlink()
    with pytest.raises(UserError, match=f"{last} is not what it was"):
        check_identity(files, found)


def test_folders(whole, data, tmp_path):
    """A new run takes an empty folder only; --resume needs a run; what is no folder is said."""
    with pytest.raises(UserError, match=f"is not empty: go on with --resume {whole}, or give another --out"):
        pretrain_command("selfpatch", data, whole, overrides=OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "other" / ".lock").touch()  # somebody else's
    with pytest.raises(UserError, match="other is not empty: give another --out"):
        pretrain_command("selfpatch", data, tmp_path / "other", overrides=OPTIONS)
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == [".lock", "file"]
    with pytest.raises(UserError, match="no run is there"):
        pretrain_command(None, resume=tmp_path / "other")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        pretrain_command("selfpatch", data, tmp_path / "other" / "file" / "run", overrides=OPTIONS)
    with pytest.raises(UserError, match="leave the recipe and --out away"):
        pretrain_command("selfpatch", resume=whole)


def test_kept(tmp_path):
    """The newest two, and the ends of every second epoch; steps within epochs do not stay."""
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    for step in range(3, 46, 3):
        run.save({"step": step, "steps_per_epoch": 6}, keep_every=2)
    assert list(run.steps()) == [12, 24, 36, 42, 45]
    for step in (48, 54):
        run.save({"step": step, "steps_per_epoch": 6}, keep_every=0)
    assert list(run.steps()) == [48, 54]


def test_write_atomic_leaves_the_old(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda f: f.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write_atomic(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": ')
    drop_later(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_out_of_memory_then_another_size(data, tmp_path, monkeypatch, capsys):
    """The error names the command to go on with. The same shares go on exactly; others go on, and say what is another:
    in the log too. With one image a share there is nothing smaller to try."""
    micro_step = Trainer._micro_step

    def hungry(self, *args):
        if self.step == 5:
            torch.empty(2**60, dtype=torch.uint8)
        return micro_step(self, *args)

    options = [*SELFPATCH, "network.drop_path=0.3", "loop.per_gpu=2", "loop.steps=8"]
    monkeypatch.setattr(Trainer, "_micro_step", hungry)
    for size, todo in (
        (2, "try selfpatch pretrain --resume {} loop.per_gpu=1 ("),
        (1, "make network or views smaller ("),
    ):
        run = tmp_path / f"of-{size}"
        with pytest.raises(UserError) as caught:
            pretrain_command("selfpatch", data, run, overrides=[*options, f"loop.per_gpu={size}"])
        assert str(caught.value).startswith(f"{size} image{'s' * (size > 1)} at once do not fit into memory: ")
        assert todo.format(run) in str(caught.value)
        assert caught.value.status == 1
    monkeypatch.undo()
    runs = {name: shutil.copytree(tmp_path / "of-2", tmp_path / name) for name in ("same", "other")}
    assert pretrain_command("selfpatch", data, tmp_path / "unbroken", overrides=options) == 0
    assert pretrain_command(None, resume=runs["same"], overrides=["loop.accumulation=2"]) == 0
    said = capsys.readouterr().err
    assert "batch 4 = 2 x 1 x 2 (images x processes x accumulation)" in said
    assert "warning" not in said
    assert same(final(runs["same"]), final(tmp_path / "unbroken"))
    assert pretrain_command(None, resume=runs["other"], overrides=["loop.per_gpu=1", "loop.precision=bf16"]) == 0
    said = capsys.readouterr().err
    assert "step 4: warning: a batch was divided into 2 shares" in said
    (noted,) = [x for x in lines(runs["other"]) if "warning" in x]
    assert noted["step"] == 4
    assert "and is into 4; the precision was float32 and is bf16; from here on" in noted["warning"]
    assert len(lines(runs["other"])) == 9


def test_auto_precision_is_resolved_once(data, tmp_path, monkeypatch):
    """What the first machine chose is in the configuration, and holds on one that would choose otherwise."""
    multiplies = "selfpatch_bench.pretrain.model.precision.multiplies_bf16"
    monkeypatch.setattr(multiplies, lambda: True)
    options = [*DINO, "loop.steps=2", "schedule.warmup_epochs=0", "loop.precision=auto"]
    assert pretrain_command("dino", data, tmp_path / "run", overrides=options) == 0
    assert Run(tmp_path / "run").config([]).loop.precision == "bf16"
    assert final(tmp_path / "run")["noise"] == {"shares": 1, "precision": "bf16", "statistics": 0}
    monkeypatch.setattr(multiplies, lambda: False)
    assert pretrain_command(None, resume=tmp_path / "run", overrides=["loop.precision=auto"]) == 0
    assert Run(tmp_path / "run").config([]).loop.precision == "bf16"


def test_auto_of_older_runs_was_float32(data, tmp_path, monkeypatch):
    """Which stored the word and not what came of it: on a CPU that was float32 always."""
    run = Run(tmp_path / "run")
    options = [*DINO, "loop.steps=2", "schedule.warmup_epochs=0"]
    assert pretrain_command("dino", data, run.folder, overrides=options) == 0
    run.write_config(run.config(["loop.precision=auto"]))
    monkeypatch.setattr("selfpatch_bench.pretrain.model.precision.multiplies_bf16", lambda: True)
    assert pretrain_command(None, resume=run.folder) == 0
    assert run.config([]).loop.precision == "float32"
