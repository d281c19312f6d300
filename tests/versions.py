"""A smoke subset of the tests on other versions of Python and torch than the pinned ones. Not part of the suite.

    python tests/versions.py [--folder DIR] [--only 3.12]

Each case is an environment of its own below the folder (several GB, kept for the next time), with this checkout and
the extras `mm` and `test`; everything but torch and what comes with it is at the versions of constraints.txt, where
these are to be had for that Python. A line for each case says what was installed and what pytest counted.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# Python, and what pip is told of torch: the oldest that is supported, and the newest that resolves.
CASES = (("3.12", ("torch==2.11.0", "torchvision==0.26.0")), ("3.13", ("torch", "torchvision")))
WITH_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-|cuda-|setuptools|sympy|mpmath|networkx)")
SUBSET = (
    *("tests/test_house.py", "tests/cli/test_cli.py", "tests/checkpoints/test_unpickle.py"),
    *("tests/formats/test_formats.py", "tests/pretrain/test_alone.py", "tests/pretrain/test_methods.py"),
    *("tests/pretrain/test_objectives.py", "tests/tasks/test_davis.py", "tests/tasks/test_knn.py"),
    *("tests/mm/test_mm_ops.py", "tests/mm/test_mm_build.py"),
)


def install(folder: Path, python: str, torch: tuple[str, ...]) -> Path:
    """The environment's python; made unless it is there."""
    environment = folder / f"python{python}"
    inside = environment / "bin/python"
    if not (environment / "complete").is_file():
        subprocess.run([f"python{python}", "-m", "venv", "--clear", environment], check=True)
        pins = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not WITH_TORCH.match(line)]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write("\n".join(pins))
            constraints.flush()
            pip = [inside, "-m", "pip", "install", "-q", "-c", constraints.name, *torch, "-e", ".[test,mm]"]
            subprocess.run(pip, cwd=REPO, check=True)
        (environment / "complete").touch()
    return inside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "selfpatch-versions")
    parser.add_argument("--only", help="one version of Python")
    args = parser.parse_args()
    failed = 0
    for python, torch in CASES:
        if args.only not in (None, python):
            continue
        if shutil.which(f"python{python}") is None:
            print(f"Python {python}: not on this machine")
            failed = 1
            continue
        inside = install(args.folder, python, torch)
        versions = "import platform, torch; print('Python', platform.python_version(), 'torch', torch.__version__)"
        what = subprocess.run([inside, "-c", versions], capture_output=True, text=True, check=True).stdout.strip()
        done = subprocess.run(
            [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUBSET], cwd=REPO, capture_output=True, text=True
        )
        print(f"{what}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode:
            print(done.stdout[-6000:])
        failed |= done.returncode
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
