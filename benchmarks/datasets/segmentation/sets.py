"""The sets that the frozen segmentation tasks take, by the names of `--data`."""

from .ade import open_labelled_ade
from .cityscapes import open_cityscapes
from .voc import open_voc

OPEN = {"voc2012": open_voc, "ade20k": open_labelled_ade, "cityscapes": open_cityscapes}
TASK_NAMES = {"voc": "voc2012", "ade20k": "ade20k", "cityscapes": "cityscapes"}  # as tasks are called -> the set
