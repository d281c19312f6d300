"""Checkpoint -> numbers -> tables. `load(path, **overrides)` gives an encoder."""

__all__ = ["UserError", "load"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name == "load":
        from .loading import load

        return load
    if name == "UserError":
        from .errors import UserError

        return UserError
    raise AttributeError(f"module {__name__} has no attribute {name}")
