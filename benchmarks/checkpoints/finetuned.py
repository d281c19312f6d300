"""A detector or segmenter fine-tuned elsewhere, put into the same model as a recipe here builds it (`--eval-only`).

Files of ours have our names. Those of mmdet 2 and mmseg 0, and of the code bases grown out of them, call necks and
heads as mmdet 3 and mmseg 1 do; their backbones have their own names, which the format mm_finetuned turns into timm's.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.shapes import shapes_of
from ...pretrain.common.weights import check_fit, names
from . import FORMATS, completeness
from .state import State, read_file

FORMAT = "mm_finetuned"
INNER = ("backbone.encoder.vit.", "backbone.net.")  # where our backbones keep timm's network
NORMS = re.compile(r"^(blocks\.\d+)\.ln([12])\.")  # of our segmenters: names that mmseg's decay rules go by
MADE_ANEW = ("rebuilt", "counter")  # the format's reasons for what is no weight: indices, batch norm's counters
COUNTER = "num_batches_tracked"


def load_finetuned(model: nn.Module, path: str | Path, classes: Sequence[str]) -> str:
    """Put the weights of the file into `model`, all of them or none; -> accounting. Nothing in the file is executed.

    model: as a recipe builds it (mm_configs/). classes: of the data, in the order of its labels. Every tensor of the
    model has to be there in its shape; every tensor of the file is used, or dropped for a reason that the accounting
    gives. UserError that begins with `--eval-only PATH`: a file that does not fit, whose classes, normalisation or
    blocks are others by its own config, or of mmdet 1, whose first class is the background.
    """
    model = getattr(model, "module", model)
    try:
        state, meta = read_file(Path(path))
        about = meta.get("meta") if isinstance(meta.get("meta"), dict) else {}
        _check_classes(about, classes)
        found, dropped = _tensors(state, model, meta)
        found = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
        wanted = shapes_of(model.state_dict())
        given = shapes_of(found)
        # a file without batch norm's counters has what evaluation needs
        check_fit(
            given, {k: v for k, v in wanted.items() if k in given or not k.endswith(COUNTER)}, "it", "this recipe"
        )
        if bad := completeness.not_finite(found):
            raise UserError(f"its weights hold NaN or inf: {bad}")
        notes = _check_facts(FORMATS.get(FORMAT).module.stated(meta), model)
    except UserError as error:
        raise UserError(f"--eval-only {path}: {str(error).removeprefix(f'{path}: ')}") from None
    model.load_state_dict(model.state_dict() | found, strict=True)
    left = "".join(f", {len(keys)} of the file left out ({why})" for why, keys in dropped.items())
    return f"{len(found)}/{len(found)} tensors of the fine-tuned model loaded{left}{notes}"


def _tensors(state: State, model: nn.Module, meta: Mapping) -> tuple[dict[str, Tensor], dict[str, list]]:
    """(tensors by the model's names, what is left out by its reason)"""
    state = State(state.split().refs)
    wanted = model.state_dict().keys()
    prefix = "state_dict." if any(k.startswith("state_dict.") for k in state) else ""
    if beside := [k for k in state if not k.startswith(prefix)]:
        raise UserError(f"{len(beside)} tensors are beside its state_dict: {names(beside)}; remove one of the models")
    below = state.below(prefix)
    if below.keys() == wanted:
        return {name: state[key] for name, key in below.items()}, {}
    form = FORMATS.get(FORMAT).module
    if not form.claims(state.shapes, meta):
        raise UserError("no model of mmdet or mmseg: it has no backbone with a head beside it")
    weights, _, reasons = form.convert(state, meta)
    inner = next((i for i in INNER if any(k.startswith(i) for k in wanted)), INNER[0])
    timm = {NORMS.sub(r"\1.norm\2.", k.removeprefix(inner)): k for k in wanted if k.startswith(inner)}
    found, dropped = {timm.get(name, inner + name): value for name, value in weights.items()}, {}
    for key, why in reasons.items():
        name = key.removeprefix(prefix)
        own = timm.get(name.removeprefix("backbone."), name)
        if own in wanted or why not in MADE_ANEW:
            found[own] = state[key]
        else:
            dropped.setdefault(why, []).append(key)
    if loose := set(state) - state.used - set(reasons):
        raise UserError(f"{len(loose)} tensors belong to no part of it: {names(loose)}")
    return found, dropped


def _check_classes(about: Mapping, classes: Sequence[str]) -> None:
    """UserError for another order or number of classes than the data's, and for models of mmdet 1."""
    if re.match(r"[01]\.", str(about.get("mmdet_version"))):
        version = shorten(about["mmdet_version"], 20)
        raise UserError(f"of mmdet {version}, where the background is the first class; only mmdet 2 and later are read")
    ours = about.get("dataset_meta")
    own = about.get("CLASSES") or (isinstance(ours, dict) and (ours.get("classes") or ours.get("CLASSES")))
    if not isinstance(own, list | tuple):
        return
    if len(own) != len(classes):
        raise UserError(f"it has {len(own)} classes, these data have {len(classes)}")
    for number, (theirs, here) in enumerate(zip(own, classes, strict=True)):
        if str(theirs).strip() != here.strip():
            raise UserError(f"its class {number} is '{shorten(theirs, 40)}', that of these data '{here}'")


def _check_facts(facts: Mapping, model: nn.Module) -> str:
    """What the file's config says of the network, against the model's; -> what to add to the accounting."""
    for key in ("mean", "std"):
        here = getattr(getattr(model, "data_preprocessor", None), key, None)
        if facts.get(key) and here is not None:
            here = [round(v / 255, 4) for v in here.flatten().tolist()]
            if any(abs(a - b) > 1e-3 for a, b in zip(facts[key], here, strict=True)):
                text = ",".join(f"{v:g}" for v in facts[key])
                raise UserError(f"it was trained with {key} {text}, here it is {here}: give --card {key}={text}")
    blocks = getattr(model.backbone, "blocks", None)
    if blocks is not None and facts.get("blocks") not in (None, tuple(blocks)):
        own, here = (",".join(map(str, value)) for value in (facts["blocks"], blocks))
        raise UserError(f"its heads see blocks {own}, those of this recipe {here}: give blocks={own}")
    here = getattr(getattr(model.backbone, "card", None), "heads", None)
    if blocks is not None and facts.get("heads") not in (None, here):
        return f"; evaluated with {here} attention heads, its config says {facts['heads']}"
    return ""
