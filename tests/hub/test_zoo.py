"""The list of public checkpoints, and fetching against a real server on the loopback that misbehaves."""

import ast
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request

import pytest
import yaml

import warm
from conftest import REPO
from format_examples import format_example
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.checkpoints import FORMATS
from selfpatch_bench.benchmarks.checkpoints.open import ready
from selfpatch_bench.benchmarks.hub import zoo
from selfpatch_bench.benchmarks.hub.download import _Redirect
from selfpatch_bench.benchmarks.hub.fetch import fetch
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.hub.zoo import LOCAL, Public
from selfpatch_bench.benchmarks.results.published import find_table

DATA = bytes(range(256)) * 1200  # 300 kB
SHA = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers request after request by `script` (a list of words and numbers; the last one stays), logs the ranges."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.script, self.ranges, self.seen = DATA, ["serve"], [], []
        self.etag, self.watch = '"v1"', None

    def handle_error(self, request, client_address):
        pass  # a client that went away

    def url(self, path="/file.pth") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        how, *more = server.script.pop(0) if len(server.script) > 1 else server.script[0], None
        how, *more = how if isinstance(how, tuple) else (how,)
        getattr(self, f"do_{how}")(*more)

    def head(self, code, length=None, **headers):
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()

    def do_serve(self, limit=None, ranges=True, corrupt=False, pause=0.0, then=0.0):
        """As a good server does; or break off after `limit` bytes, ignore Range, flip a byte, be slow, fall silent."""
        data, start, total = self.server.data, 0, len(self.server.data)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        fresh = self.headers.get("If-Range") in (None, self.server.etag)
        if ranges and wanted and fresh:
            start = int(wanted[1])
            if start >= total:
                return self.head(416, 0, Content_Range=f"bytes */{total}")
            self.head(206, total - start, Content_Range=f"bytes {start}-{total - 1}/{total}")
        else:
            self.head(200, total)
        data = data[start:]
        if corrupt:
            data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        data = data[:limit]
        for at in range(0, len(data), 20_000):
            if self.server.watch:
                self.server.seen.append(self.server.watch.exists())
            self.wfile.write(data[at : at + 20_000])
            self.wfile.flush()
            time.sleep(pause)
        time.sleep(then)

    def do_status(self, code):
        self.head(code, 0)

    def do_page(self):
        self.head(200, 6, Content_Type="text/html; charset=utf-8")
        self.wfile.write(b"<html>")

    def do_packed(self):
        self.head(200, len(DATA), Content_Encoding="gzip")
        self.wfile.write(DATA)

    def do_lengthless(self, limit=None):
        self.head(200)  # HTTP/1.0: the end is where the connection ends
        self.wfile.write(self.server.data[:limit])

    def do_chunked(self, limit=None):
        self.head(200, Transfer_Encoding="chunked")
        for at in range(0, len(self.server.data), 50_000)[:limit]:
            piece = self.server.data[at : at + 50_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"" if limit else b"0\r\n\r\n")

    def do_mute(self):
        time.sleep(1.0)

    def do_misplaced(self):
        self.head(206, 10, Content_Range=f"bytes 7-16/{len(self.server.data)}")
        self.wfile.write(self.server.data[7:17])

    def do_undescribed(self):
        self.head(206, 10)
        self.wfile.write(self.server.data[:10])

    def do_redirect(self, to):
        self.head(302, 0, Location=to)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, folder, name="x", **changes):
    """fetch with short pauses; the server's `watch` sees whether the final name exists while bytes are coming."""
    known = {"url": server.url(), "file": "file.pth", "sha256": SHA, "facts": {"format": "dino", "heads": 2}} | changes
    entry = Public(name, **known)
    server.watch = folder / entry.file
    return fetch(entry, folder, attempts=3, timeout=0.4, pause=0.005)


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def refused(server, folder, *words, left=frozenset(), **changes):
    """The fetch is refused in one line with the words, and `left` is all that is in the folder."""
    with pytest.raises(UserError) as info:
        get(server, folder, **changes)
    text = str(info.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert files(folder) == set(left)


PART = {".file.pth.part", ".file.pth.part.json"}


def stop(server, folder):
    """A fetch that gives up with 70,000 bytes."""
    server.script = [("serve", 70_000), ("status", 503)]
    refused(server, folder, "answers 503", "gave up after 3 tries", "70000 bytes are kept", left=PART)


# --- fetching


def test_a_whole_file_checked_and_remembered(server, tmp_path):
    found = get(server, tmp_path / "new" / "folder", size=len(DATA), md5=MD5[:8])
    assert found.path.read_bytes() == DATA
    assert (found.sha256, found.size, found.new) == (SHA, len(DATA), True)
    assert found.agreed == ["size", "sha256", "md5's first 8 digits"]
    assert files(found.path.parent) == {"file.pth", LOCAL}
    assert yaml.safe_load(found.remembered.read_text()) == {
        SHA: {"name": "x", "size": len(DATA), "format": "dino", "heads": 2}
    }
    again = get(server, found.path.parent)
    assert (again.new, again.agreed) == (False, ["sha256"])
    assert server.ranges == [None]  # the second time nothing was asked for
    assert set(server.seen) == {False}  # and the name appeared only at the end


def test_it_goes_on_where_it_broke_off(server, tmp_path):
    server.script = [("serve", 70_000), ("serve", 90_000), "serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges == [None, "bytes=70000-", "bytes=160000-"]


def test_a_server_without_validators(server, tmp_path):
    server.etag = None
    server.script = [("serve", 70_000), "serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges[1] == "bytes=70000-"


def test_a_file_that_changed_meanwhile_begins_anew(server, tmp_path):
    stop(server, tmp_path)
    server.data, server.etag, server.script = DATA[::-1], '"v2"', ["serve"]
    sha = hashlib.sha256(server.data).hexdigest()
    assert get(server, tmp_path, sha256=sha).path.read_bytes() == server.data
    assert server.ranges[-1] == "bytes=70000-"  # was asked, with If-Range, and answered by the whole


def test_a_part_of_another_length_begins_anew(server, tmp_path):
    """No validators: the length tells."""
    server.etag = None
    stop(server, tmp_path)
    server.data, server.script = DATA[::-1] + b"more", ["serve"]
    sha = hashlib.sha256(server.data).hexdigest()
    assert get(server, tmp_path, sha256=sha).path.read_bytes() == server.data


def test_range_ignored(server, tmp_path):
    server.script = [("serve", 70_000, False), ("serve", None, False)]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges == [None, "bytes=70000-"]


def test_it_gives_up_keeps_the_part_and_a_later_call_goes_on(server, tmp_path):
    stop(server, tmp_path)
    assert len(server.ranges) == 4  # one that brought bytes, three that brought none
    server.script = ["serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges[-1] == "bytes=70000-"
    assert files(tmp_path) == {"file.pth", LOCAL}


def test_breaking_off_at_the_same_byte_for_ever_ends(server, tmp_path):
    server.script = [("serve", 70_000, False)]
    refused(server, tmp_path, "broke off after 70000 of 307200", left=PART)
    assert len(server.ranges) == 4


@pytest.mark.parametrize("code", [500, 502, 429])
def test_a_passing_fault(server, tmp_path, code):
    server.script = [("status", code), ("status", code), "serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_lasting_fault_is_not_tried_again(server, tmp_path, code):
    server.script = [("status", code)]
    refused(server, tmp_path, f"answers {code}", server.url(), "has it moved?")
    assert len(server.ranges) == 1


def test_nobody_there(tmp_path):
    gone = Server()
    gone.server_close()
    refused(gone, tmp_path, "cannot be reached", "gave up after 3 tries")


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server, tmp_path):
    server.script = [("serve", None, True, False, 0.01)]
    assert get(server, tmp_path / "slow").path.read_bytes() == DATA
    assert len(server.ranges) == 1
    server.script = [("serve", 70_000, True, False, 0.0, 1.5), "serve"]  # then silence
    assert get(server, tmp_path / "silent").path.read_bytes() == DATA
    assert server.ranges[-1] == "bytes=70000-"


def test_a_corrupt_file_is_fetched_once_more_and_never_named(server, tmp_path):
    server.script = [("serve", None, True, True), "serve"]
    assert get(server, tmp_path / "once").path.read_bytes() == DATA
    server.script = [("serve", None, True, True)]
    wrong = hashlib.sha256(DATA[:-5] + bytes([DATA[-5] ^ 1]) + DATA[-4:]).hexdigest()
    refused(server, tmp_path / "twice", f"sha256 {wrong}", f"does not begin with {SHA}", "nothing was kept")
    assert len(server.ranges) == 4
    assert set(server.seen) == {False}


def test_a_corrupt_beginning_is_found_after_resuming(server, tmp_path):
    stop(server, tmp_path)
    part = tmp_path / ".file.pth.part"
    part.write_bytes(b"\xff" + part.read_bytes()[1:])
    server.script = ["serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges[-2:] == ["bytes=70000-", None]  # resumed, found wrong, once more from the beginning


def test_a_part_that_is_whole_already(server, tmp_path):
    stop(server, tmp_path)
    (tmp_path / ".file.pth.part").write_bytes(DATA)
    server.script = ["serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={len(DATA)}-"


def test_a_part_that_is_longer_than_the_file(server, tmp_path):
    stop(server, tmp_path)
    (tmp_path / ".file.pth.part").write_bytes(DATA + DATA)
    server.script = ["serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA


def test_parts_of_unknown_origin_are_not_continued(server, tmp_path):
    (tmp_path / ".file.pth.part").write_bytes(b"something")
    (tmp_path / ".file.pth.part.json").write_text("[1, not json")
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges == [None]


@pytest.mark.parametrize("how", ["misplaced", "undescribed"])
def test_a_part_that_was_not_asked_for(server, tmp_path, how):
    server.script = [("serve", 70_000), how, "serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA
    server.script = [how]
    refused(server, tmp_path / "b", "gave up")


def test_the_wrong_size_is_refused_before_the_bytes(server, tmp_path):
    refused(server, tmp_path, f"offers {len(DATA)} bytes", "has 12345", size=12345)
    assert len(server.ranges) == 1


def test_without_a_length(server, tmp_path):
    """Where the server does not say how long the file is, only a digest or the known size tells its end."""
    server.script = ["lengthless"]
    assert get(server, tmp_path / "a").path.read_bytes() == DATA
    assert get(server, tmp_path / "b", sha256="", size=len(DATA)).path.read_bytes() == DATA
    refused(server, tmp_path / "c", "does not say how long", sha256="")
    server.script = [("lengthless", 70_000)]
    refused(server, tmp_path / "d", "does not begin with", "nothing was kept")
    refused(server, tmp_path / "e", "has 70000 bytes, not 307200", sha256="", size=len(DATA))


def test_in_chunks(server, tmp_path):
    server.script = [("chunked", 2), "chunked"]  # the end of a broken one is seen; it cannot be resumed
    assert get(server, tmp_path).path.read_bytes() == DATA
    assert server.ranges == [None, None]
    server.script = [("chunked", 2)]
    refused(server, tmp_path / "b", "IncompleteRead", "gave up", left=PART)


def test_no_answer_at_all(server, tmp_path):
    server.script = ["mute", "serve"]
    assert get(server, tmp_path).path.read_bytes() == DATA


def test_no_file(server, tmp_path):
    server.script = ["page"]
    refused(server, tmp_path, "a web page, not a file")
    server.script = ["packed"]
    refused(server, tmp_path, "gzip")


def test_redirects(server, tmp_path):
    server.script = [("redirect", "/elsewhere/renamed.bin"), "serve"]
    assert get(server, tmp_path).path == tmp_path / "file.pth"
    server.script = [("redirect", (tmp_path / "file.pth").as_uri())]
    refused(server, tmp_path / "b", "file:", "is not allowed")
    with pytest.raises(UserError, match="is not followed"):
        _Redirect().redirect_request(Request("https://a.org/x"), None, 302, "", {}, "http://a.org/x")


def test_too_little_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refused(server, tmp_path, f"{len(DATA)} bytes are to come, 1000 are free")


def test_the_folder_cannot_be_written(server, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write"):
        get(server, tmp_path / "out")


def test_a_file_that_is_there_is_never_replaced(server, tmp_path):
    (tmp_path / "file.pth").write_bytes(b"mine")
    refused(server, tmp_path, "is there already", "move it away", left={"file.pth"})
    assert (tmp_path / "file.pth").read_bytes() == b"mine"
    assert server.ranges == []


def test_without_a_checksum_nothing_is_remembered(server, tmp_path):
    found = get(server, tmp_path, sha256="", size=len(DATA))
    assert (found.agreed, found.remembered) == (["size"], None)
    assert files(tmp_path) == {"file.pth"}


def test_two_processes_at_one_file(server, tmp_path):
    server.script = [("serve", None, True, False, 0.02)]
    first = threading.Thread(target=get, args=(server, tmp_path))
    first.start()
    while not server.seen:
        time.sleep(0.005)
    with pytest.raises(UserError, match="another process is fetching it"):
        get(server, tmp_path)
    first.join()
    assert (tmp_path / "file.pth").read_bytes() == DATA


def test_by_hand(server, tmp_path):
    """Google Drive and licence forms: the address is told, and a file put there is checked."""
    hand = {"by_hand": True, "url": "https://drive.google.com/file/d/abc/view"}
    refused(server, tmp_path, "by hand", "drive.google.com", str(tmp_path / "file.pth"), **hand)
    (tmp_path / "file.pth").write_bytes(DATA)
    found = get(server, tmp_path, **hand)
    assert (found.new, found.agreed) == (False, ["sha256"])
    assert found.remembered
    for url in ("timm:vit_small", "hf:facebook/dino-vits16"):
        with pytest.raises(UserError, match=f"give {url} to `selfpatch run`"):
            get(server, tmp_path, url=url)
    assert server.ranges == []


# --- lists and facts


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """A plug-in folder; plug(table) writes its zoo.yaml."""
    folder = tmp_path / "plug"
    folder.mkdir()
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(folder))

    def write(table):
        (folder / "zoo.yaml").write_text(table if isinstance(table, str) else yaml.safe_dump(table))
        return folder

    return write


def test_the_command_fetches_a_checkpoint_that_then_needs_no_words(server, tmp_path, plug):
    path, card = format_example("dino", tmp_path)
    server.data = path.read_bytes()
    sha = hashlib.sha256(server.data).hexdigest()
    hub = f"tiny-{sha[:8]}.pth" if re.search("[a-f]", sha[:8]) else f"tiny-{sha[:30]}.pth"
    entry = {"method": "DINO", "what": "tiny", "format": "dino", "row": "DINO|ViT-S/16", **card}
    folder = plug({"hub": entry | {"url": server.url(f"/{hub}")}, "bare": entry | {"url": server.url("/bare.pth")}})
    done = warm.run("zoo", "fetch", "hub", "bare", "--out", tmp_path / "got", "--plugins", folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(f"sha256 {sha}; agrees: sha256's first" in line for line in lines)
    assert any("nothing is known to check it by" in line for line in lines)
    told = [line for line in lines if line.startswith("  selfpatch run ")]
    assert [("--heads" in line, "--format dino" in line) for line in told] == [(False, False), (True, True)]
    checked = open_checkpoint(tmp_path / "got" / hub)
    assert (checked.card.heads, checked.facts["heads"], checked.row) == (card["heads"], "zoo", "DINO|ViT-S/16")
    ready(checked)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "bare.pth"
    moved.write_bytes(server.data)
    assert open_checkpoint(moved, format="dino").row is None  # the list stays with its folder


def test_a_killed_fetch_goes_on(server, tmp_path, plug):
    folder = plug({"big": {"url": server.url(), "sha256": SHA}})
    server.script = [("serve", None, True, False, 0.2)]
    process = warm.Process("zoo", "fetch", "big", "--out", tmp_path / "got", "--plugins", folder)
    part, end = tmp_path / "got" / ".file.pth.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 30_000):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert files(tmp_path / "got") == PART
    server.script = ["serve"]
    done = warm.run("zoo", "fetch", "big", "--out", tmp_path / "got", "--plugins", folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got/file.pth").read_bytes() == DATA
    assert int(server.ranges[-1].removeprefix("bytes=").rstrip("-")) > 30_000


def test_several_names_one_of_which_fails(server, tmp_path, plug):
    folder = plug({"a": {"url": server.url("/a.pth")}, "b": {"url": server.url("/b.pth")}})
    server.script = [("status", 404), "serve"]
    done = warm.run("zoo", "fetch", "a", "b", "--out", tmp_path / "got", "--plugins", folder)
    assert done.returncode == 1
    assert files(tmp_path / "got") == {"b.pth"}
    assert done.stderr.startswith("error: a: ")
    assert done.stderr.count("\n") == 1
    unknown = warm.run("zoo", "fetch", "b", "nobody", "--out", tmp_path / "other", "--plugins", folder)
    assert (unknown.returncode, files(tmp_path / "other")) == (2, set())  # before any work
    assert "the zoo has no nobody" in unknown.stderr


def test_zoo_needs_no_torch_and_a_run_no_fetch():
    code = (
        "import sys\nfrom selfpatch_bench.benchmarks.hub import fetch, zoo\nzoo.listing([])\n"
        "sys.exit(', '.join({'torch', 'numpy', 'pandas', 'timm', 'cv2'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    users = {"fetch": set(), "download": set()}
    for path in (REPO / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                for name in users.keys() & {(node.module or "").rpartition(".")[2], *(a.name for a in node.names)}:
                    users[name].add(path.relative_to(REPO / "benchmarks").as_posix())
    assert users == {"fetch": {"cli/look.py"}, "download": {"hub/fetch.py"}}


def test_a_file_is_known_by_its_sha256_under_any_name(tmp_path, plug):
    path, card = format_example("dino", tmp_path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    plug({"tiny": {"url": "https://example.org/t.pth", "sha256": sha, "row": "A|B", **card}})
    checkpoint = open_checkpoint(path)
    assert (checkpoint.card.heads, checkpoint.facts["heads"], checkpoint.row) == (card["heads"], "zoo", "A|B")
    plug({sha.upper(): {"row": "C|D", **card}})
    assert open_checkpoint(path).row == "C|D"


def test_a_file_is_read_only_where_an_entry_could_be_it(tmp_path, plug, monkeypatch):
    monkeypatch.setattr(zoo, "HERE", tmp_path)  # without the built-in list
    path = tmp_path / "f"
    path.write_bytes(DATA)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, kind: read.append(f.name) or digest(f, kind))
    assert zoo.look_up(path) == {}
    plug({"a": {"url": "https://example.org/a", "sha256": SHA, "size": 5, "heads": 6}})
    assert zoo.look_up(path) == {}
    plug({"a": {"url": "https://example.org/a", "sha256": SHA[:8], "heads": 6}})  # a prefix is no name
    assert zoo.look_up(path) == {}
    assert read == []
    plug({"a": {"url": "https://example.org/a", "sha256": SHA, "size": len(DATA), "heads": 6, "mean": 0.5}})
    assert zoo.look_up(path) == {"heads": 6, "mean": 0.5}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("a: [1", "is not YAML"),
        ("[1, 2]", "must map a sha256"),
        ("a: 3", "must map a sha256"),
        ("a: {url: 'https://x.org/a', head: 6}", "a: no field head"),
        ("a: {url: 'https://x.org/a', heads: six}", "a: card heads=six"),
        ("a: {url: 'https://x.org/a', size: many}", "a: size: 'many'"),
        ("a: {url: 'https://x.org/a', sha256: xyz}", "a: sha256: 'xyz'"),
        ("a: {url: 'https://x.org/a', file: ../b}", "file ../b must be a bare name"),
        ("dino_vits16: {url: 'https://x.org/a'}", "dino_vits16 already"),
    ],
)
def test_a_bad_list_is_one_line(plug, table, words):
    folder = plug(table)
    with pytest.raises(UserError) as info:
        zoo.listing([])
    assert words in str(info.value)
    assert str(folder / "zoo.yaml") in str(info.value)


def test_dates_in_names_are_no_digests():
    names = {"resnet50-11ad3fa6.pth": "11ad3fa6", "net-20210831.pth": None, "a_20210831-ea4938fc.pth": "ea4938fc"}
    assert {n: (m := zoo.HUB_NAME.search(n)) and m[1] for n in names} == names
    assert zoo.get("torchvision_resnet50_v2").sha256 == "11ad3fa6"
    assert zoo.get("dinov3_vits16").sha256 == "08c60483"


def test_the_built_in_list():
    known = zoo.public()
    formats, table = FORMATS.scan(), find_table("selfpatch_poster")
    rows = {row.key for row in table.rows}
    assert {entry.poster for entry in known.values()} - {""} == rows  # every row of the poster has a checkpoint
    methods = ("iBOT", "MAE", "DINOv2", "DINOv3", "SERE", "PW-Self", "SelfPatch", "DINO")
    assert set(methods) <= {entry.method for entry in known.values()}
    saved = [entry.file for entry in known.values() if entry.file]
    assert len(saved) == len(set(saved))  # one folder holds all of them
    for name, entry in known.items():
        assert entry.facts.get("format", "dino") in formats, name
        assert entry.facts.get("row", entry.poster) == entry.poster, name
        assert entry.source, name
        assert entry.url.startswith(("https://", "timm:", "hf:")), name
        assert entry.by_hand == (
            urlsplit(entry.url).netloc in ("", "drive.google.com", "ai.meta.com") or name == "pwself"
        ), name
        assert len(entry.sha256) in (0, 8, 64), name
        assert len(entry.md5) in (0, 6, 8), name
    text = zoo.listing([])
    assert all(f"  {name}: " in text and entry.url in text for name, entry in known.items())


def test_the_local_list_is_shared_by_fetches(server, tmp_path):
    get(server, tmp_path, name="one")
    server.data = DATA[::-1]
    get(server, tmp_path, name="two", file="b.pth", sha256=hashlib.sha256(server.data).hexdigest())
    assert {e["name"] for e in yaml.safe_load((tmp_path / LOCAL).read_text()).values()} == {"one", "two"}
    assert zoo.look_up(tmp_path / "b.pth") == {"format": "dino", "heads": 2}
    assert json.loads(json.dumps(zoo.look_up(tmp_path / "file.pth"))) == {"format": "dino", "heads": 2}
    (tmp_path / LOCAL).write_text("- no table")
    with pytest.raises(UserError, match=LOCAL):
        zoo.look_up(tmp_path / "b.pth")


def test_facts_of_digits_alone_survive_the_list(tmp_path):
    """A sha256 of decimal digits only, or one that reads as a float, must stay a text in YAML."""
    for sha in ("1" * 64, "1" * 60 + "e123"):
        zoo.remember(tmp_path, Public("x", facts={"heads": 6}), sha, 7)
        assert sha in yaml.safe_load((tmp_path / LOCAL).read_text())
