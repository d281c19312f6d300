"""A folder of drawn pictures: it appears complete or not at all."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ...pretrain.common.atomic import temporary_name
from ...pretrain.common.errors import UserError

_VERSION = 1  # of the drawing: part of what makes two sets the same


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(data.tobytes())


def in_parallel(draw, count: int) -> list:
    """[draw(i) for i in range(count)] on all cores: numpy and OpenCV release the interpreter while they draw."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(draw, range(count)))


def draw_once(root: Path | str, what: dict, draw) -> Path:
    """Draw into a folder that appears complete or not at all; a folder that already holds the same is left as it is."""
    root = Path(root)
    note = json.dumps({"drawn by": "selfpatch scenes", "version": _VERSION, **what}, sort_keys=True) + "\n"
    if root.is_dir() and any(root.iterdir()):
        mark = root / "drawn.json"
        if mark.is_file() and mark.read_text() == note:
            return root
        raise UserError(f"{root}: is not empty and holds something else than the pictures to draw; give another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(root)
    try:
        draw(temporary)
        (temporary / "drawn.json").write_text(note)
        os.replace(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root
