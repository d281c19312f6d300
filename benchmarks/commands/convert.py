"""`selfpatch convert`: any checkpoint that is understood -> one .safetensors with its card, which runs as it is."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import child_environment, python
from ...pretrain.common.progress import line_console
from ...pretrain.common.weights import save_weights
from ..checkpoints.open import Checkpoint, ready
from ..hub.open import open_checkpoint

WARNING = """\
################################################################################
#  --trust-pickle: {file}
#  is unpickled WITHOUT ANY CHECK, in a process of its own. If it holds code,
#  that code now runs with your rights: it can read, send and delete your files.
#  Do this only with files whose origin you trust as you trust a program.
################################################################################"""


@contextlib.contextmanager
def unpickled(file: Path) -> Iterator[Path]:
    """A temporary copy of a pickle that holds nothing but tensors and plain values. Raises UserError if it fails."""
    with tempfile.TemporaryDirectory(prefix="selfpatch-") as folder:
        out = Path(folder) / file.name
        command = python(f"{__package__}.trusted", file.resolve(), out)
        pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, cwd=folder, env=child_environment(), **pipes)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit status {done.returncode}"
            raise UserError(f"{file}: cannot be unpickled even with trust: {reason}")
        yield out


def convert_command(
    file: Path, out: Path, format: str | None, card: Mapping[str, str], trust_pickle: bool = False, **options
) -> int:
    """Read `file`, write `out`, say what was done; -> exit status.

    options: further ones of `hub.open.open_checkpoint`. Heads and normalisation must be known, as for a task: then the
    result needs no more words. Raises UserError, with nothing written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the result is a .safetensors file; give it that ending")
    if out.exists():
        raise UserError(f"{out}: is there already; remove it or give another name")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    if not Path(file).exists():
        raise UserError(f"{file}: no such file")
    if not trust_pickle:
        return _write(open_checkpoint(file, format=format, card=card, **options), Path(file), out, False)
    line_console(stderr=True).print(WARNING.format(file=file), style="bold red")
    with unpickled(Path(file)) as copy:
        try:
            return _write(open_checkpoint(copy, format=format, card=card, **options), Path(file), out, True)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), str(file)), error.status) from None


def _write(checkpoint: Checkpoint, file: Path, out: Path, trusted: bool) -> int:
    ready(checkpoint)
    for warning in checkpoint.warnings:
        print(f"warning: {warning}")
    about = {
        "file": file.name,
        "format": checkpoint.reading.format,
        "trusted_pickle": trusted,
        "facts": checkpoint.facts,
    } | ({"trained": checkpoint.trained} if checkpoint.trained else {})
    save_weights(out, checkpoint.reading.weights, checkpoint.card, about)
    again = open_checkpoint(out)
    if again.fingerprint != checkpoint.fingerprint:
        out.unlink()
        raise UserError(f"{out}: came back with other weights: the disk or the memory fails", 1)
    print(f"{out}: {checkpoint.reading.format}, {checkpoint.accounting}, {checkpoint.fingerprint}")
    return 0
