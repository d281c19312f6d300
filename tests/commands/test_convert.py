"""`selfpatch convert`: every format's example comes out with the same weights and card; pickles run only on request."""

import os

import pytest
import torch

import warm
from format_examples import format_example
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.commands.convert import convert_command
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

EXAMPLES = list(FORMATS.scan())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_becomes_a_file_of_ours(name, tmp_path, capsys):
    path, overrides = format_example(name, tmp_path)
    out = tmp_path / "out" / "net.safetensors"
    out.parent.mkdir()
    assert convert_command(path, out, name, overrides) == 0
    before, after = open_checkpoint(path, format=name, card=overrides), open_checkpoint(out)
    assert (after.fingerprint, after.card) == (before.fingerprint, before.card)
    assert after.reading.format == "selfpatch_bench"
    assert after.fingerprint in capsys.readouterr().out


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def pickled(tmp_path):
    """A DINO checkpoint with an object that runs code, as saved by a code base with its own classes."""
    path, overrides = format_example("dino", tmp_path)
    tree = torch.load(path, weights_only=False)
    torch.save(tree | {"logger": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    return tmp_path / "evil.pth", overrides


def test_code_in_a_pickle_runs_only_with_trust(pickled, tmp_path):
    path, overrides = pickled
    out = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match="mkdir"):
        convert_command(path, out, None, overrides)
    assert not (tmp_path / "ran").exists()
    assert not out.exists()
    done = warm.run("convert", path, out, "--heads", overrides["heads"], "--trust-pickle")
    assert done.returncode == 0, done.stderr
    assert "WITHOUT ANY CHECK" in done.stderr
    assert (tmp_path / "ran").exists()
    plain, _ = format_example("dino", tmp_path)
    assert load(out).fingerprint.startswith("sha256:")
    assert open_checkpoint(out).card == open_checkpoint(plain, card=overrides).card


def test_no_other_command_knows_trust(pickled):
    path, _ = pickled
    for command in ("run", "inspect", "compare", "pretrain"):
        done = warm.run(command, path, "--trust-pickle")
        assert done.returncode == 2
        assert "--trust-pickle" in done.stderr


def test_a_whole_module_gives_its_weights(tmp_path):
    """A pickled nn.Module, which the safe reader refuses; in a wrapper of lists and foreign objects."""
    path, overrides = format_example("timm", tmp_path)
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    network.load_state_dict(torch.load(path))
    torch.save(network, tmp_path / "module.pth")
    out = tmp_path / "net.safetensors"
    convert_command(tmp_path / "module.pth", out, "timm", overrides, trust_pickle=True)
    assert open_checkpoint(out).fingerprint == open_checkpoint(path, format="timm", card=overrides).fingerprint


@pytest.mark.parametrize(
    ("name", "said"),
    [("net.pth", "ending"), ("taken.safetensors", "already"), ("no/net.safetensors", "no such folder")],
)
def test_a_bad_target_is_refused_first(tmp_path, name, said):
    (tmp_path / "taken.safetensors").write_bytes(b"precious")
    path, overrides = format_example("dino", tmp_path)
    with pytest.raises(UserError, match=said):
        convert_command(path, tmp_path / name, None, overrides)
    assert (tmp_path / "taken.safetensors").read_bytes() == b"precious"


def test_unknown_heads_and_damage_write_nothing(tmp_path):
    path, _ = format_example("timm", tmp_path)
    for options, said in (({}, "--heads N"), ({"trust_pickle": True}, "cannot be unpickled")):
        if options:
            path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(UserError, match=said):
            convert_command(path, tmp_path / "net.safetensors", "timm", {}, **options)
    assert not (tmp_path / "net.safetensors").exists()
