"""Where a checkpoint's tensors come from: a file, shards with an index, or one of several sorts of folder.

Whatever the source, a format sees a `State` (tensors by dotted name) and everything else as one table.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from mmap import mmap
from pathlib import Path

from torch import Tensor

from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.reading.files import read_tree
from ...pretrain.common.reading.flatten import flatten
from ...pretrain.common.reading.tensors import TensorRef
from .folders import check_whole, configs, is_name, locate, read_json

# Segments that wrappers (DDP, torch.compile, FSDP, activation checkpointing, Lightning) put into names; they carry no
# information.
_SEGMENTS = "module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
WRAPPERS = re.compile(rf"(?:^|(?<=\.))(?:{_SEGMENTS})\.")
# What trainers keep beside the networks, by its first segment -> what it is.
TRAINING = {
    "optimizer": r"(?:\w+_)?(?:opt|optim|optimizers?)(?:_?\d+)?(?:_states?|_state_dict)?",
    "scheduler": r"(?:\w+_)?(?:lr_?)?(?:sched|schedulers?)(?:_states?|_state_dict)?",
    "scaler": r"amp|(?:\w+_)?scaler(?:_states?|_state_dict)?",
    "random state": r"(?:\w+_)?rng(?:_states?)?|random(?:_states?)?",
    "training state": r"callbacks|loops|message_hub",
}
BARE = ("", "state_dict.", "model.")  # prefixes of names that say nothing of a network
SAME = {"online": "student", "student": "online"}  # two words for the network that is trained by gradients


class Mismatch(UserError):
    """Raised by `convert`: the names fit, but the values show that another code base wrote the file."""


class State(Mapping):
    """A checkpoint's tensors by dotted name, as a format sees them. A tensor is read when it is asked for.

    shapes: name -> shape of all of them. Whatever a format has asked for counts as used. wanted: the network that the
    user asked for (`--weights`), or None; network: the one that was taken, where the format has several. assumed:
    fields of the card that the format took without evidence. aside: name -> what it is, of the training state that was
    beside them.
    """

    def __init__(self, refs: Mapping[str, object], wanted: str | None = None, aside: Mapping[str, str] | None = None):
        self.refs, self.aside = refs, dict(aside or {})
        self.shapes = {k: tuple(r.shape) for k, r in refs.items()}
        self.used: set[str] = set()
        self.wanted, self.network = wanted, None
        self.assumed: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.refs[key].load()
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            raise UserError(f"{key} holds {tensor.dtype}: weights of 8 bits are not read; give the file of 16 or 32")
        self.used.add(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def content(self, path: Path) -> mmap | None:
        """All bytes of a file that the tensors lie in, as it is mapped; None for another file."""
        sources = (ref.storage.source for ref in self.refs.values() if isinstance(ref, TensorRef))
        buffers = (s.buffer for s in sources if s.path == str(path))
        return next((b for b in buffers if isinstance(b, mmap)), None)

    def below(self, prefix: str) -> dict[str, str]:
        """Names that start with `prefix`, without it -> full names."""
        return {k.removeprefix(prefix): k for k in self.refs if k.startswith(prefix)}

    def assume(self, *fields: str) -> None:
        """Fields of the card that nothing in or beside the file says, and that are taken all the same."""
        self.assumed.update(fields)

    def pick(self, networks: Mapping[str | None, Sequence[str]], test) -> str:
        """The prefix of the network to evaluate: the one asked for, else the first there is.

        networks: name (teacher, student, online; None where a file does not say) -> prefixes where it may lie, the
        default first. test(names below the prefix) -> is it one? Raises UserError for a choice that the file lacks.
        """
        found = {}
        for name, prefixes in networks.items():
            fit = (p for p in prefixes if test(self.below(p)))
            if (prefix := next(fit, None)) is not None:
                found[name] = prefix
        if not found:
            raise UserError("it holds no network of this format")
        name = next(iter(found))
        if self.wanted:
            name = next((n for n in (self.wanted, SAME.get(self.wanted)) if n in found), "")
            if not name:
                there = " and ".join(n for n in found if n) or "one network, and does not say which"
                raise UserError(f"--weights {self.wanted}: it holds {there}")
        else:
            self._whole_before(name, networks)
        self.network = name
        return found[name]

    def _whole_before(self, name: str | None, networks: Mapping[str | None, Sequence[str]]) -> None:
        """Raise UserError where a network that comes before `name` is there in part: to take the next one instead would
        be a silent exchange of networks."""
        for other, prefixes in networks.items():
            if other == name:
                return
            if other and (parts := max((len(self.below(p)) for p in prefixes if p not in BARE), default=0)):
                take = f"--weights {name} takes its {name}" if name else "remove them to take the other network"
                raise UserError(f"its {other} ({parts} tensors) is no whole network; {take}")

    def split(self) -> "State":
        """Without training state, which is set aside; as it is where there is nothing else."""
        first = {k: k.partition(".")[0] for k in self.refs if "." in k}
        kinds = {s: _kind_of(s) for s in set(first.values())}
        aside = {k: kind for k, segment in first.items() if (kind := kinds[segment])}
        # A lone number beside everything: best_acc1, loss, AveragedModel's n_averaged; CLIP's logit_scale tells more.
        alone = (k for k in self.refs if "." not in k and not k.startswith("logit_"))
        aside |= {k: "training state" for k in alone if math.prod(self.shapes[k]) == 1}
        if len(aside) == len(self.refs):
            return self
        return State({k: r for k, r in self.refs.items() if k not in aside}, self.wanted, self.aside | aside)

    def inside(self) -> "State | None":
        """Split, without the first segment, if it is the same for all names and names remain; else None."""
        heads = {k.partition(".")[0] for k in self.refs}
        if len(heads) != 1 or not all("." in k for k in self.refs):
            return None
        return State({k.partition(".")[2]: r for k, r in self.refs.items()}, self.wanted, self.aside).split()


def _kind_of(segment: str) -> str:
    """What of a trainer's state the first segment of a name says; '' for anything else."""
    return next((kind for kind, names in TRAINING.items() if re.fullmatch(names, segment)), "")


