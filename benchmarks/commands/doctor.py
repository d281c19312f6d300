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


class Report:
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


def check_packages(report: Report) -> None:
    """Python (pip installs this for no older one) and every required package, at an allowed version."""
    report.ok("python", sys.version.split()[0])
    for text in requires(DISTRIBUTION) or []:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{need.name}{need.specifier}'"
        try:
            have = version(need.name)
        except PackageNotFoundError:
            report.fail(need.name, "is not installed", fix)
            continue
        if need.specifier.contains(have, prereleases=True):
            report.ok(need.name, have)
        else:
            report.fail(need.name, f"{have}, but {need.specifier} is needed", fix)


def check_imports(report: Report) -> None:
    """cv2 and torch import, and what CUDA says."""
    try:
        import cv2

        cv2.resize(__import__("numpy").zeros((2, 2, 3), "uint8"), (4, 4))
        report.ok("cv2", f"imports ({cv2.__version__})")
    except Exception as error:  # a broken cv2 fails in many ways, and all have the same fix
        fix = "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless"
        report.fail("cv2", f"does not import: {error}", fix)
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # mismatched builds fail at import or at the first kernel
        fix = "install a matching pair, such as torch==2.14.1 torchvision==0.29.1"
        report.fail("torch", f"torch and torchvision do not work together: {error}", fix)
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            report.ok(f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        fix = "install a torch build whose CUDA the driver supports (nvidia-smi names the driver's)"
        report.fail("cuda", f"there is a driver, but torch {torch.__version__} sees no GPU", fix)
    else:
        report.note("cuda", f"no GPU: everything runs on {torch.get_num_threads()} CPU threads")


def check_extras(report: Report) -> None:
    """Optional parts: present, absent, or half there."""
    for extra, (purpose, modules) in OPTIONAL.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if not missing:
            report.ok(f"[{extra}]", purpose)
        elif len(missing) == len(modules):
            report.note(f"[{extra}]", f"{purpose}: not installed (pip install '{DISTRIBUTION}[{extra}]')")
        else:
            fix = f"pip install '{DISTRIBUTION}[{extra}]'"
            report.fail(f"[{extra}]", f"{purpose}: {', '.join(missing)} missing", fix)


def check_disk(report: Report, out: Path) -> None:
    """Room and permission where results go."""
    folder = out.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        report.fail("results", f"{folder} is not writable", "give --out a folder of your own")
    elif free < 1:
        report.fail("disk", f"{free:.1f} GiB free at {folder}", "free some space or give --out another disk")
    else:
        report.ok("disk", f"{free:.0f} GiB free for results at {folder}")


def check_data(report: Report, data: list[str]) -> None:
    """The roots that --data names or that lie in SELFPATCH_DATA, and only these."""
    place = os.environ.get("SELFPATCH_DATA")
    if not data and not place:
        report.note("data", "no root given (--data NAME=ROOT or SELFPATCH_DATA)")
        return
    try:
        from ..datasets.roots import data_roots, environment_roots, split_roots
    except ImportError as error:  # cv2 is broken, which stands above with its fix
        report.note("data", f"not looked at: {error}")
        return
    try:
        checks = data_checks(report)
        known = ", ".join(sorted(checks))
        plain, named = split_roots(data)
        names = [*named, *(name for name in environment_roots(checks) if name not in named)]
    except UserError as error:
        report.fail("data", str(error), "give --data NAME=ROOT for each data set; see the README, section Data")
        return
    if plain is not None:  # a task would tell; a folder does not
        report.fail("data", f"--data {plain}: of which data set?", f"--data NAME={plain}, NAME one of {known}")
        data = []
    elif not names:
        report.note("data", f"SELFPATCH_DATA={place} holds none of {known}")
    for name in names:
        if name in checks:
            check_set(report, name, lambda name=name: checks[name](data_roots(data, name)))
        else:
            near = difflib.get_close_matches(name.lower(), checks, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            report.fail(name, f"no task has a data set of this name{hint}", f"NAME=ROOT with NAME one of {known}")


def data_checks(report: Report) -> dict[str, Callable[[Path], Data]]:
    """Data set -> its check, by what the tasks declare, ours before a user's. A task that does not import is a note."""
    checks: dict[str, Callable[[Path], Data]] = {}
    for entry in sorted(tasks().values(), key=lambda entry: not entry.file.ours):
        try:
            checks.setdefault(entry.task.dataset, entry.task.check_data)
        except (UserError, AttributeError) as error:
            report.note(entry.name, f"left out: {error}")
    return checks


def check_set(report: Report, name: str, opened: Callable[[], Data]) -> None:
    """One data set: what is there, and how it differs from the published one."""
    try:
        found = opened()
        official = "the official data" if found.official else found.differs
        report.ok(name, f"{found.root}: {found.summary} ({official})")
        for note in found.notes:
            report.note(name, note)
    except Exception as error:  # a user's task may raise anything, and the other lines are still wanted
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        report.fail(name, " ".join(text.split()), "see the README, section Data")


def doctor_command(data: list[str], out: Path) -> int:
    """Print the report; 1 if anything needs a fix."""
    report = Report()
    check_packages(report)
    check_imports(report)
    check_extras(report)
    check_disk(report, out)
    check_data(report, data)
    print("\n".join(report.lines))
    print(f"\n{report.failed} to fix" if report.failed else "\nready")
    return int(report.failed > 0)
