"""What the commands are run on: `python tests/golden/commands/inputs.py examples FOLDER` (or `data FOLDER`).

The one place here that imports modules of the project by their path: the formats' names and the drawing of
scenes. Wherever a module moves, only the two functions that begin with `from selfpatch_bench` follow it.

Nothing that goes into a file is left to a random number generator or to the rounding of a processor's vector unit:
every random weight is replaced by one made of a hash, so that fingerprints and keys are the same on every machine.
"""

import argparse
import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# ------------------------------------------------------------------------------------------------ of the project
def examples(folder: Path) -> None:
    """A file of every built-in format, in FOLDER/FORMAT/; FOLDER/examples.json: format -> [file, its facts]."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "helpers"))
    from format_examples import format_example
    from selfpatch_bench.benchmarks.checkpoints import FORMATS

    found = {}
    for name in FORMATS.scan():
        for seed, place in enumerate((folder / name, folder / f".{name}")):
            place.mkdir(parents=True)
            torch.manual_seed(seed)
            path, facts = format_example(name, place)
        for file in sorted(p for p in (folder / name).rglob("*") if p.is_file() and p.suffix != ".json"):
            rewrite(file, folder / f".{name}" / file.relative_to(folder / name), name)
        shutil.rmtree(folder / f".{name}")
        found[name] = [f"{name}/{path.name}", facts]
    (folder / "examples.json").write_text(json.dumps(found, indent=1))


def data(folder: Path) -> None:
    """Drawn sets of a few small pictures: FOLDER/davis, classes, coco, ade20k."""
    from selfpatch_bench.benchmarks.synthetic.scenes import make_pictures, make_videos
    from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco

    make_videos(folder / "davis", sequences=2, frames=4, size=(64, 96), objects=[2, 1])
    make_pictures(folder / "classes/train", 20, (48, 56), classes=4)
    for last in sorted((folder / "classes/train").glob("*/*.jpg"), key=lambda p: p.name)[-8:]:
        target = folder / "classes/val" / last.relative_to(folder / "classes/train")
        target.parent.mkdir(parents=True, exist_ok=True)
        last.rename(target)
    make_coco(folder / "coco", (3, 3), (64, 96), same=True)
    make_ade20k(folder / "ade20k", (3, 3), (64, 96), same=True)
    for note in folder.rglob("drawn.json"):
        note.unlink()


# ------------------------------------------------------------------------------------- weights made of a hash
def noise(name: str, shape) -> np.ndarray:
    """float64 of this shape in -0.125 .. 0.125, exact in every floating-point type; another for every name."""
    count = int(np.prod(shape))
    found = np.frombuffer(hashlib.shake_256(name.encode()).digest(count), np.int8)
    return found.reshape(shape) / 1024


def weight(name: str, shape) -> torch.Tensor:
    """float64 values for a parameter or a buffer: scales near 1, variances above 0."""
    values = torch.from_numpy(noise(name, shape))
    if name.endswith("running_var"):
        return values + 0.5
    return values + (len(shape) == 1 and name.endswith("weight"))


def leaves(tree, name: str = ""):
    """(dotted name, tensor or array, a function that puts another in its place) of nested containers."""
    if isinstance(tree, argparse.Namespace):
        tree = vars(tree)
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        path = f"{name}.{key}"
        if isinstance(value, torch.Tensor | np.ndarray):
            yield path, value, lambda new, key=key: tree.__setitem__(key, new)
        else:
            yield from leaves(value, path)


def replace(tree, other, label: str):
    """The tree with weights made of a hash wherever the two, drawn with other seeds, differ."""
    for (name, value, put), (_, second, _) in zip(leaves(tree), leaves(other), strict=True):
        is_array = isinstance(value, np.ndarray)
        one, two = (torch.from_numpy(x) if is_array else x.detach() for x in (value, second))
        if torch.equal(one, two):
            if one.dtype in FLOATS and name.endswith("pos_embed"):  # sines and cosines, to 1/128
                put((one.double() * 128).round().div(128).to(one.dtype))
        elif one.dtype in FLOATS:
            new = weight(f"{label}{name}", tuple(one.shape)).to(one.dtype)
            put(new.numpy() if is_array else new)
        else:
            raise ValueError(f"{label}{name}: random, but {one.dtype}")
    return tree


def rewrite(file: Path, second: Path, label: str) -> None:
    """`replace` for two files of any of the kinds that checkpoints come in."""
    if file.suffix == ".safetensors":
        (tree, metadata), (other, _) = (read_safetensors(p) for p in (file, second))
        save_file(replace(tree, other, label), file, metadata)
    elif file.suffix == ".pkl":
        tree, other = (pickle.loads(p.read_bytes()) for p in (file, second))
        file.write_bytes(pickle.dumps(replace(tree, other, label), protocol=2))
    else:
        tree, other = (torch.load(p, weights_only=False) for p in (file, second))
        torch.save(replace(tree, other, label), file)


def read_safetensors(path: Path) -> tuple[dict, dict]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k).clone() for k in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def vit_weights(label: str, dim: int, depth: int, patch: int, grid: int) -> dict[str, torch.Tensor]:
    """A ViT with a class token in timm's names, an MLP twice as wide."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + grid * grid, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (2 * dim, dim), "mlp.fc2": (dim, 2 * dim)}
    for i in range(depth):
        for layer, (rows, columns) in layers.items():
            shapes |= {f"blocks.{i}.{layer}.weight": (rows, columns), f"blocks.{i}.{layer}.bias": (rows,)}
    for norm in ("norm", *(f"blocks.{i}.norm{n}" for i in range(depth) for n in (1, 2))):
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    return {name: weight(label + name, shape).float() for name, shape in shapes.items()}


def networks(folder: Path) -> None:
    """FOLDER/a.safetensors and b.safetensors, our own exports, and shouty.safetensors, of plugins/formats/shouty.py."""
    folder.mkdir()
    card = {
        "family": "vit", "patch": 16, "dim": 48, "depth": 4, "heads": 3, "class_token": True, "final_norm": True,
        "registers": 0, "layer_scale": False, "pos": "learned 4x4", "pos_resize": "dino", "norm_eps": 1e-06,
        "mlp_ratio": 2.0, "qkv_bias": True, "act": "gelu (erf)", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "readout": "token",
    }  # fmt: skip
    header = json.dumps({"card": card, "about": {}}, sort_keys=True)
    for name in "ab":
        save_file(vit_weights(name, 48, 4, 16, 4), folder / f"{name}.safetensors", {"selfpatch_bench": header})
    small = {k.upper(): v for k, v in vit_weights("shouty", 16, 1, 8, 4).items()}
    save_file(small | {"QUEUE": torch.zeros(2)}, folder / "shouty.safetensors")


if __name__ == "__main__":
    {"examples": examples, "data": data}[sys.argv[1]](Path(sys.argv[2]))
