"""BEiT and BEiT v2: training checkpoint, released file or fine-tuned classifier; timm's Beit, which has their names.

Source: microsoft/unilm 768a3c8, beit/ and beit2/ (modeling_pretrain.py, modeling_finetune.py, utils.py); timm 1.0.31,
timm/models/beit.py. Positions are relative: tables of biases, shared by all blocks in
pretraining and one a block afterwards, for images of one size. The image vector is the normed class token, and the
norm of the mean of the patches where there is an `fc_norm`. Mean and std: 0.5 in pretraining unless the file's own
arguments say ImageNet's, which BEiT v2 (`cls_pt_layers`) always took; a classifier's file alone does not show them.
"""

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import normalisation_from, table_in
from . import IMAGENET, VIT_ROOTS, alone, below, drop, under
from ._relative import INDEX, TABLE, check_index, whole_bias

ROOTS = tuple(root for root in VIT_ROOTS if root != "reg_token")
NAMES = ((".gamma_1", ".ls1.gamma"), (".gamma_2", ".ls2.gamma"))
LATE = "cls_pt_layers."  # of BEiT v2's class token, for training only
BESIDE = {"mask_token": "mask token", LATE: "head", "cls_pt_norm.": "head"}
BESIDE |= dict.fromkeys(("lm_head.", "cls_pt_lm_head.", "head."), "head")
TABLES = (f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}")
ALWAYS = {"class_token": True, "act": "gelu (erf)"}
USUAL = {"layer_scale": True, "qkv_bias": True}


def root_of(keys) -> str | None:
    """The prefix of the one network, or of the trained one beside its averaged copy."""
    keys = [k for k in keys if not k.startswith("model_ema.")]
    prefix = alone(keys, "patch_embed.proj.weight")
    names = below(keys, prefix) if prefix is not None else []
    fits = all(n.startswith((*ROOTS, *BESIDE, "fc_norm.", "rel_pos_bias.")) for n in names)
    marked = set(TABLES) & set(names) or {"blocks.0.attn.q_bias", "mask_token", "lm_head.weight"} <= set(names)
    return prefix if marked and fits else None


def claims(shapes, meta) -> int:
    if (prefix := root_of(shapes)) is None:
        return 0
    names = below(shapes, prefix)
    return 3 if any(n.startswith(("mask_token", "lm_head.", LATE)) or n.endswith(INDEX) for n in names) else 1


def convert(state, meta):
    prefix = state.pick({None: (root_of(state) or "",)}, lambda names: "patch_embed.proj.weight" in names)
    dropped = drop(state, under(prefix, BESIDE) | ({"model_ema.": "EMA copy"} if prefix else {}))
    for key in below_index(state, prefix):
        check_index(key, state[key])
        dropped[key] = "rebuilt"
    weights = {}
    for name, key in state.below(prefix).items():
        if key not in dropped:
            for old, new in NAMES:
                name = name.replace(old, new)
            weights[name] = state[key]
    weights = whole_bias(weights)
    rule = {} if set(TABLES) & weights.keys() else {"pos_resize": "stored"}
    facts = normalisation_from(meta) or _normalisation(below(state, prefix), table_in(meta, "args"))
    return weights, vit_card(shapes_of(weights), **rule, **facts), dropped


def below_index(state, prefix: str) -> list[str]:
    return [key for name, key in state.below(prefix).items() if name.endswith(INDEX) and not name.startswith(LATE)]


def _normalisation(names: list[str], args) -> dict:
    """Mean and std by the arguments of the training, or by what a pretrained file holds."""
    said = args.get("imagenet_default_mean_and_std")
    if any(name.startswith(LATE) for name in names) and said is None:
        said = True
    if said is None and "lm_head.weight" not in names:
        return {}
    return IMAGENET if said else {"mean": (0.5,) * 3, "std": (0.5,) * 3}
