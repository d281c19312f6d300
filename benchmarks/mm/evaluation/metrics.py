"""mmdet's and mmseg's evaluators, handing on what they round away or only print: unrounded totals, values per class.

Names are those of the published tables, in percent. A figure that the set does not define (no small object, a class
that occurs nowhere) is left out of the totals and is None in `parts`, which JSON can hold.
Import this module only after `ops.install()`; it registers both classes.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval import COCOeval_faster
from mmdet.evaluation.metrics import FasterCocoMetric
from mmdet.registry import METRICS as DETECTION
from mmengine.fileio import load
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS as SEGMENTATION

from ....pretrain.common.errors import UserError

SHORT = {"bbox": "bb", "segm": "mk"}  # the COCO API's IoU types, as metrics are called
_AP, _AR = ("", "_50", "_75", "_s", "_m", "_l"), ("_1", "_10", "_100", "_s", "_m", "_l")
LABEL_MAPS = 8  # that are read to try the evaluation
_ALL = slice(None)
_CLASS_CUTS = ((_ALL, 0), (0, 0), (5, 0), (_ALL, 1), (_ALL, 2), (_ALL, 3))  # of _AP: index of the IoU and of the area


def _percent(value: float) -> float | None:
    """The COCO tools write -1 where a figure is not defined."""
    return 100 * float(value) if value > -1 else None


@DETECTION.register_module()
class SelfpatchCocoMetric(FasterCocoMetric):
    """AP of boxes and masks by COCOeval_faster with the official limits of 1, 10 and 100 detections.

    ann_file: COCO json. limit: only its first N images are evaluated; the data loader must do the same (`indices=N`),
    and another set of images than these is an error, not another number. `compute_metrics` returns AP_bb, AP_bb_50,
    AP_bb_75, AP_bb_s, AP_bb_m, AP_bb_l and the same with mk. `parts` after it: {"classes": {name: {"AP_bb": ...}},
    "AR": {"AR_bb_1": ..., "AR_bb_10", "AR_bb_100", "AR_bb_s", "AR_bb_m", "AR_bb_l", ...}}.
    """

    default_prefix = ""  # none; mmengine warns about None

    def __init__(
        self,
        ann_file: str,
        metric: str | Sequence[str] = ("bbox", "segm"),
        limit: int | None = None,
        proposal_nums: Sequence[int] = (1, 10, 100),
        **kwargs,
    ):
        iou_types = [metric] if isinstance(metric, str) else list(metric)
        if unknown := [name for name in iou_types if name not in SHORT]:
            raise ValueError(f"metric={unknown[0]}: it is {' or '.join(SHORT)}")
        with contextlib.redirect_stdout(io.StringIO()):  # the COCO API prints its progress
            super().__init__(ann_file=ann_file, metric=iou_types, proposal_nums=proposal_nums, **kwargs)
        self.limit = limit
        self.parts: dict = {}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """results: what `process` kept, of all ranks. Raises RuntimeError for other images or classes than the set's.

        A network that finds nothing at all has an AP of 0 (mmdet would return no figure).
        """
        truth, found = self._coco_api, [prediction for _, prediction in results]
        images = truth.getImgIds()[: self.limit]
        if sorted(prediction["img_id"] for prediction in found) != sorted(images):
            seen = len({prediction["img_id"] for prediction in found} & set(images))
            raise RuntimeError(f"evaluation saw {len(found)} pictures, {seen} of the {len(images)} to evaluate")
        self.cat_ids, self.img_ids = truth.getCatIds(catNms=self.dataset_meta["classes"]), images
        if len(self.cat_ids) != len(self.dataset_meta["classes"]):
            raise RuntimeError(f"{len(self.dataset_meta['classes'])} classes, of which the set has {len(self.cat_ids)}")
        names = [truth.cats[i]["name"] for i in sorted(self.cat_ids)]  # the evaluator sorts the ids too
        figures, classes, recall = {}, {name: {} for name in names}, {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            files = self.results2json(found, self.outfile_prefix or str(Path(folder, "results")))
            for iou_type in self.metrics:
                if iou_type not in files:
                    raise RuntimeError(f"the network gave no masks, and metric has '{iou_type}'")
                evaluation = self._evaluate(iou_type, load(files[iou_type]))
                short, stats = SHORT[iou_type], evaluation.stats
                figures |= {f"AP_{short}{end}": _percent(v) for end, v in zip(_AP, stats[:6], strict=True)}
                recall |= {f"AR_{short}{end}": _percent(v) for end, v in zip(_AR, stats[6:12], strict=True)}
                precision = evaluation.eval["precision"]  # [IoU, recall, class, area, detections]; -1: not defined
                for k, name in enumerate(names):
                    for end, (iou, area) in zip(_AP, _CLASS_CUTS, strict=True):
                        part = precision[iou, :, k, area, -1]
                        part = part[part > -1]
                        classes[name][f"AP_{short}{end}"] = _percent(part.mean() if part.size else -1)
        self.parts = {"classes": classes, "AR": recall}
        return {name: value for name, value in figures.items() if value is not None}

    def rest(self, dataset) -> list[tuple[dict, dict]]:
        """Results, as `process` keeps them, of all pictures but those that it has seen: nothing found."""
        empty = {"bboxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int), "masks": []}
        images = {dataset.get_data_info(i)["img_id"] for i in range(len(dataset))}
        seen = {prediction["img_id"] for _, prediction in self.results}
        return [({}, {"img_id": image, **empty}) for image in sorted(images - seen)]

    def _evaluate(self, iou_type: str, predictions: list[dict]) -> COCOeval_faster:
        truth = self._coco_api
        if iou_type == "segm":
            for one in predictions:  # else the COCO API sorts detections into small and large by the box, not the mask
                del one["bbox"]
        if predictions:
            found = truth.loadRes(predictions)
        else:
            found = type(truth)()
            found.dataset = {**{k: truth.dataset[k] for k in ("images", "categories")}, "annotations": []}
            found.createIndex()
        evaluation = COCOeval_faster(truth, found, iou_type, print_function=lambda *_: None)
        evaluation.params.catIds, evaluation.params.imgIds = self.cat_ids, self.img_ids
        evaluation.params.maxDets, evaluation.params.iouThrs = list(self.proposal_nums), self.iou_thrs
        evaluation.run()
        return evaluation


@SEGMENTATION.register_module()
class SelfpatchIoUMetric(IoUMetric):
    """mIoU, aAcc and mAcc. `parts` after `compute_metrics`: {"classes": {name: {"IoU": ..., "Acc": ...}}}.

    A class that is neither annotated nor predicted in the whole set stays out of mIoU, one that is not annotated out of
    mAcc, as in mmseg. Pixels are summed in float64: mmseg's float32 totals lose whole pixels beyond 16.7 million.
    """

    default_prefix = ""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts: dict = {}

    def rest(self, dataset) -> list[tuple[torch.Tensor, ...]]:
        """Results, as `process` keeps them, of up to LABEL_MAPS pictures from all over the set: the first class alone
        was found. The check of the data has read every label map."""
        kept, self.results = self.results, []
        for i in np.linspace(0, len(dataset) - 1, min(LABEL_MAPS, len(dataset)), dtype=int):
            try:
                samples = dataset[i]["data_samples"]
            except Exception as error:
                raise UserError(f"{dataset.get_data_info(i)['seg_map_path']}: {error}") from error
            label = (samples[0] if isinstance(samples, list) else samples).gt_sem_seg.data
            self.process({}, [{"pred_sem_seg": {"data": torch.zeros_like(label)}, "gt_sem_seg": {"data": label}}])
        found, self.results = self.results, kept
        return found

    def compute_metrics(self, results: list) -> dict[str, float]:
        """results: (intersection, union, predicted, annotated) pixels per class of every picture, of all ranks."""
        totals = [sum(part.double() for part in column) for column in zip(*results, strict=True)]
        values = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        overall = {"aAcc": values.pop("aAcc")}
        present = {name: value[~np.isnan(value)] for name, value in values.items()}
        overall |= {f"m{name}": value.mean() for name, value in present.items() if value.size}
        names = self.dataset_meta["classes"]
        self.parts = {
            "classes": {
                name: {what: None if np.isnan(v[i]) else 100 * float(v[i]) for what, v in values.items()}
                for i, name in enumerate(names)
            }
        }
        return {name: 100 * float(value) for name, value in overall.items() if not np.isnan(value)}
