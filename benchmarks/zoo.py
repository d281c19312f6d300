"""Known checkpoints by the sha256 of the file: what the file itself does not say.

`zoo.yaml` beside this file, and a `zoo.yaml` in each plug-in folder, map a sha256 to `format`, `heads`, `mean`, `std`
(or any other field of the card) and `row`, the published row ('METHOD|BACKBONE') that the file made.
"""

import hashlib
from pathlib import Path

import yaml

from .errors import UserError
from .plugins import HERE, plugin_folders


def entries() -> dict[str, dict]:
    """sha256 -> facts, from all lists. Raises UserError for a list that is not such a mapping."""
    known: dict[str, dict] = {}
    for path in [HERE / "zoo.yaml"] + [f / "zoo.yaml" for f in plugin_folders()]:
        if not path.exists():
            continue
        try:
            table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {error}") from None
        if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
            raise UserError(f"{path} must map a sha256 to a table of facts")
        known |= {str(k).lower(): v for k, v in table.items()}
    return known


def look_up(path: Path) -> dict:
    """The facts known of this very file, else {}. Reads the file only if any list has entries."""
    known = entries()
    if not known or not path.is_file():
        return {}
    with path.open("rb") as f:
        return known.get(hashlib.file_digest(f, "sha256").hexdigest(), {})
