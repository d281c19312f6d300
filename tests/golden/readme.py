"""README's table of formats, made of the plug-ins: `python tests/golden/readme.py` writes it."""

import re
from pathlib import Path

from selfpatch_bench.benchmarks.commands.ls import formats_table

README = Path(__file__).resolve().parents[2] / "README.md"


def renewed(text: str) -> str:
    """README with the table as it has to be."""
    return re.sub(r"\| format \| files \|\n(\|.*\n)*", lambda _: formats_table(), text)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
