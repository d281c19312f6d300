"""Files that appear whole or not at all: names, modes, and what is said when the file system refuses."""

import contextlib
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

import warm
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.pretrain.common import atomic
from selfpatch_bench.pretrain.common.atomic import replacing, temporary_name, write_atomic
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights
from training import DINO, environment, pictures


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """An export of about 1 MB."""
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    card = Card("vit", 8, 96, 2, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    save_weights(path, Encoder(card).vit.state_dict(), card)
    return path


def test_names_are_unique(tmp_path, monkeypatch):
    """Of two threads, two processes (a fork has the same random numbers) and two machines; never too long."""
    path = tmp_path / "step-00000001.pt"
    names = {temporary_name(path).name for _ in range(100)}
    assert len(names) == 100
    assert all(n.startswith(f".{path.name}.") and f".{os.getpid()}." in n and n.endswith(".tmp") for n in names)
    monkeypatch.setattr(atomic.platform, "node", lambda: "another/host.example")
    assert ".another-host-example." in temporary_name(path).name
    for name in ("x" * 255, "ü" * 127, "\udcff" * 255):
        long = tmp_path / name
        write_atomic(long, lambda file: file.write(b"content"))
        assert long.read_bytes() == b"content"
    assert len(list(tmp_path.iterdir())) == 3


def test_writers_of_one_file(tmp_path):
    """Four processes write it again and again: it is whole at any time, and nothing else is left."""
    code = (
        "import sys; from pathlib import Path; from selfpatch_bench.pretrain.common.atomic import write_atomic\n"
        "for i in range(100):\n"
        "    write_atomic(Path(sys.argv[1]), lambda f: f.write(bytes([int(sys.argv[2])]) * 300_000), sync=False)\n"
    )
    path = tmp_path / "file"
    writers = [warm.Process(path, n, code=code) for n in range(4)]
    seen = set()
    while any(w.poll() is None for w in writers):
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1
            seen.add(content[0])
    assert [w.wait() for w in writers] == [0] * 4
    assert seen <= set(range(4))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_the_mode_is_the_umasks(tmp_path, umask):
    """Also of a file that a library put in the place with a mode of its own, and of one that replaces another."""
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        for _ in range(2):
            with replacing(path) as temporary:
                mine = tmp_path / "mine"
                os.close(os.open(mine, os.O_CREAT | os.O_WRONLY, 0o600))
                os.replace(mine, temporary)
            assert path.stat().st_mode & 0o7777 == 0o666 & ~umask
            path.chmod(0o600)
    finally:
        os.umask(before)


WRITERS = """
import os, sys
from pathlib import Path
os.umask(0o027)
place, out, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
from selfpatch_bench.benchmarks.hub import zoo
from selfpatch_bench.benchmarks.commands.convert import convert_command
from selfpatch_bench.benchmarks.run.runner import Options, run_command
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.commands.export import export
from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
if __name__ == "__main__":
    run = out / "run"
    assert pretrain_command("dino", place / "pictures", run, overrides=options) == 0
    export(run), export(run, which="student"), export(run, format="dino")
    assert convert_command(place / "net.safetensors", out / "converted.safetensors", None, {}) == 0
    make_videos(out / "drawn", sequences=1, frames=3, size=(64, 96))
    (out / "classes").mkdir()
    for split in ("train", "val"):
        (out / "classes" / split).symlink_to(place / "pictures")
    given = {"out": out / "results", "device": "cpu"}
    values = ["size=64", "multiple=8"]
    videos = Options(data=[str(place / "videos")], overrides=values, own={"pictures": True}, **given)
    assert run_command([str(place / "net.safetensors")], ["davis"], videos) == 0
    assert run_command([str(place / "net.safetensors")], ["knn"], Options(data=[str(out / "classes")], **given)) == 0
    zoo.remember(out, zoo.public()["dino_vits16"], "0" * 64, 1)
"""


def test_every_writer(network, tmp_path):
    """Runs, exports, records, masks, pictures, caches, lists: all of a shared project's files can be read by its group,
    if the umask says so."""
    place, out = tmp_path / "place", tmp_path / "out"
    pictures(place / "pictures")
    make_videos(place / "videos", sequences=1, frames=3, size=(64, 96))
    (place / "net.safetensors").symlink_to(network)
    out.mkdir()
    options = [*DINO, "loop.steps=2", "schedule.warmup_epochs=0", "watch.every=1", "watch.pictures=1", "watch.size=32"]
    done = warm.run(place, out, *options, code=WRITERS, env=environment() | {"SELFPATCH_CACHE": str(out / "cache")})
    assert done.returncode == 0, done.stderr
    files = [p for p in out.rglob("*") if p.is_file() and (out / "classes") not in p.parents]
    kinds = {p.name.partition(".")[2] for p in files}
    assert {"yaml", "jsonl", "pt", "safetensors", "student.safetensors", "dino.pth", "json", "png", "npy"} <= kinds
    assert {oct(p.stat().st_mode & 0o7777) for p in files} == {"0o640"}
    folders = [p for p in out.rglob("*") if p.is_dir() and not p.is_symlink()]
    assert {oct(p.stat().st_mode & 0o7777) for p in folders} == {"0o750"}


# ------------------------------------------------------------------------------------------------------- a full disk
@pytest.fixture(params=["a file size limit", "a small file system"])
def full(request, tmp_path):
    """(folder where a network does not fit, what a process does before it writes there, what the system says)"""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "a file size limit":
        yield folder, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n", "File too large"
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted: {made.stderr.strip()}")
    try:
        yield folder, "", "No space left on device"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line(full, network, tmp_path):
    """safetensors has an error of its own for it, which names no file."""
    folder, before, words = full
    path = folder / "out.safetensors"
    path.write_bytes(b"old")
    code = before + "from selfpatch_bench.benchmarks.cli.app import main; main()"
    done = warm.run("convert", network, folder / "new.safetensors", code=code)
    assert (done.returncode, done.stderr) == (1, f"error: {folder}/new.safetensors cannot be written: {words}\n")
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_what_the_system_refuses_is_one_line(tmp_path):
    """Wrapped by whatever library; anything else that fails in the block is its own error."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def wrapped(_):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("enforce fail") from error

    with pytest.raises(UserError, match=f"^{path} cannot be written: No space left on device$") as caught:
        write_atomic(path, wrapped)
    assert caught.value.status == 1

    def fails(file, error):
        file.write(b"half")
        raise error

    for error in (UserError("not this one"), ValueError("no number")):
        with pytest.raises(type(error), match=str(error)):
            write_atomic(path, partial(fails, error=error))
    with pytest.raises(UserError, match="none/file cannot be written: No such file or directory"):
        write_atomic(tmp_path / "none/file", lambda file: file.write(b"new"))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
