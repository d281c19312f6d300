"""Is this machine ready? One line for each point; a failing one comes with its fix."""

import importlib
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from .errors import UserError

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
    """Every data root that was given or that SELFPATCH_DATA names."""
    from .datasets import data_roots, open_davis

    if not data and not os.environ.get("SELFPATCH_DATA"):
        report.note("data", "no root given (--data NAME=ROOT or SELFPATCH_DATA)")
        return
    try:
        davis = open_davis(data_roots(data, "davis2017"))
        official = "official DAVIS-2017 val" if davis.official else davis.differs
        report.ok("davis2017", f"{davis.root}: {davis.summary} ({official})")
    except UserError as error:
        report.fail("davis2017", str(error), "see the README, section Data")


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
