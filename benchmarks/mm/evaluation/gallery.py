"""A hook that draws the first validation images during the evaluation: predictions over or beside the ground truth."""

from pathlib import Path

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...datasets.files import read_frame
from ...datasets.masks import read_mask
from ...pictures import predictions

IMAGES = 8


@HOOKS.register_module()
class Gallery(Hook):
    """Pictures of this process's first `images` validation images into `folder`."""

    priority = "VERY_LOW"

    def __init__(self, folder: str, images: int = IMAGES):
        self.folder, self.images, self.seen = Path(folder), images, 0

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs or ():
            if self.seen < self.images and runner.rank == 0:
                self.draw(runner, sample, self.seen * runner.world_size)
            self.seen += 1

    def draw(self, runner, sample, index: int) -> None:
        """One image, the set's `index`: its annotation is read as it is, whatever the pipeline made of it."""
        dataset = runner.test_loop.dataloader.dataset
        info, classes = dataset.get_data_info(index), dataset.metainfo["classes"]
        if info["img_path"] != sample.img_path:
            return
        path = Path(sample.img_path)
        image, out = read_frame(path), self.folder / f"{path.stem}.png"
        if "pred_sem_seg" in sample:
            truth = read_mask(Path(info["seg_map_path"])).astype(np.int64)
            if info.get("reduce_zero_label"):
                truth = np.where(truth == 0, 255, truth - 1)
            found = sample.pred_sem_seg.data[0].cpu().numpy()
            predictions.segmentation(image, truth, found, classes, out, path.stem)
        else:
            predictions.detections(image, annotated(info, image.shape[:2]), predicted(sample), classes, out, path.stem)


def annotated(info: dict, size: tuple[int, int]) -> predictions.Objects:
    """The ground truth of an image of (H, W) from mmdet's data info: polygons or run lengths, crowds marked."""
    objects = info["instances"]
    masks = np.zeros((len(objects), *size), bool)
    for mask, one in zip(masks, objects, strict=True):
        shape = one.get("mask")
        if isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
        elif isinstance(shape, dict) and isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, *size)
        if shape:
            mask[:] = coco_mask.decode(shape).astype(bool)
    boxes = np.array([one["bbox"] for one in objects], float).reshape(-1, 4)
    labels = np.array([one["bbox_label"] for one in objects], int)
    return predictions.Objects(boxes, labels, masks, crowd=np.array([one["ignore_flag"] for one in objects], bool))


def predicted(sample) -> predictions.Objects:
    """The detections of an image."""
    found = sample.pred_instances.cpu()
    masks = found.masks.numpy().astype(bool) if "masks" in found else None
    return predictions.Objects(found.bboxes.numpy(), found.labels.numpy(), masks, found.scores.numpy())
