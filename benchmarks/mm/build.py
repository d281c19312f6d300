"""A training, its recipe and a card -> the config that mmengine's Runner takes, and what is recorded of it.

Order: the recipe's file, what the card decides, the user's `key=value`, then what the machine decides (processes,
device).
"""

import copy
import json
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.config import config as mmengine_config
from mmengine.config import utils as mmengine_utils

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.positions import rule_for
from . import (
    backbones,  # noqa: F401 (these register what the recipes name)
    components,  # noqa: F401 (these register what the recipes name)
    pixels,
    schedule,
)
from .evaluation import metrics  # noqa: F401 (as above)
from .keys import check_values, for_record, override, walk
from .recipe import BLOCKS, STRIDES, Recipe, blocks_of, check_blocks, own_blocks, parse, read
from .training import Training

# mmengine looks for `mmseg::` in a distribution called mmsegmentation; the maintained fork's has another name.
mmengine_utils.MODULE2PACKAGE["mmseg"] = "mmseg"
_search = mmengine_config._get_external_cfg_path


def _locate(package: str, name: str) -> str:
    """mmengine reads 50 lists of models, a second for every `mmdet::_base_/...`, to see that it is in none of them."""
    if name.startswith("_base_/"):
        raise ValueError(name)  # which tells mmengine that it is a base
    return _search(package, name)


mmengine_config._get_external_cfg_path = _locate

# Of a recipe's top level only these reach the Runner; the rest (train_pipeline, norm_cfg ...) are names for the file's
# own use, and an override of one would do nothing.
KEPT = (
    *("model", "train_dataloader", "val_dataloader", "val_evaluator", "train_cfg", "val_cfg", "optim_wrapper"),
    *("param_scheduler", "default_hooks", "custom_hooks", "env_cfg", "log_processor", "log_level", "visualizer"),
    *("default_scope", "find_unused_parameters"),
)
# mm's own evaluators round, or only print, what a record keeps: ours (evaluation/metrics.py) take their place.
PATCHES = (8, 14, 16)  # strides whose maps are brought to 4 to 32 (backbones.vit.rescale_layers)
EVALUATORS = {"CocoMetric": "coco", "FasterCocoMetric": "coco", "IoUMetric": "ade20k"}
OURS = {"coco": "SelfpatchCocoMetric", "ade20k": "SelfpatchIoUMetric"}


def config(training: Training, card: Card, world: int, device: str) -> tuple[Config, dict]:
    """(config ready for Runner.from_cfg; every value in force, as JSON has it, for the record).

    card: the export's. world: number of processes. device: cpu, cuda or cuda:N. Launcher, resuming and evaluation only
    are the caller's. Raises UserError for overrides that do not exist or do not fit.
    """
    recipe = read(training.recipe)
    own, dotted = parse(training.overrides)
    cfg = Config.fromfile(recipe.path, lazy_import=False)
    cfg = Config({key: cfg[key] for key in KEPT if key in cfg})
    card = _card(recipe, card)
    _network(cfg, recipe, card, own, training.export)
    _data(cfg, recipe, training, own)
    warmup = schedule.set_length(cfg, own)
    for key, value in dotted.items():
        override(cfg, key, value)
    check_values(cfg)
    lr, scale = schedule.set_rate(cfg, recipe, own, training.scale_lr)
    per_gpu, accumulate = schedule.set_batch(cfg, recipe, own, world)
    # The protocol's own numbers; what the other processes and the device change stands beside them.
    protocol = for_record({k: v for k, v in cfg.items() if k not in ("visualizer", "env_cfg", "log_level")})
    if accumulate > 1:
        schedule.count_micro_batches(cfg, accumulate)
    norm = _norms(cfg, device)
    effective = {
        "id": recipe.protocol_id,
        "batch": per_gpu * accumulate * world,
        "per_gpu": per_gpu,
        "gpus": world,
        "accumulate": accumulate,
        "lr": lr,
        "lr_scale": scale,
        "amp": _amp(cfg, own.get("amp", recipe.amp), device),
        "norm": norm,
        # Batch norm sees one micro-batch, SyncBN that of all processes: not the statistics of the whole batch.
        "norm_images": None if norm is None else per_gpu * (world if norm == "SyncBN" else 1),
        "mean": card.mean,
        "std": card.std,
        "limit": training.limit,
        "overrides": for_record(own | dotted),
    }
    if card.family == "vit":
        effective |= {"heads": card.heads, "pos_rule": _positions(cfg, card), "blocks": cfg.model.backbone.blocks}
    if warmup is not None:  # not the recipe's: shortened to the run
        effective["warmup"] = warmup
    if card.own:
        effective["blocks"] = cfg.model.backbone.blocks
    effective["config"] = protocol
    _finish(cfg, training)
    return cfg, json.loads(json.dumps(effective))


