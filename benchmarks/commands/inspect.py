"""What a checkpoint file is, in words."""

from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.open import differences, look_untrained
from ..hub.open import open_checkpoint


def report(path: Path, format: str | None, card: Mapping, weights: str | None = None, part: str | None = None) -> str:
    """Format, card, accounting and fingerprint of a file, with whatever keeps it from running. Raises UserError."""
    c = open_checkpoint(path, format=format, card=card, weights=weights, part=part)
    lines = [f"{c.path}", f"format       {c.reading.format}" + (" (given)" if format else "")]
    lines += [f"evidence     {text}"] if (text := c.reading.evidence()) else []
    lines += [f"             or {r.format}: {differences(c.reading, r)}; `run` needs --format" for r in c.rivals]
    lines += [f"weights      {c.reading.network}" + (" (given)" if weights else "")] if c.reading.network else []
    lines += [f"tensors      {c.accounting}", f"fingerprint  {c.fingerprint}", "card"]
    for key, value in c.card.as_dict().items():
        shown = "unknown" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"  {key:<12} {shown}" + (f"  ({c.facts[key]})" if key in c.facts and value is not None else ""))
    lines += [f"`run` refuses: {reason}" for reason in c.lacking]
    lines += [f"warning: {text}" for text in c.warnings]
    if why := look_untrained(c.reading.weights, c.trained):
        lines.append(f"warning: the weights look untrained: {why}")
    return "\n".join(lines)
