"""Lists of a json file read in pieces: what json.load gives, in bounded memory, and broken files in one line."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from selfpatch_bench.benchmarks.datasets.annotations.json_lists import JsonLists
from selfpatch_bench.pretrain.common.errors import UserError

NAMES = ("images", "annotations", "categories")


def _read(path) -> dict:
    found = {name: [] for name in NAMES}
    for name, entries in JsonLists(path, NAMES):
        found[name] += entries
    return found


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
def test_as_json_load(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(JsonLists, "PIECE", piece)
    content = {
        "info": {"a": [1, [2]], "annotations": "not these"},
        "annotations": [-1.5e-3, 10, -0, 1e22, 'é\U0001f600\\"]}', {"a": [{}]}, [], None, True, False, float("inf")],
        "licenses": [[1, 2], {"b": 3}],
        "images": [],
        "categories": [12345678901234567890, "\n", ""],
    }
    for how in ({}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        text = json.dumps(content, **how)
        (tmp_path / "x.json").write_text(text + " \n", encoding="utf-8")
        assert _read(tmp_path / "x.json") == {name: content[name] for name in NAMES}


FULL = '{"images": [1], "annotations": [{"a": [1, 2]}], "categories": []}'
BROKEN = {
    "": "Expecting value",
    " ": "Expecting value",
    "{": "",
    "[1]": "no list 'images'",
    "{}": "no list 'images'",
    '{"images": [], "annotations": []}': "no list 'categories'",
    '{"images": {}}': "no list 'images'",
    '{"images": [], "images": []}': "'images' occurs twice",
    FULL + "x": "something behind its end",
    FULL[:-1] + "]": "a comma or } is expected",
    FULL.replace("[1]", "[1 2]"): "a comma or ] is expected",
    FULL.replace("[1]", "[1,]"): "Expecting value",
    FULL.replace(":", ";", 1): "a name and a colon are expected",
    FULL.replace("2", "2" * 5000): "a number of thousands of digits",
    FULL.replace("2", "[" * 200_000): "lists within lists",
    FULL.replace("2", '{"a":' * 200_000): "lists within lists",
    FULL[:-1] + ', "info": ' + "[" * 200_000: "lists within lists",
    "\ufeff" + FULL: "byte order mark",
    "version https://git-lfs.github.com/spec/v1\noid": "Expecting value",
    "\0" * 1000: "it begins with zeros",
    FULL[:30] + "\0" * 1000: "broken json",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:40]))
def test_broken(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        _read(path)
    assert BROKEN[text] in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 120


def test_cut_anywhere(tmp_path):
    path = tmp_path / "x.json"
    for end in range(len(FULL)):
        path.write_text(FULL[:end])
        with pytest.raises(UserError, match=r"broken json|no list"):
            _read(path)


def test_other_encodings(tmp_path):
    path = tmp_path / "x.json"
    for data, message in (
        (gzip.compress(FULL.encode()), "is compressed"),
        (FULL.encode("utf-16"), "is UTF-16"),
        (FULL.replace("a", "é").encode("latin-1"), "not UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            _read(path)
    with pytest.raises(UserError, match="cannot be read"):
        _read(tmp_path / "absent.json")


def test_memory_is_bounded(tmp_path):
    """Files of hundreds of megabytes, most of them holes: one string, one number, zeros, and many entries."""
    path = tmp_path / "x.json"

    def refused(start: bytes, fill: bytes | None, message: str):
        with open(path, "wb") as file:
            file.write(start)
            if fill is None:
                file.truncate(1 << 30)
            else:
                file.write(fill * (18 << 20))
        tracemalloc.start()
        with pytest.raises(UserError, match=message):
            _read(path)
        assert tracemalloc.get_traced_memory()[1] < 120 << 20
        tracemalloc.stop()

    refused(b"", None, "begins with zeros")
    refused(b'{"images": [', None, "broken json")
    refused(b'{"images": ["', b"a", "an entry of more than 16 million characters")
    refused(b'{"info": "', b"a", "an entry of more than 16 million characters")
    refused(b'{"images": [1.', b"1", "an entry of more than 16 million characters")
    refused(b'{"images": [', b"1", "a number of thousands of digits")
    refused(b'{"images": [', b" ", "Expecting value")


def test_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(JsonLists, "PIECE", 1000)
    numbers = np.arange(1000).tolist()
    path = tmp_path / "x.json"
    path.write_text(json.dumps(dict.fromkeys(NAMES, numbers)))
    said = []
    lists = JsonLists(path, NAMES, lambda *at: said.append(at))
    assert sum(len(entries) for _, entries in lists) == 3000
    size = path.stat().st_size
    assert said == [(min(done, size), size) for done in range(1000, size + 1000, 1000)]
    assert lists.bytes == size
