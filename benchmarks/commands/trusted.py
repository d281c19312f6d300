"""A process of its own that unpickles a file without any check and keeps only tensors and scalars of it.

`selfpatch convert --trust-pickle` alone starts it, because the user said so: whatever code the file holds is run, with
the user's rights. Everything that is read back from it goes through the safe reader.
"""

import argparse
import sys
from pathlib import Path

SCALARS = (str, int, float, bool, type(None))
DEPTH = 50


def extract(value, depth: int = 0):
    """The same tree of dicts and lists of tensors and scalars; modules become their state dict, namespaces dicts.

    What is none of these is left out (None).
    """
    import numpy as np
    import torch

    if depth > DEPTH:
        return None
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    elif isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): extract(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [extract(v, depth + 1) for v in value]
    return None


def main(source: str, target: str) -> int:
    """Read `source`, write its tree of tensors to `target`; -> exit status, with one line of the reason on stderr."""
    import torch

    try:
        torch.save(extract(torch.load(Path(source), map_location="cpu", weights_only=False)), target)
    except Exception as error:  # the file's own code may raise anything
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
