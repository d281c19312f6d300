"""Frozen segmentation: patch features beside labels, the search and the heads on them."""
