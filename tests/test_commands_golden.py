"""What the commands print, take files for and find again, beside what tests/golden/commands/make.py has stored."""

import json

import pytest

from golden.commands import compare
from golden.commands.checked import assert_stored, needs_mm
from golden.commands.checked import session as session
from golden.commands.parts import ENVIRONMENT, PARTS, stored
from golden.commands.place import STORED

PRINTED = ["help", "lists", "layouts", "features", "tables", "comparison", "keys"]


@pytest.mark.parametrize("part", [*PRINTED, pytest.param("looks", marks=needs_mm)])
def test_commands_do_what_they_did(part, session):
    assert_stored(part, session)


@pytest.mark.shared
@pytest.mark.parametrize("part", [name for name, part in PARTS.items() if part.shared])
def test_files_of_the_shared_folder_are_what_they_were(part, session, need):
    need("checkpoints/tiny")
    assert_stored(part, session)


def test_every_part_is_stored_and_small():
    assert all(stored(name) for name in PARTS)
    assert sum(len(content) for name in PARTS for content in stored(name).values()) < 2_000_000
    assert len(list(STORED.glob("*/records/*/*.json"))) >= 20
    inside = [p for p in STORED.rglob("*") if p.suffix in (".txt", ".json", ".yaml", ".jsonl")]
    texts = {p: p.read_text() for p in inside}
    assert not [str(p) for p, text in texts.items() if "/tmp/" in text.replace("selfpatch demo --out /tmp/demo", "")]


OLD = 'loss 2.4717 bits:aa\n"JF_m": 65.04,\nfingerprint sha256:00ff, 12 images, 0.1 M\n'


@pytest.mark.parametrize(
    ("new", "elsewhere"),
    [
        (OLD.replace("2.4717", "2.4718").replace("bits:aa", "bits:bb"), True),
        (OLD.replace("65.04", "65.9"), False),
        (OLD.replace("12 images", "13 images"), False),
        (OLD.replace("00ff", "00fe"), False),
        (OLD.replace("loss", "lose"), False),
        (OLD + "more\n", False),
        (OLD.replace('"JF_m": 65.04,\n', ""), False),
    ],
)
def test_elsewhere_only_rounding_may_differ(new, elsewhere):
    """On the machine of the stored numbers nothing may; on another one only numbers with a point, and their bits."""
    assert compare.differences("x", OLD, OLD, exact=True) == ""
    assert "\n-" in compare.differences("x", OLD, new, exact=True) or len(new) > len(OLD)
    assert compare.differences("x", OLD, new, exact=True)
    assert (compare.differences("x", OLD, new, exact=False) == "") is elsewhere


def test_another_processor_or_package_is_another_environment():
    here = json.loads(ENVIRONMENT.read_text())
    for change in ({"capability": "none"}, {"arithmetic": "0"}, {"packages": here["packages"] | {"torch": "0"}}):
        assert not compare.same_environment(json.dumps(here), json.dumps(here | change))
    other = json.dumps(here | {"help": {}})
    assert compare.same_environment(json.dumps(here), other)
    assert not compare.same_environment(json.dumps(here), other, ("help",))
