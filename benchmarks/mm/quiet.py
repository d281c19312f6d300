"""Silence what mm says while it starts and what means nothing for the run; everything else passes."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator

# Beginnings of warnings, as regular expressions.
WARNINGS = ("``MultiScaleDeformableAttention`` has been moved",)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Around the first imports of mm. The silence stays: mm imports most of itself only when a run starts."""
    silence()
    yield


def silence() -> None:
    """Before the first import of mmdet and mmseg: ignore the known warnings, and print no debug message.

    mmengine's `print_log` prints whatever has no logger, debug messages of optional imports included.
    """
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    import mmengine.logging

    print_log = mmengine.logging.print_log
    if hasattr(print_log, "__wrapped__"):
        return

    @functools.wraps(print_log)
    def without_debug(msg, logger=None, level=logging.INFO):
        if logger is not None or level >= logging.INFO:
            print_log(msg, logger, level)

    mmengine.logging.print_log = without_debug
