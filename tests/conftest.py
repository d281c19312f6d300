"""Shared fixtures. `SELFPATCH_SHARED` names the folder with reference values and real data (default ../shared)."""

import os
import signal
import sys
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny networks gain nothing from threads: where test files share the cores, each keeps to one (set before torch comes).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SELFPATCH_SHARED", REPO.parent / "shared"))


def shared_cases(pattern: str) -> list:
    """Files below the shared folder that match `pattern`, as pytest parameters with readable ids."""
    return [pytest.param(p, id=str(p.relative_to(SHARED))) for p in sorted(SHARED.glob(pattern))]


def golden_cases(pattern: str) -> list:
    """What official code computed, by pattern: files of tests/golden/official, which everybody has, and further ones of
    the shared folder, as pytest parameters."""
    folder = REPO / "tests/golden/official"
    kept = [pytest.param(p, id=str(p.relative_to(folder))) for p in sorted(folder.glob(pattern))]
    assert kept, f"{folder} holds no {pattern}"
    more = shared_cases(f"golden/{pattern}")
    return kept + [pytest.param(*c.values, id=c.id, marks=pytest.mark.shared) for c in more]


# The files that take longest, longest first: begun last, one of them would keep one process busy after all others.
LONGEST = (
    *("test_commands_golden_runs", "mm/test_mm_full", "common/test_processes", "tasks/test_davis", "tasks/test_knn"),
    *("pretrain/test_methods", "pretrain/test_resume", "pretrain/test_distributed", "checkpoints/test_fuzz"),
    *("checkpoints/test_completeness", "formats/test_formats", "cli/test_cli", "pretrain/test_slurm"),
    *("test_commands_golden", "test_wheel"),
)


def pytest_collection_modifyitems(items):
    place = {REPO / "tests" / f"{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no folder {SHARED}: set SELFPATCH_SHARED to run the tests on reference data")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


RAN = {"selected": 0, "run": 0}  # tests marked `shared`, counted where all reports arrive


def pytest_runtest_logreport(report):
    if "shared" in report.keywords:
        RAN["selected"] += report.when == "setup"
        RAN["run"] += report.when == "call" and not report.skipped


def pytest_sessionfinish(session):
    """A folder that was named and of which not one case ran is a mistake, not a pass."""
    if hasattr(session.config, "workerinput"):  # one of several processes, which sees only its own part
        return
    named = os.environ.get("SELFPATCH_SHARED")
    if named and RAN["selected"] and not RAN["run"] and not session.config.option.collectonly:
        print(f"\nSELFPATCH_SHARED={named}: not one case of it ran")
        session.exitstatus = 1


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; a test that uses it is also marked `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def need(shared):
    """need("golden/x.npz") -> its path, or a skip that names what is absent."""

    def look(relative: str) -> Path:
        path = shared / relative
        if not path.exists():
            pytest.skip(f"{path} is absent")
        return path

    return look


@pytest.fixture(scope="module", autouse=True)
def nothing_of_mmengine_left():
    """A Runner leaves its scope, logger and visualizer to what comes after it in a process: not to another file's."""
    yield
    if manager := sys.modules.get("mmengine.utils.manager"):
        left = [manager.ManagerMixin]
        while left:
            kind = left.pop()
            kind._instance_dict.clear()
            left += kind.__subclasses__()
