"""Pretraining: images -> checkpoint."""
