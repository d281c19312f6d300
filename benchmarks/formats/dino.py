"""DINO: full training checkpoint, released backbone file, or its backbone alone.

Source: facebookresearch/dino 7c446df, main_dino.py (save_dict), utils.py (MultiCropWrapper), vision_transformer.py.
Downstream uses the teacher. Copies of the released full file from before June 2021 have no `backbone.` prefix and a
head called `projection_head`; that form is supported by its description only.
"""

from . import CLASSIFIER, IMAGENET, alone_vit, and_alone, below, drop, fits, is_dino, prefix_of, under, vit

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher."),
    "student": ("student.backbone.", "student."),
    None: ("backbone.", ""),
}
WRAPPED = ("teacher.backbone.", "student.backbone.")  # utils.MultiCropWrapper in main_dino.py's dict
HEADS = dict.fromkeys(("head.mlp.", "head.last_layer.", "projection_head."), "head")
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    plain, home = alone_vit(shapes), alone_vit(shapes, also=CLASSIFIER)
    if plain is not None and plain not in WRAPPED:
        return 1
    if plain is None and home is not None:  # a classifier: DINO's code saves none, trainers that took its ViT do
        return int(home != "")
    prefix, centre = prefix_of(shapes, NETWORKS, is_dino), shapes.get("dino_loss.center")
    if not is_layout(shapes, prefix) or (centre and per_token(centre)):
        return 0
    own = prefix in WRAPPED or any(f".{name}" in f".{k}" for k in shapes for name in HEADS)
    return 3 if centre else 2 * own


def is_layout(shapes, prefix: str | None) -> bool:
    """Is it DINO's or PW-Self's, and not one of iBOT, SERE or SelfPatch, which share the rest of the layout?"""
    others = any(k.startswith(("ibot_loss.", "dino_loss.patch_center")) for k in shapes)
    return prefix is not None and not others and fits(below(shapes, prefix), HEADS)


def per_token(centre: tuple[int, ...]) -> bool:
    """Is a loss's centre [.., tokens, K], as PW-Self's, and not [1, K]?"""
    return any(n != 1 for n in centre[:-1])


def convert(state, meta):
    return read(state, NETWORKS, HEADS)


def read(state, networks, own: dict[str, str], inner: dict[str, str] | None = None):
    """What `convert` returns for DINO's ViT. own: parts of a network beside its backbone -> reason to drop them;
    inner: parts of the backbone."""
    inner = CLASSIFIER | (inner or {})
    prefix = state.pick(and_alone(networks, alone_vit(state, also=inner)), is_dino)
    dropped = drop(state, under(prefix, inner)) | (beside(state, prefix, own) if prefix else {})
    return vit(state, prefix, dropped, pos_resize="dino", **IMAGENET)


def beside(state, prefix: str, own: dict[str, str]) -> dict[str, str]:
    """Everything beside the backbone in a checkpoint of this family: `own` parts of the network, the other one, loss.

    own: beginning of a name below `teacher.` or `student.` (or of the file, where it has one network) -> reason.
    """
    side = prefix.partition(".")[0] + "." if prefix.startswith(("teacher.", "student.")) else ""
    other = {"teacher.": {"student.": "student"}, "student.": {"teacher.": "teacher"}}.get(side, {})
    return drop(state, under(side, own) | {"dino_loss.": "loss", "ibot_loss.": "loss"} | other)
