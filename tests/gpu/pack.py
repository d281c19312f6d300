"""What a machine with a GPU and without a network needs besides this repository, into one folder: `.gpu/`.

    python tests/gpu/pack.py [--python 3.12] [--have torch,torchvision,...] [--folder .gpu] [--data CLASSES]

    here           python tests/gpu/pack.py                  (pip downloads; at most 64 MB in all)
    there          python tests/gpu/pack.py --install        (from the folder; nothing is fetched)
    then           python tests/gpu/figures.py --only pretrain --minutes 8

The folder gets wheels of what the machine lacks, at the versions of constraints.txt. --have: distributions that are
there, or not needed; they and nothing else of what the project depends on are left out. --data: class folders for
learn.py, copied to FOLDER/data. --install puts the wheels into FOLDER/site and writes FOLDER/env.sh, to be sourced:
the folder's packages and this repository on PYTHONPATH, so that nothing of the machine's own is changed. Pure Python
distributions that have no wheel are built here.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
LIMIT = 64e6
# What comes with a machine for PyTorch, and what evaluation and training run without.
HAVE = ("torch", "torchvision", "numpy", "pillow", "safetensors", "pandas", "scipy", "packaging", "pyyaml", "jinja2")
HAVE += ("matplotlib", "rich", "typer", "opencv-python-headless")
# For the tests, and what these need: everything is downloaded without its dependencies.
NEEDED = ("pytest", "iniconfig", "pluggy", "pytest-timeout", "pytest-xdist", "execnet")
MM = ("onedl-mmengine", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation", "addict", "yapf", "termcolor")
MM += ("terminaltables", "prettytable", "wcwidth", "pycocotools", "faster-coco-eval", "shapely", "ftfy")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PLATFORMS += ("manylinux_2_5_x86_64", "manylinux1_x86_64")


def plain(name: str) -> str:
    """A distribution's name as everybody writes it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=~!;]", name)[0]).lower()


def needed(have: set[str], mm: bool) -> list[str]:
    """name==version of what is to be packed."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    names = [plain(n) for n in (*project["dependencies"], *NEEDED, *(MM if mm else ()))]
    pins = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {plain(name): version for name, version in pins.items()}
    names = [n for n in dict.fromkeys(names) if n not in have]
    return [f"{n}=={pins[n]}" if n in pins else n for n in names]


def pack(args) -> int:
    wheels = args.folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    version, failed = args.python, []
    for item in needed({plain(n) for n in args.have.split(",") if n}, not args.no_mm):
        line = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, "--python-version", version]
        line += ["--only-binary=:all:", "--implementation", "cp", *(x for p in PLATFORMS for x in ("--platform", p))]
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, item]
        if not any(subprocess.run(c, capture_output=True, check=False).returncode == 0 for c in ([*line, item], build)):
            failed.append(item)
    if args.data:
        shutil.copytree(args.data, args.folder / "data", dirs_exist_ok=True)
    files = [p for p in args.folder.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    for path in sorted(wheels.iterdir(), key=lambda p: -p.stat().st_size):
        fits = any(word in path.name for word in ("none-any", "abi3", f"cp{version.replace('.', '')}"))
        wrong = "" if fits else "  not for that Python"
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}{wrong}")
    print(f"{size / 1e6:.1f} MB in {args.folder}, {len(files)} files")
    for item in failed:
        print(f"error: {item}: there is no wheel, and none can be built", file=sys.stderr)
    if size > LIMIT:
        print(f"error: more than {LIMIT / 1e6:.0f} MB: name in --have what is there", file=sys.stderr)
    return 1 if failed or size > LIMIT else 0


def install(folder: Path) -> int:
    """Unpack the wheels, without pip's looking for anything, and say how to use them."""
    site = folder.resolve() / "site"
    wheels = sorted(map(str, (folder / "wheels").glob("*.whl")))
    line = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    if wheels:
        subprocess.run([*line, "--target", str(site), *wheels], check=True)
    link(site)
    text = f'export PYTHONPATH="{site}${{PYTHONPATH:+:$PYTHONPATH}}"\n'
    (folder / "env.sh").write_text(text)
    print(f"source {os.path.relpath(folder / 'env.sh')}")
    return 0


def link(site: Path) -> None:
    """The import package selfpatch_bench in `site`: this repository's folders, as an editable install has them."""
    package = site / "selfpatch_bench"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(f"__path__ = [{str(REPO)!r}]\n")
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    about = site / f"selfpatch_bench-{version}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: selfpatch-bench\nVersion: {version}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPO / ".gpu")
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--have", default=",".join(HAVE), help="distributions that the machine has")
    parser.add_argument("--no-mm", action="store_true", help="nothing for fine-tuning")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    return install(args.folder) if args.install else pack(args)


if __name__ == "__main__":
    sys.exit(main())
