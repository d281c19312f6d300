"""Checkpoint -> numbers -> tables. `load(path, **overrides)` gives an encoder."""

from ..pretrain.common.moved import keep

__all__ = ["UserError", "load"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name == "load":
        from .checkpoints.open import load

        return load
    if name == "UserError":
        from ..pretrain.common.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__} has no attribute {name}")


# What plug-ins used to import.
keep(__package__, {"task": "benchmarks.tasks", "card": "pretrain.common.card", "errors": "pretrain.common.errors"})
