"""Tiny random checkpoint files, one for each built-in format: `format_example("dino", folder)`."""

from pathlib import Path

from selfpatch_bench.benchmarks.checkpoints import FORMATS

from . import conv, families, libraries_conv, libraries_vit, ports, vit
from .vit import Example, example_vit

__all__ = ["conv", "example_vit", "families", "format_example", "libraries_conv", "libraries_vit", "ports", "vit"]
MODULES = (vit, ports, libraries_vit, conv, families, libraries_conv)


def format_example(name: str, folder: Path) -> Example:
    """A file (or folder) of that format in `folder`, and the fields of the card that it does not state.

    The functions have the formats' names; a plug-in of a user's brings its own `example`.
    """
    built_in = next((f for module in MODULES if (f := getattr(module, name, None))), None)
    return (built_in or FORMATS.get(name).module.example)(folder)
