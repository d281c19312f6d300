"""Checkpoint files: read without running anything in them, recognised by a format, accounted for to the last tensor."""

from pathlib import Path

from ...pretrain.common.plugins import Kind

_ABOVE = __package__.rpartition(".")[0]  # formats/ stands above this package: found by scanning, never imported
FORMATS = Kind("formats", Path(__file__).resolve().parent.parent / "formats", f"{_ABOVE}.formats")
