"""The one definition of a record: files of older versions are read, and written again byte by byte."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import REPO
from selfpatch_bench.benchmarks.results.record import DataSet, Model, Record, content, parse, records, write

STORED = sorted((REPO / "tests/golden/commands/stored").glob("*/records/*/*.json"))


def test_stored_records_are_read_and_written_as_they_are(tmp_path):
    """The content with every key in its place, and the files of a folder."""
    assert len(STORED) >= 20
    for path in STORED:
        one = parse(json.loads(path.read_text()))
        assert json.dumps(content(one), indent=1) + "\n" == path.read_text(), path
        assert write(tmp_path, one).read_text() == path.read_text()
    assert len(records(tmp_path)) == len(STORED)


def test_notes_and_doubts_are_keys_only_where_there_are_any():
    one = Record("0" * 16, Model("a", "sha256:a"), "t", metrics={})
    assert not {"doubts"} & content(one).keys() | {"notes"} & content(one)["data"].keys()
    noted = replace(one, doubts=["grey masks"], data=DataSet(notes=["two lists"]))
    again = parse(json.loads(json.dumps(content(noted))))
    assert (again.doubts, again.data.notes) == (["grey masks"], ["two lists"])


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("metrics",), None, "metrics"),
        (("metrics",), [1], "metrics"),
        (("model",), "x", "model"),
        (("model", "fingerprint"), None, "fingerprint"),
        (("protocol", "overridden"), [], "overridden"),
        (("published",), [["one"]], "published"),
        (("seed",), "0", "seed"),
        (("schema",), 2, "schema 2, this version reads 1"),
    ],
)
def test_what_is_no_record_is_said(place, value, said):
    table = json.loads(STORED[0].read_text()) | {"a key of a later version": 1, "peak_memory_bytes": None}
    assert parse(table).task == table["task"]
    *parents, last = place
    within = table
    for key in parents:
        within = within[key]
    within[last] = value
    with pytest.raises(ValueError, match=said):
        parse(table)


def test_a_file_that_is_none_is_named_once(tmp_path, caplog):
    folder = tmp_path / "records/davis"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(STORED[0].read_text())
    (folder / "b.json").write_text("{")
    assert [r.path.name for r in records(tmp_path)] == ["a.json"]
    assert [r.getMessage() for r in caplog.records] == [
        f"left out, not records of this version: {folder / 'b.json'} (unreadable (JSONDecodeError))"
    ]
    strange: dict[Path, str] = {}
    records(tmp_path, strange=strange)
    assert list(strange) == [folder / "b.json"]
    assert len(caplog.records) == 1
