"""Whatever a format raises is one line with its name and the file's; one that fails to look hinders nobody."""

import json
import re

import pytest
import torch

import warm
from format_examples import example_vit, format_example
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

LOOKS = "def claims(shapes, meta):\n    return 3 if 'mine' in shapes else 0\n\n\n"
CARD = "from selfpatch_bench.benchmarks.card import Card\n"
BROKEN = {  # how a user's format fails once it has claimed a file -> words of the message
    "raises": ("def convert(state, meta):\n    return meta['absent']['too']\n", "KeyError: 'absent'"),
    "nothing": ("def convert(state, meta):\n    pass\n", "TypeError: "),
    "two things": ("def convert(state, meta):\n    return {}, {}\n", "ValueError: not enough values"),
    "no card": (
        "def convert(state, meta):\n    return {'a': state['mine']}, {'depth': 2}, {}\n",
        "no (tensors by name",
    ),
    "no tensors": (
        CARD + "def convert(state, meta):\n    return {'a': 1}, Card('vit', 8, 24, 2), {}\n",
        "no (tensors by",
    ),
    "assertion": ("def convert(state, meta):\n    assert 0, 'two\\nlines'\n", r"AssertionError: two\nlines"),
    "torch": ("def convert(state, meta):\n    return state['mine'] @ state['mine'], 1, {}\n", "RuntimeError: "),
    "no convert": ("", "AttributeError: "),
    "heads": (
        CARD + "def convert(state, meta):\n    return {'a': state['mine']}, Card('vit', 8, 24, 2, heads='six'), {}\n",
        "heads=six",
    ),
    "its own error": (
        "from selfpatch_bench.benchmarks import UserError\n"
        "class Mine(UserError):\n    def __init__(self, a, b):\n        super().__init__(a + b)\n\n"
        "def convert(state, meta):\n    raise Mine('no', ' such thing')\n",
        "no such thing",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for formats of a user's."""
    (tmp_path / "plug" / "formats").mkdir(parents=True)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path / "plug"))
    return tmp_path / "plug" / "formats"


@pytest.mark.parametrize("how", BROKEN)
def test_a_format_that_fails_to_convert(how, folder, tmp_path):
    code, words = BROKEN[how]
    (folder / "mycode.py").write_text('"""My format."""\n' + LOOKS + code)
    torch.save({"mine": torch.ones(2, 3)}, tmp_path / "x.pth")
    for format in (None, "mycode"):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            open_checkpoint(tmp_path / "x.pth", format=format)
        assert str(error.value).startswith(f"{tmp_path / 'x.pth'}: as format mycode")
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def claims(shapes, meta):\n    return meta['absent']\n", "KeyError: 'absent'"),
        ("def claims(shapes, meta):\n    pass\n", "TypeError: int()"),
        ("def claims(shapes):\n    return 3\n", "TypeError: claims()"),
        ("", "AttributeError: "),
        ("import no_such_module_here\n", "does not import"),
        ("def claims(shapes, meta:\n", "does not import"),
    ],
)
def test_a_format_that_fails_to_look_hinders_nobody_and_is_mentioned(code, words, folder, tmp_path):
    path, card = format_example("dino", tmp_path)
    whole = open_checkpoint(path, card=card)
    (folder / "mycode.py").write_text(code)
    checkpoint = open_checkpoint(path, card=card)
    assert (checkpoint.reading.format, checkpoint.fingerprint) == ("dino", whole.fingerprint)
    (text,) = set(checkpoint.warnings) - set(whole.warnings)
    assert f"format mycode ({folder / 'mycode.py'}) could not look at the file: " in text
    assert words in text
    assert f"warning: {text}" in report(path, None, card)
    torch.save({"nobody": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no format knows .*format mycode .* could not look at the file"):
        open_checkpoint(tmp_path / "x.pth")


def test_the_command_says_it_in_one_line(folder, tmp_path):
    (folder / "mycode.py").write_text(LOOKS + BROKEN["raises"][0])
    torch.save({"mine": torch.ones(2)}, tmp_path / "x.pth")
    done = warm.run("inspect", "x.pth", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: x.pth: as format mycode (mycode.py): KeyError: 'absent'\n")


@pytest.mark.parametrize("act", [[], ["gelu"], {"name": "gelu"}, None, 3, "x" * 5000])
def test_an_activation_that_is_no_name(act, tmp_path):
    path, _ = format_example("hf_vit", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"hidden_act": act}))
    with pytest.raises(UserError, match=r"hidden_act .* is not supported: gelu") as error:
        open_checkpoint(path)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["__metadata__", "args", "arch", "meta", "config", "author", "epoch"])
@pytest.mark.parametrize("value", [5, [1], "selfpatch_bench", {"selfpatch_bench": 5}, {"arch": [1]}, None, True])
def test_odd_things_in_the_place_of_words(name, value, tmp_path):
    """What is not understood says nothing: the network is the same."""
    vit = {f"backbone.{k}": v for k, v in example_vit().items()}
    torch.save({"teacher": vit}, tmp_path / "x.pth")
    whole = open_checkpoint(tmp_path / "x.pth")
    torch.save({"teacher": vit, name: value}, tmp_path / "x.pth")
    if name == "__metadata__" and isinstance(value, dict) and "selfpatch_bench" in value:
        with pytest.raises(UserError, match="as format selfpatch_bench: its card is damaged"):
            open_checkpoint(tmp_path / "x.pth")
        return
    found = open_checkpoint(tmp_path / "x.pth")
    assert found.fingerprint == whole.fingerprint
    assert found.warnings == whole.warnings


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
@pytest.mark.parametrize("key", ["pos_embed", "blocks.1.mlp.fc2.weight", "norm.bias"])
@pytest.mark.parametrize("name", ["mae", "mocov3", "dino", "timm"])
def test_weights_of_eight_bits_are_refused(name, key, dtype, tmp_path):
    """By name, whoever looks at the values first."""
    path, card = format_example(name, tmp_path)
    tree = torch.load(path, weights_only=False)

    def change(node):
        return {
            k: v.to(dtype) if str(k).endswith(key) else change(v) if isinstance(v, dict) else v for k, v in node.items()
        }

    torch.save(change(tree), path)
    with pytest.raises(UserError, match=rf"{re.escape(key)} holds {dtype}: weights of 8 bits") as error:
        open_checkpoint(path, card=card)
    assert str(path) in str(error.value)
