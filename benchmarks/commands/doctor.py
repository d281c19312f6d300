"""Is this machine ready? One line for each point; a failing one comes with its fix."""

import difflib
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ...pretrain.common.errors import UserError
from ..tasks import Data
from ..tasks._registry import tasks

DISTRIBUTION = "selfpatch-bench"
OPTIONAL = {
    "mm": ("COCO and ADE20K", ("mmengine", "mmcv", "mmdet", "mmseg", "faster_coco_eval")),
    "slurm": ("jobs on a cluster", ("submitit",)),
    "track": ("TensorBoard logs", ("tensorboard",)),
}


class Checklist:
    """Collects lines; `failed` counts those that need a fix."""

    def __init__(self):
        self.lines: list[str] = []
        self.failed = 0

    def ok(self, what: str, detail: str) -> None:
        self.lines.append(f"ok    {what:<12} {detail}")

    def note(self, what: str, detail: str) -> None:
        self.lines.append(f"-     {what:<12} {detail}")

    def fail(self, what: str, detail: str, fix: str) -> None:
        self.failed += 1
        self.lines.append(f"FAIL  {what:<12} {detail}\n      {'':<12} fix: {fix}")


def check_packages(points: Checklist) -> None:
    """Python (pip installs this for no older one) and every required package, at an allowed version."""
    points.ok("python", sys.version.split()[0])
    for text in requires(DISTRIBUTION) or []:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{need.name}{need.specifier}'"
        try:
            have = version(need.name)
        except PackageNotFoundError:
            points.fail(need.name, "is not installed", fix)
            continue
        if need.specifier.contains(have, prereleases=True):
            points.ok(need.name, have)
        else:
            points.fail(need.name, f"{have}, but {need.specifier} is needed", fix)


def check_imports(points: Checklist) -> None:
    """cv2 and torch import, and what CUDA says."""
    try:
        import cv2
        import numpy

        cv2.resize(numpy.zeros((2, 2, 3), "uint8"), (4, 4))
        points.ok("cv2", f"imports ({cv2.__version__})")
    except Exception as error:  # a broken cv2 fails in many ways, and all have the same fix
        fix = "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless"
        points.fail("cv2", f"does not import: {error}", fix)
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # mismatched builds fail at import or at the first kernel
        fix = "install a matching pair, such as torch==2.14.1 torchvision==0.29.1"
        points.fail("torch", f"torch and torchvision do not work together: {error}", fix)
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            points.ok(f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        fix = "install a torch build whose CUDA the driver supports (nvidia-smi names the driver's)"
        points.fail("cuda", f"there is a driver, but torch {torch.__version__} sees no GPU", fix)
    else:
        points.note("cuda", f"no GPU: everything runs on {torch.get_num_threads()} CPU threads")


def check_extras(points: Checklist) -> None:
    """Optional parts: present, absent, or half there."""
    for extra, (purpose, modules) in OPTIONAL.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if not missing:
            points.ok(f"[{extra}]", purpose)
        elif len(missing) == len(modules):
            points.note(f"[{extra}]", f"{purpose}: not installed (pip install '{DISTRIBUTION}[{extra}]')")
        else:
            fix = f"pip install '{DISTRIBUTION}[{extra}]'"
            points.fail(f"[{extra}]", f"{purpose}: {', '.join(missing)} missing", fix)


def check_disk(points: Checklist, out: Path) -> None:
    """Room and permission where results go."""
    folder = out.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        points.fail("results", f"{folder} is not writable", "give --out a folder of your own")
    elif free < 1:
        points.fail("disk", f"{free:.1f} GiB free at {folder}", "free some space or give --out another disk")
    else:
        points.ok("disk", f"{free:.0f} GiB free for results at {folder}")


def check_data(points: Checklist, data: list[str]) -> None:
    """The roots that --data names or that lie in SELFPATCH_DATA, and only these."""
    place = os.environ.get("SELFPATCH_DATA")
    if not data and not place:
        points.note("data", "no root given (--data NAME=ROOT or SELFPATCH_DATA)")
        return
    try:
        from ..datasets.roots import data_roots, environment_roots, split_roots
    except ImportError as error:  # cv2 is broken, which stands above with its fix
        points.note("data", f"not looked at: {error}")
        return
    try:
        checks = data_checks(points)
        known = ", ".join(sorted(checks))
        unnamed, named = split_roots(data)
        names = [*named, *(name for name in environment_roots(checks) if name not in named)]
    except UserError as error:
        points.fail("data", str(error), "give --data NAME=ROOT for each data set; see the README, section Data")
        return
    if unnamed is not None:  # a task would tell; a folder does not
        points.fail("data", f"--data {unnamed}: of which data set?", f"--data NAME={unnamed}, NAME one of {known}")
        data = []
    elif not names:
        points.note("data", f"SELFPATCH_DATA={place} holds none of {known}")
    for name in names:
        if name in checks:
            check_set(points, name, lambda name=name: checks[name](data_roots(data, name)))
        else:
            near = difflib.get_close_matches(name.lower(), checks, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            points.fail(name, f"no task has a data set of this name{hint}", f"NAME=ROOT with NAME one of {known}")


def data_checks(points: Checklist) -> dict[str, Callable[[Path], Data]]:
    """Data set -> its check, by what the tasks declare, ours before a user's. A task that does not import is a note."""
    checks: dict[str, Callable[[Path], Data]] = {}
    for entry in sorted(tasks().values(), key=lambda entry: not entry.file.ours):
        try:
            checks.setdefault(entry.task.dataset, entry.task.check_data)
        except (UserError, AttributeError) as error:
            points.note(entry.name, f"left out: {error}")
    return checks


def check_set(points: Checklist, name: str, opened: Callable[[], Data]) -> None:
    """One data set: what is there, and how it differs from the published one."""
    try:
        data = opened()
        official = "the official data" if data.official else data.differs
        points.ok(name, f"{data.root}: {data.summary} ({official})")
        for note in data.notes:
            points.note(name, note)
    except Exception as error:  # a user's task may raise anything, and the other lines are still wanted
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        points.fail(name, " ".join(text.split()), "see the README, section Data")


def doctor_command(data: list[str], out: Path) -> int:
    """Print what was found; 1 if anything needs a fix."""
    points = Checklist()
    check_packages(points)
    check_imports(points)
    check_extras(points)
    check_disk(points, out)
    check_data(points, data)
    print("\n".join(points.lines))
    print(f"\n{points.failed} to fix" if points.failed else "\nready")
    return int(points.failed > 0)
