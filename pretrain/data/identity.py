"""What a run remembers of its images, so that it goes on with the same ones: number, names, and the content of some."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..common.errors import UserError
from .content import hash_content
from .images import ImageSource
from .views import permutation

DRAWN = 1000  # images whose content is remembered: where one in 200 changed, it is noticed with 99 %
SMALL = 2**20  # bytes of one that is read whole: all of them are a matter of seconds
THREADS = 16  # a network's file system takes milliseconds for each file


def identity(source: ImageSource) -> dict:
    """What a state remembers of the data: the number of images, a hash of their names, and which were drawn (by
    that hash), int64 [k], with hashes of their content, uint8 [k, 32]."""
    names = _hash_names(source)
    drawn = torch.from_numpy(np.sort(permutation(len(source), int(names[:15], 16))[:DRAWN]))
    return {"images": len(source), "names": names, "drawn": drawn, "contents": _hash_drawn(source, drawn)}


def check_identity(source: ImageSource, before: dict) -> None:
    """UserError unless the images are those of a state, by number, names and the content of those drawn. States of
    older versions have no content."""
    if (before["images"], before["names"]) != (len(source), _hash_names(source)):
        began = f"the {before['images']} images that this run began with"
        raise UserError(f"{source.where}: its {len(source)} images are not {began}; give --data their folder")
    if "drawn" not in before:
        return
    changed = (_hash_drawn(source, before["drawn"]) != before["contents"]).any(1).nonzero()[:, 0].tolist()
    if changed:
        name, count = source.name(int(before["drawn"][changed[0]])), len(before["drawn"])
        raise UserError(
            f"{source.where}: {name} is not what it was when this run began: {len(changed)} of {count} images looked "
            "at have another content under the same name; give --data the folder as it was, or start a new run"
        )


def _hash_names(source: ImageSource) -> str:
    total = hashlib.sha256(source.names.text.numpy().tobytes())
    total.update(source.names.ends.numpy().tobytes())
    return total.hexdigest()


def _hash_drawn(source: ImageSource, drawn: torch.Tensor) -> torch.Tensor:
    """uint8 [k, 32]; zeros for an image that cannot be read, which a run skips."""

    def one(number: int) -> bytes:
        file, offset, size = source.span(number)
        try:
            return hash_content(os.path.join(source.root, file), SMALL, offset, size)
        except (OSError, ValueError):
            return bytes(32)

    with ThreadPoolExecutor(THREADS) as pool:
        found = b"".join(pool.map(one, drawn.tolist()))
    return torch.frombuffer(bytearray(found), dtype=torch.uint8).reshape(-1, 32)
