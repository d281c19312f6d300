"""A network's weights and its card as one .safetensors: the file that every evaluation reads."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .card import Card
from .errors import UserError, shorten

KEY = "selfpatch_bench"  # of the file's metadata: {"card": {...}, "about": {...}} as JSON


def names(keys: Iterable[str], limit: int = 8) -> str:
    """A list of names, cut after `limit`."""
    keys = sorted(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def check_fit(given: Mapping[str, tuple], wanted: Mapping[str, tuple], file: str | Path, network: str) -> None:
    """Raise UserError unless weights are exactly a network's: none missing, none unexpected, none of another shape.

    given, wanted: name -> shape. The message is `FILE: does not fit NETWORK: ...`.
    """
    both = sorted(given.keys() & wanted.keys())
    wrong = [f"{k} {list(given[k])} instead of {list(wanted[k])}" for k in both if given[k] != wanted[k]]
    problems = [
        f"{len(found)} {what}: {names(found, limit)}"
        for found, what, limit in (
            (wanted.keys() - given.keys(), "missing", 8),
            (given.keys() - wanted.keys(), "unexpected", 8),
            (wrong, "of another shape", 4),
        )
        if found
    ]
    if problems:
        raise UserError(f"{file}: does not fit {network}: {'; '.join(problems)}")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and float32 values of the weights that a network takes."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {list(value.shape)}\n".encode())
        digest.update(value.numpy().reshape(-1).view("uint8").data)
    return f"sha256:{digest.hexdigest()}"


def save_weights(path: Path, weights: Mapping, card: Card, about: Mapping | None = None) -> None:
    """Write weights (name -> tensor) and card to `path`, atomically. about: plain facts to keep with them. Raises
    UserError where the file system refuses."""
    header = json.dumps({"card": card.as_dict(), "about": dict(about or {})}, sort_keys=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    with replacing(Path(path), sync=True) as temporary:
        try:
            save_file(tensors, temporary, metadata={KEY: header})
        except SafetensorError as error:  # has the system's number in its text only
            if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def read_card(metadata: Mapping[str, str]) -> Card:
    """The card in a file's metadata. Raises UserError for a damaged one."""
    try:
        return Card.from_dict(json.loads(metadata[KEY])["card"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"its card is damaged ({shorten(error)})") from None


def about_of(metadata: object) -> dict:
    """The plain facts that `save_weights` kept beside the card; {} where there are none."""
    try:
        about = json.loads(metadata[KEY])["about"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def load_card(path: str | Path) -> Card:
    """The card alone of what `save_weights` wrote."""
    with safe_open(path, framework="pt") as file:
        return read_card(file.metadata())


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """What `save_weights` wrote: weights by timm's names, float32, and their card. UserError for another file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise UserError(f"{path}: is not an export of ours: it holds no card")
            return {key: file.get_tensor(key).float() for key in file.keys()}, read_card(metadata)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as .safetensors: {error}") from None
