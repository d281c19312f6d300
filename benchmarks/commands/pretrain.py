"""`selfpatch pretrain`: the core's run (pretrain/train.py), with what it is handed from here."""

from pathlib import Path

from ...pretrain import train
from ...pretrain.checkpoint import Run
from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import refuse_in_child
from ...pretrain.config import load_recipe
from ...pretrain.model.initial import Found, Rival
from ...pretrain.train import Hooks, absolute_paths
from ..checkpoints.open import differences
from ..hub.open import open_checkpoint

HOOKS = Hooks(read_weights=f"{__name__}:read_weights", evaluate=f"{__package__}.watch:Evaluator")


def read_weights(path: str | Path, format: str | None) -> Found:
    """What `init=` starts from: any file that the evaluation's loader accepts. Raises UserError."""
    checkpoint = open_checkpoint(path, format=format)
    own = checkpoint.reading
    rivals = [Rival(r.format, frozenset(r.weights), differences(own, r)) for r in checkpoint.rivals]
    return Found(dict(own.weights), checkpoint.card, own.format, rivals)


def pretrain_command(
    recipe: str | None,
    data: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    overrides: list[str] = (),
    device: str | None = None,
    seed: int | None = None,
    slurm: str | None = None,
) -> int:
    """Start a run of a recipe on `data` into the folder `out` (runs/RECIPE if not given), or go on with one: `resume`.

    overrides: `dotted.key=value`; data, device and seed are short for data.path, loop.device and seed. slurm: submit
    the run as a job instead (slurm.submit). -> exit status: 0, or 128 + signal when told to stop (it has saved by
    then). Raises UserError.
    """
    refuse_in_child()
    given = [f"{k}={quote(v)}" for k, v in (("data.path", data), ("loop.device", device)) if v is not None]
    overrides = [*overrides, *given] + ([f"seed={seed}"] if seed is not None else [])
    if resume is not None and (recipe is not None or out is not None):
        raise UserError(f"--resume {resume} goes on with that run: leave the recipe and --out away")
    if resume is None and recipe is None:
        raise UserError("give a recipe (`selfpatch ls recipes`), or --resume RUN")
    run = Run(Path(resume or out or Path("runs") / Path(recipe).stem))
    cfg = absolute_paths(load_recipe(recipe, overrides) if resume is None else run.config(overrides))
    if slurm is not None:
        from ...pretrain.slurm import submit

        submit(cfg, run, slurm, resume is not None, HOOKS)
        return 0
    return train.run(cfg, run.folder, resume is not None, HOOKS)


def quote(value: str) -> str:
    """As yaml reads it back: a path may hold anything."""
    return "'" + str(value).replace("'", "''") + "'"
