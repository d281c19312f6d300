"""What the runner does for tasks that train: checks before the work, and launchers."""

import os

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import refuse_in_child
from ..results import record


def check_gpus(gpus: int, device: str) -> None:
    """As many GPUs as processes, unless --device cpu asks for processes on the CPU. Raises UserError."""
    if gpus == 1 or device.partition(":")[0] == "cpu":
        return
    import torch

    there = torch.cuda.device_count()
    if not there:
        raise UserError(f"--gpus {gpus}: there is no GPU here; with --device cpu the processes share the CPU")
    if gpus > there:
        raise UserError(f"--gpus {gpus}: there {'is 1 GPU' if there == 1 else f'are {there} GPUs'} here")


def check_models(evaluations: list, options) -> None:
    """Tasks that look at a network's card before the work do so now, for what is not done yet."""
    seen = []
    for one in evaluations:
        known = (one.task.title, one.model.card)
        todo = options.rerun or not record.done(options.out, one.task.name, one.key)
        if options.rank == 0 and todo and known not in seen:
            seen.append(known)
            one.task.check_model(one.cfg, one.model.card)


def launched() -> tuple[int, int]:
    """(number, count) of the processes that torchrun, or a step of a Slurm job, started; (0, 1) alone.

    Slurm's variables are turned into torchrun's, for the processes that tasks start. Ends a process that should do
    nothing of the kind, see processes.refuse_in_child.
    """
    refuse_in_child()
    known = os.environ
    if "RANK" not in known and int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        known |= {"RANK": known["SLURM_PROCID"], "WORLD_SIZE": known["SLURM_STEP_NUM_TASKS"]}
        known |= {"LOCAL_RANK": known["SLURM_LOCALID"]}
        known.setdefault("MASTER_ADDR", known.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        known.setdefault("MASTER_PORT", str(20000 + int(known.get("SLURM_JOB_ID", 0)) % 20000))
    return int(known.get("RANK", 0)), int(known.get("WORLD_SIZE", 1))
