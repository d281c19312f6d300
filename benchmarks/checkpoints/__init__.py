"""Checkpoint files: read without running anything in them, recognised by a format, accounted for to the last tensor."""

from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.plugins import Kind, Plugin
from ..backbones.networks import BACKBONES

_ABOVE = __package__.rpartition(".")[0]  # formats/ stands above this package: found by scanning, never imported


class Formats(Kind):
    """Those of formats/, and a user's own networks, each of which is a format by its name (backbones.networks)."""

    def scan(self) -> dict[str, Plugin]:
        found, own = super().scan(), BACKBONES.scan()
        if both := next((name for name in own if name in found and found[name].ours), None):
            raise UserError(f"{own[both].path}: {both} is a format that is there already; give it another name")
        return dict(sorted((own | found).items()))


FORMATS = Formats("formats", Path(__file__).resolve().parent.parent / "formats", f"{_ABOVE}.formats")