# ----------------------------------------------------------------------------------------------- what the card decides
def _card(recipe: Recipe, card: Card) -> Card:
    """The card with the recipe's number of heads. Raises UserError for facts that are not known."""
    if recipe.heads:
        if card.dim % recipe.heads:
            raise UserError(f"{recipe.name}: {recipe.heads} heads do not divide this network's width of {card.dim}")
        card = card.override({"heads": recipe.heads})
    if lacking := [name for name in ("mean", "std") if getattr(card, name) is None]:
        raise UserError(f"this checkpoint's {' and '.join(lacking)} are unknown; give them with --card")
    return card


def widths(card: Card, blocks: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Channels of the backbone's four maps. blocks: of a user's own network."""
    if card.own:
        return tuple(card.widths[block] for block in blocks)
    if card.family == "vit":
        return (card.dim,) * 4
    return tuple(card.dim << i for i in range(4)) if card.family == "swin" else tuple(card.widths)


def strides(card: Card, rescale: bool) -> tuple[float, ...]:
    """Pixels between neighbours of the maps, as the heads' configuration says.

    Without rescale layers it says 4 to 32 although all maps have the patch's: the released config's oddity.
    """
    return tuple(s * card.patch / 16 for s in STRIDES) if rescale and card.patch not in (8, 16) else STRIDES


def _network(cfg: Config, recipe: Recipe, card: Card, own: dict, export: str) -> None:
    """Card, weights, blocks and positions into the backbone; widths and strides of its maps into what follows it."""
    if card.own:
        _own_network(cfg, recipe, card, own)
    net, model = cfg.model.backbone, cfg.model
    net.card, net.weights = card.as_dict(), export
    net.with_cp = own.get("with_cp", net.get("with_cp", False))
    for key in ("blocks", "pos_resize"):
        if key in own and recipe.family != "vit" and not (card.own and key == "blocks"):
            raise UserError(f"{key}={own[key]}: of a ViT only; {recipe.name} takes a {recipe.family}")
    if recipe.family == "vit" and not card.own:
        blocks = own.get("blocks") or blocks_of(recipe.blocks or BLOCKS, card.depth)
        net.blocks = check_blocks(blocks, card.depth)
        # rotary positions follow from the picture's size, and tables of relative ones have a rule of their own
        net.pos_resize = own.get("pos_resize", recipe.pos_resize if card.absolute else None)
        _set_strides(model, strides(card, net.get("rescale", True)))
    channels = list(widths(card, net.get("blocks", ())))
    for part in (model.get("neck"), model.get("decode_head")):
        if part is not None and part.get("in_channels", 0) is None:
            part.in_channels = channels
    auxiliary = model.get("auxiliary_head")
    if auxiliary is not None and auxiliary.get("in_channels", 0) is None:
        auxiliary.in_channels = channels[auxiliary.in_index]
    model.data_preprocessor.mean = [round(255 * v, 6) for v in card.mean]
    model.data_preprocessor.std = [round(255 * v, 6) for v in card.std]


def _own_network(cfg: Config, recipe: Recipe, card: Card, own: dict) -> None:
    """A user's network in the place of the recipe's, whose settings (frozen stages, drop path) it does not have."""
    if own.get("with_cp"):
        raise UserError(f"with_cp=true: {card.family} is a network of your own, whose parts are not known here")
    if "pos_resize" in own:
        raise UserError(f"pos_resize={own['pos_resize']}: {card.family}, a network of your own, sees to its positions")
    if cfg.optim_wrapper.get("constructor") == "LayerDecay":
        raise UserError(
            f"{recipe.name}: its learning rates go by a ViT's blocks; {card.family} is a network of your own"
        )
    blocks = own_blocks(recipe, card, own.get("blocks"))
    if blocks is None:
        have = ", ".join(f"{stride} (block {block})" for block, stride in enumerate(card.strides))
        wanted = "one stride and width" if recipe.family == "vit" else "strides 4, 8, 16 and 32"
        raise UserError(f"{recipe.name} takes four maps of {wanted}; those of {card.family}: {have}")
    rescale = recipe.family == "vit" and cfg.model.backbone.get("rescale", True)
    stride = card.strides[blocks[0]]
    if rescale and stride not in PATCHES:
        raise UserError(f"{recipe.name}: maps of stride {stride} are not rescaled; those of {PATCHES} are")
    if rescale and stride not in (8, 16):
        _set_strides(cfg.model, tuple(s * stride / 16 for s in STRIDES))
    cfg.model.backbone = ConfigDict(type="OwnNetwork", blocks=blocks, rescale=rescale, norm_cfg={"type": "SyncBN"})


def _set_strides(model: ConfigDict, found: tuple[float, ...]) -> None:
    """For patches that make other strides than 4 to 32, where boxes would be off. Anchors keep their pixels."""
    if found == STRIDES or "rpn_head" not in model:
        return
    anchors = model.rpn_head.anchor_generator
    anchors.base_sizes, anchors.strides = list(anchors.strides), [*found, 2 * found[-1]]
    for part in ("bbox_roi_extractor", "mask_roi_extractor"):
        model.roi_head[part].featmap_strides = list(found)


def _positions(cfg: Config, card: Card) -> str:
    """The position rule in force; DINO's, marked as assumed, where the format has none for these pictures."""
    rule = cfg.model.backbone.pos_resize or card.pos_resize
    return rule if rule == "rotary" else rule_for(rule, card.grid, (50, 84))  # COCO's pictures at 800 x 1333


# ----------------------------------------------------------------------------------------------------- data and limits
def _data(cfg: Config, recipe: Recipe, training: Training, own: dict) -> None:
    root, val, limit = Path(training.data), cfg.val_dataloader.dataset, training.limit
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(root)
        if "workers" in own:
            loader.num_workers = own["workers"]
    evaluator = cfg.val_evaluator
    if EVALUATORS.get(evaluator.type) == recipe.dataset:
        kept = {k: evaluator[k] for k in ("metric", "iou_metrics") if k in evaluator}
        cfg.val_evaluator = evaluator = ConfigDict(kept | {"type": OURS[recipe.dataset]})
    if recipe.dataset == "coco":
        evaluator.ann_file, evaluator.limit = str(root / val.ann_file), limit
    if limit is not None and limit < _images(recipe, root, val):  # mmengine takes no number that is not below the set's
        val.indices = limit
    if training.classes:
        _classes(cfg, recipe, training.classes)


def _images(recipe: Recipe, root: Path, val: ConfigDict) -> int:
    """Number of validation images."""
    if recipe.dataset == "coco":
        return len(json.loads((root / val.ann_file).read_text(encoding="utf-8"))["images"])
    return sum(1 for _ in (root / val.data_prefix.img_path).rglob("*.jpg"))


def _classes(cfg: Config, recipe: Recipe, names: list[str]) -> None:
    """A set of its own with these classes."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = {"classes": names}
        if recipe.dataset == "ade20k":  # ADE20KDataset knows no other names than its 150
            loader.dataset.type, loader.dataset.reduce_zero_label = "BaseSegDataset", True
            loader.dataset.img_suffix, loader.dataset.seg_map_suffix = ".jpg", ".png"
    for _, part in walk(cfg.model):
        if isinstance(part, dict) and "num_classes" in part:
            part["num_classes"] = len(names)


# -------------------------------------------------------------------------------------------- what the machine decides
def _amp(cfg: Config, asked: str, device: str) -> str:
    """Mixed precision in force, in words: none without a GPU, where mmengine's wrapper refuses to start."""
    if asked == "off" or not device.startswith("cuda"):
        return "off" if asked == "off" else f"off ({asked} needs a GPU)"
    wrapper = cfg.optim_wrapper
    wrapper.type, wrapper.dtype = "AmpOptimWrapper", {"fp16": "float16", "bf16": "bfloat16"}[asked]
    wrapper.loss_scale = "dynamic" if asked == "fp16" else 1.0  # bf16 has float32's range: nothing to scale
    return asked


def _norms(cfg: Config, device: str) -> str | None:
    """SyncBN -> BN where there is no GPU (torch's refuses CPU tensors). -> the kinds of batch norm in force"""
    parts = (part for _, part in walk(cfg.model) if isinstance(part, dict))
    found = [part for part in parts if part.get("type") in ("SyncBN", "BN")]
    if not device.startswith("cuda"):
        for part in found:
            part["type"] = "BN"
    return " and ".join(sorted({part["type"] for part in found})) or None


def _finish(cfg: Config, training: Training) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        if not loader.num_workers:
            loader.persistent_workers = False
        pixels.read_stored(loader)
    cfg.test_dataloader, cfg.test_evaluator = copy.deepcopy(cfg.val_dataloader), copy.deepcopy(cfg.val_evaluator)
    cfg.test_cfg = {"type": "TestLoop"}
    cfg.work_dir, cfg.load_from, cfg.resume, cfg.launcher = training.out, None, False, "none"
    cfg.randomness = {"seed": training.seed}
