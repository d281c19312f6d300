"""The processes of a run: one alone, or those that `torchrun` (or a Slurm job) started."""

import gc
import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn

from .common.errors import UserError
from .common.processes import STORE

# Launchers count in these how often they have started a run again. Its earlier processes get PATIENCE seconds to end.
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
PATIENCE = 120.0


def restarted() -> bool:
    """Whether a launcher started this process anew, after a failure or a time-out."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in RESTARTS)


def leave() -> None:
    """Leave the group of processes for good, once nothing in use belongs to it.

    Its threads end here: one that lives on into the end of Python aborts a process that has done all its work. DDP
    modules hold the group, and circles of references hold them; so does whatever takes `group.WORLD` as a default while
    the group is there (see the imports above).
    """
    gc.collect()
    dist.destroy_process_group()


def stay_here() -> None:
    """For processes that are all on this machine: they meet on its loopback interface. By default they would look up
    the machine's name, which may be unknown or an address that nothing reaches, and listen to other machines."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for name in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:  # Linux's, macOS's
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)


class Reported(UserError):
    """A UserError that the first process reports; the others end without a word."""


class Ranks:
    """This process among `world` (rank, and number on its machine `local` of `local_world`); a context manager.

    Started by torchrun (environment variables RANK, WORLD_SIZE, LOCAL_RANK) it joins the others: gloo on CPUs, NCCL on
    GPUs, one GPU a process. Otherwise it is alone and nothing here communicates.
    """

    def __init__(self, device: str = "auto", name: str = ""):
        """device: auto (a GPU if there is one) | cpu | cuda | cuda:N. Raises UserError for one that is not there.

        name: of the group, for processes that form several one after the other with the same launcher's store.
        """
        self.name = name
        known = os.environ
        self.rank, self.world = int(known.get("RANK", 0)), int(known.get("WORLD_SIZE", 1))
        self.local, self.local_world = int(known.get("LOCAL_RANK", 0)), int(known.get("LOCAL_WORLD_SIZE", self.world))
        self.device = self._device(device)
        self.joined = False

    def _device(self, name: str) -> torch.device:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UserError(f"loop.device={name}: it is auto, cpu, cuda or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"loop.device={name}: training runs on cpu or cuda")
        if device.type == "cpu":
            return device
        if self.world > 1 or device.index is None:
            device = torch.device("cuda", self.local)
        there = torch.cuda.device_count()
        if device.index >= there:
            found = f"{there} CUDA device{'s' * (there != 1)}"
            raise UserError(f"loop.device={name}: process {self.rank} needs {device}, this machine has {found}")
        return device

    def __enter__(self) -> "Ranks":
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            if os.environ.get("LOCAL_WORLD_SIZE") == str(self.world):
                stay_here()
            backend, limit = ("nccl", 30) if self.device.type == "cuda" else ("gloo", 120)
            on = {"device_id": self.device} if backend == "nccl" else {}
            store, limit = dist.PrefixStore(self.name, self._store()), timedelta(minutes=limit)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=limit, **on)
            self.joined = True
        return self

    def _store(self) -> dist.Store:
        """Where the processes find each other: the launcher's file, or the server at MASTER_ADDR."""
        if path := os.environ.get(STORE):
            return dist.FileStore(path, self.world)
        return next(dist.rendezvous("env://", timeout=timedelta(minutes=30)))[0]

    def __exit__(self, error, *_) -> None:
        if self.joined and error is None:  # after an error the others may be waiting for us, and leaving would wait too
            leave()
        self.joined = False

    @property
    def main(self) -> bool:
        return self.rank == 0

    def first(self, work: Callable[[], Any]) -> Any:
        """Do something in the first process only; every process gets its result, or its UserError (as Reported)."""
        if not self.joined:
            return work()
        answer: list = [None]
        try:
            if self.main:
                answer = [work()]
        except UserError as error:
            answer = [Reported(str(error), error.status)]
            raise
        finally:
            dist.broadcast_object_list(answer, src=0, device=self.device)
        if isinstance(answer[0], Reported):
            raise answer[0]
        return answer[0]

    def gather(self, value: Any) -> list:
        """A small object of every process, in the order of ranks."""
        if not self.joined:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors of every process, added up; one message for each dtype among them."""
        if not self.joined:
            return dict(values)
        added = {}
        for dtype in sorted({v.dtype for v in values.values()}, key=str):
            mine = {k: v for k, v in values.items() if v.dtype == dtype}
            flat = torch.cat([v.reshape(-1) for v in mine.values()])
            dist.all_reduce(flat)
            parts = flat.split([v.numel() for v in mine.values()])
            added |= {k: p.view(v.shape) for (k, v), p in zip(mine.items(), parts, strict=True)}
        return added

    def wrap(self, module: nn.Module, total: Tensor) -> nn.Module:
        """The module with gradients averaged over the processes during the backward pass (DDP).

        total: what it gave in one forward pass. DDP waits for a gradient of every parameter; those that the total does
        not depend on, in any process (a readout that only a switched-off objective would use), require none from here
        on. Only where the processes differ in that, DDP looks for them again in each step.
        """
        if not self.joined:
            return module
        trained = [p for p in module.parameters() if p.requires_grad]
        found = leaves(total)
        used = torch.tensor([p in found for p in trained], dtype=torch.float32, device=self.device)
        votes = self.add({"used": used})["used"].tolist()
        for parameter, count in zip(trained, votes, strict=True):
            parameter.requires_grad_(count > 0)
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=any(0 < count < self.world for count in votes),
            gradient_as_bucket_view=True,
        )


def leaves(total: Tensor) -> set[Tensor]:
    """The tensors that a backward pass from `total` gives a gradient."""
    found, seen, todo = set(), set(), [total.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        todo += [before for before, _ in node.next_functions]
    return found
