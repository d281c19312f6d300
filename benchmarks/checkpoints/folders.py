"""Folders that hold a checkpoint, as trainers write them, and the configs that lie beside one."""

import json
import re
from pathlib import Path

from ...pretrain.common.errors import UserError, shorten

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pkl", ".tar", ".torch", ".ckpt")
OTHERS = (".h5", ".msgpack", ".onnx", ".gguf", ".pb", ".npz", ".tflite", ".engine", ".mlmodel")  # of other libraries
# What trainers put beside the weights, as a file or a folder of their own (Trainer, accelerate, DeepSpeed).
BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|custom_checkpoint|dataloader)(_\w+)?(\.\w+)?"
    r"|(\w+_)?zero_pp_rank_\w*optim_states\.pt|\..*"
)
ZERO = re.compile(r"(\w+_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
UNPACKED = "data.pkl"  # of a torch file
SHOWN = 8
MAX_TEXT = 1 << 26  # bytes of a JSON file
MAX_YAML = 1 << 20
RUN_FOLDERS = ("eval", "ckpt")  # of a run of DINOv3: NAME/ of it holds checkpoints, config.yaml lies beside it


def locate(folder: Path) -> Path:
    """The checkpoint in a folder, or in the only folder inside it that has one: a file, an index of shards, or a folder
    itself (torch.distributed.checkpoint's).

    Raises UserError that lists the choice if there are several, or says that there is none, and what there is.
    """
    found = _choice(folder)
    if not found:
        inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and not BESIDE.fullmatch(p.name)]
        holding = [p for p in inner if _choice(p)]
        if len(holding) != 1:
            raise UserError(f"{folder}: {_several(holding) if holding else _nothing(folder)}")
        (folder,) = holding
        found = _choice(folder)
    if len(found) > 1:
        raise UserError(f"{folder}: {_several(found)}")
    if found[0] == folder and is_run(folder):
        from ...pretrain.export import export

        return export(folder)
    return found[0]


def is_run(folder: Path) -> bool:
    """Is it a pretraining run of ours?"""
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def _choice(folder: Path) -> list[Path]:
    """The checkpoints that a folder itself holds: one where its layout says which; [] where there is none."""
    if is_run(folder) or (folder / ".metadata").is_file():
        return [folder]
    for name in ("model.safetensors", "pytorch_model.bin"):
        for file in (folder / name, folder / f"{name}.index.json"):
            if file.is_file():
                return [file]
    if (named := _named_by(folder / "last_checkpoint")) and named.is_file():  # mmengine and fvcore
        return [named]
    if (named := _named_by(folder / "latest")) and named.is_dir():  # DeepSpeed
        return _choice(named)
    indices = sorted(folder.glob("*.index.json"))
    files = indices or sorted(
        p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file() and not BESIDE.fullmatch(p.name)
    )
    if shards := [p for p in files if ZERO.fullmatch(p.name)]:  # refused where one of them is read
        return shards[:1]
    newest = folder / "checkpoint.pth"  # DINO and its relatives: beside numbered ones
    return [newest] if newest in files else files


def _named_by(file: Path) -> Path | None:
    """What lies beside a file that holds the name of the newest checkpoint."""
    if not file.is_file() or file.stat().st_size >= 4096:
        return None
    name = Path(file.read_text(encoding="utf-8", errors="replace").strip()).name
    return file.parent / name if is_name(name) else None


def _several(found: list[Path]) -> str:
    names = ", ".join(p.name for p in found[:SHOWN])
    return f"a folder with several checkpoints ({names}{', ...' * (len(found) > SHOWN)}): name one"


def _nothing(folder: Path) -> str:
    there = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    others = [name for name in there if name.endswith(OTHERS)]
    shown = shorten(", ".join((others or there)[:SHOWN]), 200) or "nothing"
    what = ", which no torch reads" if others else ""
    return f"a folder with no checkpoint in it or one level below (of {' '.join(SUFFIXES)}); it holds {shown}{what}"


def check_whole(file: Path) -> None:
    """Raises UserError, with what to do, for a part of a checkpoint that is nothing alone."""
    if ZERO.fullmatch(file.name):
        raise UserError(
            f"{file}: a shard of DeepSpeed's ZeRO, which holds a part of each tensor: join them by the zero_to_fp32.py "
            "that DeepSpeed wrote beside them (`python zero_to_fp32.py . joined`), and give its pytorch_model.bin"
        )
    if file.name == UNPACKED and (file.parent / "data").is_dir():
        name = file.parent.resolve().name
        raise UserError(
            f"{file.parent}: an unpacked torch file (data.pkl, data/): pack it again, in the folder above, "
            f"by `zip -0 -r {name}.pth {name}`"
        )


def is_name(name: str) -> bool:
    """Can it be the name of a file in a folder, at any length that file systems take?"""
    long = len(name.encode("utf-8", "surrogatepass")) > 255
    return not long and name not in ("", ".", "..") and Path(name).name == name and not set("\\\0") & set(name)


# -- what lies beside


def configs(file: Path, asked: Path) -> dict:
    """The configs beside a checkpoint file, or in a checkpoint folder, by what they are. asked: the folder that the
    user named, where the file was found in it."""
    folder = file if file.is_dir() else file.parent
    around = [folder, *([asked] if asked.is_dir() and asked != folder else [])]
    own = [] if file.is_dir() else [file.with_suffix(".config.json")]
    run = [folder.parent.parent] if folder.parent.name in RUN_FOLDERS else []
    found = {}
    for name, places in (
        ("config.json", [*own, *(p / "config.json" for p in around)]),
        ("preprocessor_config.json", [p / "preprocessor_config.json" for p in around]),
        ("args.yaml", [p / "args.yaml" for p in around]),
        ("config.yaml", [p / "config.yaml" for p in (*around, *run)]),
    ):
        config = next((p for p in places if is_name(p.name) and p.is_file()), None)
        if config:
            is_json = name.endswith(".json")
            found[name] = read_json(config, f"{config} beside the checkpoint") if is_json else _yaml(config)
    return found


def read_json(path: Path, what: str):
    try:
        if path.stat().st_size > MAX_TEXT:
            raise UserError(f"{what} is absurdly large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON: {shorten(error)}") from None


def _yaml(path: Path) -> dict:
    """The table of a YAML file; an empty one where it holds none, as other programs' `config.yaml` may be anything."""
    import yaml

    try:
        if path.stat().st_size > MAX_YAML:
            return {}
        table = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return table if isinstance(table, dict) else {}
