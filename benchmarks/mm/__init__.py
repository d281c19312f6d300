"""Detection and segmentation through mmdet and mmseg: the only package that imports mm*, and only when it is used."""