def read_file(path: Path) -> tuple[State, dict]:
    """All tensors and everything else of a checkpoint: file or folder. Wrapper prefixes are gone from the names.

    Folders: a pretraining run of ours (its newest checkpoint, exported), a Hugging Face folder, shards with an index
    (`*.index.json`), torch.distributed.checkpoint's, or one with a single checkpoint file. `config.json`,
    `NAME.config.json`, `preprocessor_config.json`, `args.yaml` (timm) and `config.yaml` (DINOv3) beside the tensors
    join the rest. Raises UserError for anything else.
    """
    try:
        return _read_file(Path(path))
    except OSError as error:  # a name that is too long, a folder that may not be listed
        raise UserError(f"{shorten(path)}: cannot be read: {error.strerror or error}") from None


def _read_file(path: Path) -> tuple[State, dict]:
    file = locate(path) if path.is_dir() else path
    if file.is_dir():
        from .dcp import read_dcp

        tensors, meta = read_dcp(file)
    elif file.name.endswith(".index.json"):
        tensors, meta = _read_shards(file)
    else:
        tensors, meta = _read_one(file)
    refs: dict[str, object] = {}
    for key, ref in tensors.items():
        bare = WRAPPERS.sub("", key)
        if bare in refs:
            raise UserError(f"{path}: two tensors are called {bare} once `module.` and the like are stripped")
        refs[bare] = ref
    if not refs:
        raise UserError(f"{path}: holds no tensors, so it is no checkpoint")
    return State(refs), dict(meta) | configs(file, path)


def _read_one(file: Path) -> tuple[dict, dict]:
    check_whole(file)
    tensors, meta = flatten(read_tree(file), str(file))
    return tensors, dict(meta) if isinstance(meta, Mapping) else {}


def _read_shards(index: Path) -> tuple[dict, dict]:
    """Tensors of all files that a `weight_map` names. Raises UserError where files and index disagree."""
    table = read_json(index, str(index))
    places = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(places, dict) or not places or any(type(v) is not str for v in places.values()):
        raise UserError(f"{index}: no index of shards (it lacks a weight_map)")
    tensors, files = {}, sorted(set(places.values()))
    for name in files:
        if not is_name(name):
            raise UserError(f"{index}: names the shard {shorten(name)}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: its shard {shorten(name)} is missing: download it again")
    for name in files:
        shard, _ = _read_one(index.parent / name)
        listed = {k for k, v in places.items() if v == name}
        if shard.keys() != listed:
            off = sorted(shard.keys() ^ listed)
            raise UserError(f"{index}: {shorten(name)} and the index disagree on {shorten(', '.join(off[:4]))}")
        tensors |= shard
    return tensors, {}
