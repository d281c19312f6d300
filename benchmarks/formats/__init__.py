"""One file = one checkpoint format. The module's name is the format's name.

A format defines

    claims(shapes, meta) -> int
        0 no; 1 bare names that fit; 2 this code base's wrapper or prefix; 3 a key that only it writes.
        shapes: dotted tensor name -> shape, `module.` and other wrapper segments already stripped; meta: everything in
        the file that is not a tensor (`args` as a plain dict), and `config.json` if one lies beside the file.
    convert(state, meta) -> (weights, card, dropped)
        state: loading.State, a mapping from dotted name to tensor that reads a tensor when asked; weights: name in
        timm's ViT -> tensor, `readout.*` for SelfPatch's class attention; dropped: name -> reason in a word or two.
        Every tensor of the file must be asked for or dropped: the loader refuses the file otherwise, with the names.

and may define `example() -> (tree, card overrides)`, a tiny file's content for the tests.
"""

from collections.abc import Iterable, Mapping

VIT_ROOTS = ("cls_token", "reg_token", "pos_embed", "patch_embed.", "blocks.", "norm.")


def is_vit(keys: Iterable[str]) -> bool:
    """Do the names hold a ViT in timm's naming?"""
    keys = set(keys)
    return {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= keys


def fits(keys: Iterable[str]) -> bool:
    """Are the names those of a ViT in timm's naming and nothing else?"""
    keys = list(keys)
    return is_vit(keys) and all(k.startswith(VIT_ROOTS) for k in keys)


def below(keys: Iterable[str], prefix: str) -> list[str]:
    """The names under a prefix, without it."""
    return [k.removeprefix(prefix) for k in keys if k.startswith(prefix)]


def drop(keys: Iterable[str], reasons: Mapping[str, str]) -> dict[str, str]:
    """name -> reason for every name that starts with one of the given prefixes."""
    return {k: why for k in keys for prefix, why in reasons.items() if k.startswith(prefix)}
