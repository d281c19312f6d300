"""Damaged files of every format through the whole loader; `tests/helpers/fuzz_checkpoints.py` does thousands."""

import pytest

from fuzz_checkpoints import Worker, fuzz, judge


def test_300_damaged_files_of_all_formats(tmp_path):
    counts, failures = fuzz(300, 1, tmp_path)
    assert not failures, failures[:5]
    assert counts["refused"] > 100, counts
    assert counts["loaded"] > 10, counts


GOOD = {"loaded": "sha256:1", "names": ["a", "b"], "format": "x", "warnings": ["unusual: depth 2"], "seen": []}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"crashed": "exit status -11", "seen": []}, "bytes"),
        ({"hung": "exit status -9", "seen": []}, "bytes"),
        ({"raised": "KeyError: x", "seen": []}, "bytes"),
        (GOOD | {"names": ["a"]}, "bytes"),
        (GOOD | {"loaded": "sha256:2"}, "lose"),
        (GOOD | {"seen": ["os.system"]}, "bytes"),
        (GOOD | {"names": ["a"], "loaded": "sha256:2"}, "block lost"),
        ({"refused": "two\nlines", "seen": []}, "bytes"),
    ],
)
def test_the_judge_sees_what_is_wrong(answer, kind):
    assert judge(answer, GOOD, kind)
    assert judge(GOOD, GOOD, kind) is None


def test_a_smaller_network_that_is_said_is_no_failure():
    smaller = GOOD | {"names": ["a"], "loaded": "sha256:2", "warnings": ["unusual: depth 1"]}
    assert judge(smaller, GOOD, "block lost") is None


def test_a_worker_that_dies_or_hangs_is_noticed_and_replaced(tmp_path):
    """By a named pipe that nobody writes to, and by killing it."""
    import os

    os.mkfifo(tmp_path / "pipe")
    worker = Worker(tmp_path, 30.0)
    try:
        assert "refused" in worker.ask({"path": str(tmp_path / "absent"), "format": None, "card": {}})
        worker.process.kill()
        worker.process.wait()
        assert "refused" in worker.ask({"path": str(tmp_path / "absent"), "format": None, "card": {}})
        worker.process.send_signal(19)  # stopped: it cannot answer
        worker.timeout = 1.0
        assert "hung" in worker.ask({"path": str(tmp_path / "absent"), "format": None, "card": {}})
    finally:
        worker.stop()
