"""What a record says of the machine and the code that made it."""

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..pretrain.common.machine import process_peak

PACKAGES = ("selfpatch-bench", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def commit() -> str | None:
    """Commit of the checkout that this code runs from, `+` if it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    # No lock: `status` would else write the index anew, and a commit of the user's at that moment fails.
    how = {"env": os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, "timeout": 10, "check": True}
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, **how)
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, **how)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


def environment(device: str) -> dict:
    """Versions, machine and commit, for the record."""
    import torch

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    facts = {
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "command": sys.argv[1:],
    }
    if device.startswith("cuda"):
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def peak_memory(device: str) -> dict[str, int]:
    """Bytes: the process's largest resident size so far, and the GPU's largest allocation."""
    import torch

    peak = {"process": process_peak()}
    if device.startswith("cuda"):
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak
