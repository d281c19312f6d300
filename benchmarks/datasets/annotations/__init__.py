"""What a COCO annotation file holds: lists, boxes, outlines, run lengths, read without trust."""
