# Mask R-CNN with FPN on COCO, 12 epochs: what the coco_maskrcnn_* recipes share. The model is mmdet's own.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./coco.py"]
