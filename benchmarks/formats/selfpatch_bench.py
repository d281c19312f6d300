"""Our own export: one .safetensors, timm names and `readout.*`, with the card in its metadata."""

from ...pretrain.common.weights import KEY, read_card


def claims(shapes, meta) -> int:
    about = meta.get("__metadata__")
    return 3 if isinstance(about, dict) and KEY in about else 0


def convert(state, meta):
    return {key: state[key] for key in state}, read_card(meta["__metadata__"]), {}
