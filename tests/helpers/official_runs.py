"""The data and the network of a recorded DAVIS evaluation (scores.json)."""

from pathlib import Path

import pytest

from conftest import REPO, SHARED
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos


def videos_of(golden: dict, folder: Path) -> Path:
    """The root of its videos: drawn into `folder`, or those of the shared folder; a skip where these are absent."""
    root = make_videos(folder / "videos", **golden["videos"]) if "videos" in golden else SHARED / golden["data"]
    return present(root)


def checkpoint_of(golden: dict) -> Path:
    return present((REPO / "tests/golden" if "videos" in golden else SHARED) / golden["checkpoint"])


def present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path
