"""An mm recipe as a task: what the runner asks of `tasks/NAME.py`, answered by processes that import mm.

This module does not: the data are checked here, the configuration in a short process (a bad override is refused before
any work), training and evaluation in processes of a group of their own. Only this side writes records.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.keyvalue import key_value
from ..datasets.base import ANY
from ..tasks import PICTURES, Crash, Data, Flag, Task, TaskConfig
from . import recipe
from .processes import ask, tail, wait_for_earlier, work
from .training import ERROR, EXPORT, LOG, PROGRESS, RESULT, Training, read_result, write_json

MACHINE = ("workers", "per_gpu", "with_cp")  # change no number; of per_gpu, what does is in `micro_batch`
FLAGS = (
    PICTURES,
    Flag("gpus", int, "Fine-tuning: processes, one for a GPU; the batch stays the recipe's.", 1, least=1),
    Flag("scale_lr", bool, "Fine-tuning with batch=N: learning rate in proportion to it (recorded).", False),
    Flag("eval_only", Path, "Evaluate this fine-tuned model (.pth) instead of training."),
)


@dataclass
class Protocol:
    """What makes a number of a recipe another number.

    overrides: `key=value` as given. machine: those that only say how the machine does it. scale_lr: the learning rate
    was scaled with the batch. micro_batch: images that one backward pass sees, over all processes (batch-norm sees no
    more). eval_only: fingerprint of the fine-tuned model that was only evaluated.
    """

    overrides: dict[str, str] = field(default_factory=dict)
    scale_lr: bool = False
    micro_batch: int | None = None
    eval_only: str | None = None
    machine = {}  # noqa: RUF012 (no field, and so no part of a record's key)


class MMTask(Task):
    """The task of a recipe file."""

    def __init__(self, path: Path):
        self.recipe = r = recipe.read(path)
        super().__init__(
            version=r.version,
            protocol_id=r.protocol_id,
            protocol=Protocol,
            metrics=r.metrics,
            dataset=r.dataset,
            kind="detection" if r.dataset == "coco" else "segmentation",
            published=r.published,
            needs=("blocks",),
            takes=("checkpoint",),
            values=(*recipe.OWN, "and dotted keys of the mm config"),
            processes="many",
            flags=FLAGS,
        )

    def parse(self, options) -> tuple[Protocol, dict, list[str]]:
        """As Task.parse: the protocol, what differs from the recipe, and keys that no recipe has."""
        given = dict(map(key_value, options.overrides))
        unknown = [key for key in given if "." not in key and key not in recipe.OWN]
        given = {key: value for key, value in given.items() if key not in unknown}
        own, _ = recipe.parse(f"{k}={v}" for k, v in given.items())
        world = max(options.own.get("gpus", 1), options.world)
        model, scale_lr = None, options.own.get("scale_lr", False)
        if (file := options.own.get("eval_only")) is not None:
            from ...pretrain.common.weights import fingerprint
            from ..checkpoints.open import read_file

            state, _ = read_file(file)
            model = fingerprint({k: state[k] for k in state if k.startswith("state_dict.")} or dict(state.items()))
        machine = {k: given.pop(k) for k in MACHINE if k in given}
        values = Protocol(dict(sorted(given.items())), scale_lr, self._micro_batch(own, world), model)
        values.machine = machine
        extra = ({"scale_lr": True} if scale_lr else {}) | ({"eval_only": model} if model else {})
        return values, given | extra, unknown

    def draws(self, own: Mapping) -> bool:
        """A model that was fine-tuned elsewhere gives one number."""
        return own.get("eval_only") is None

    def _micro_batch(self, own: Mapping, world: int) -> int | None:
        """Images that one backward pass sees, over all processes; None where only its data loader says it."""
        per_gpu = own.get("per_gpu") or self.recipe.per_gpu
        batch = own.get("batch") or self.recipe.batch
        return recipe.batching(batch, world, per_gpu)[0] * world if batch and per_gpu else None

    def check(self, cfg: TaskConfig) -> Data:
        """The data set, to the last file. Raises UserError, also where the extra `mm` is not installed."""
        from . import ops

        ops.require()
        own, _ = recipe.parse(f"{k}={v}" for k, v in cfg.protocol.overrides.items())
        return self._open(cfg.root, cfg.limit, own.get("classes"), train=cfg.eval_only is None)

    def check_data(self, root: Path) -> Data:
        """The data set, to the last file, with whatever classes it has; the extra `mm` is not needed for that."""
        return self._open(root, classes=ANY)

    def _open(self, root: Path, *asked, **more) -> Data:
        if self.recipe.dataset == "coco":
            from ..datasets.coco import open_coco as opened
        else:
            from ..datasets.ade20k import open_ade20k as opened
        return opened(root, *asked, **more)

    def check_card(self, values: Protocol, card: dict) -> None:
        """A family that the recipe takes, and blocks that the network has."""
        card = Card.from_dict(card)
        own, _ = recipe.parse(f"{k}={v}" for k, v in values.overrides.items())
        recipe.check_family(self.recipe, card, own.get("blocks"))
        if card.family == "vit" and "blocks" in own:
            recipe.check_blocks(own["blocks"], card.depth)

    def check_model(self, cfg: TaskConfig, card: dict) -> None:
        """Build the configuration for this card in a process of its own. Raises UserError with its complaint."""
        training = dataclasses.replace(self._training(cfg, Path()), out="", export="", seed=0)
        question = {"training": dataclasses.asdict(training), "card": card, "world": max(cfg.gpus, cfg.world)}
        if error := _ask(json.dumps(question), cfg.device):
            raise UserError(error)

    def _training(self, cfg: TaskConfig, out: Path) -> Training:
        p, out = cfg.protocol, out.resolve()
        return Training(
            recipe=str(self.recipe.path.resolve()),
            export=str(out / EXPORT),
            data=str(Path(cfg.data.root).resolve()),
            out=str(out),
            overrides=[f"{k}={v}" for k, v in (p.overrides | p.machine).items()],
            seed=cfg.seed,
            limit=cfg.limit,
            gpus=cfg.gpus,
            device=cfg.device,
            scale_lr=p.scale_lr,
            eval_only=str(cfg.eval_only.resolve()) if cfg.eval_only else None,
            pictures=cfg.pictures,
            classes=list(cfg.data.content) if "classes" in p.overrides else None,
        )

    def run(self, checkpoint, cfg: TaskConfig, out: Path) -> dict:
        """Train and evaluate in `out`, going on where an earlier run there was interrupted. Raises Crash.

        checkpoint: an opened one (checkpoints.open.Checkpoint); of no use to any process but the first, which exports
        it for all of them.
        """
        training, first = self._training(cfg, out), cfg.rank == 0
        path = out / ("job.json" if first else f"job.{cfg.rank}.json")
        if (known := read_result(out)) is not None:  # finished, but the record was not written any more
            return _result(known)
        if first:
            from ...pretrain.common.weights import save_weights

            about = {"fingerprint": checkpoint.fingerprint}
            save_weights(Path(training.export), checkpoint.reading.weights, checkpoint.card, about)
            wait_for_earlier(out)
            for name in (ERROR, PROGRESS, RESULT):  # what is there afterwards, is of this attempt
                (out / name).unlink(missing_ok=True)
        write_json(path, dataclasses.asdict(training))
        work(path, out, cfg)
        if not first:
            return {}
        if (found := read_result(out)) is None:
            raise Crash(f"ended without a result; see {out / LOG}", tail(out / LOG))
        return _result(found)


def _result(found: dict) -> dict:
    kept = {k: found[k] for k in ("metrics", "parts", "environment", "peak_memory_bytes")}
    return kept | {"protocol": found["protocol"] | {"accounting": found["accounting"]}}


_ask = cache(ask)  # the same question for every seed
