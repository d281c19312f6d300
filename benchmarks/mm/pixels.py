"""Pictures in mm's pipelines are read by the rule of all evaluations: the stored pixels, orientation tags ignored.

mmcv's own loader lets OpenCV turn them, so that boxes and masks, which were drawn on the stored pixels, would not fit.
"""

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.registry import TRANSFORMS

from ...pretrain.common.errors import UserError
from ...pretrain.data.decode import Unreadable, decode, read_picture
from .keys import walk


@TRANSFORMS.register_module()
class LoadStoredPixels(LoadImageFromFile):
    """mmcv's LoadImageFromFile with our decoder: `img` BGR uint8 (or float32) [H, W, 3], `img_shape`, `ori_shape`.

    UserError naming the file for one that cannot be read, unless `ignore_empty`, which skips it. Arguments are mmcv's.
    """

    def transform(self, results: dict) -> dict | None:
        path = results["img_path"]
        try:
            data = read_picture(path) if self.backend_args is None else fileio.get(path, self.backend_args)
            image = np.ascontiguousarray(decode(data)[..., ::-1])
        except (Unreadable, OSError) as error:
            if self.ignore_empty:
                return None
            raise UserError(f"{path}: cannot be read as a picture: {error}") from None
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def read_stored(loader: ConfigDict) -> None:
    """Every LoadImageFromFile of a data loader's pipelines becomes ours, except where it asks for something else than
    colour pictures by OpenCV."""
    for _, part in walk(loader):
        if not isinstance(part, dict) or str(part.get("type")).rpartition(".")[2] != "LoadImageFromFile":
            continue
        usual = {"color_type": "color", "imdecode_backend": "cv2", "file_client_args": None}
        if all(part.get(key, value) == value for key, value in usual.items()):
            part["type"] = LoadStoredPixels.__name__
