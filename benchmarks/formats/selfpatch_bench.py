"""Our own export: one .safetensors, timm names and `readout.*`, with the card in its metadata."""

from ...pretrain.common.card import Card
from ...pretrain.common.weights import KEY, read_card, save_weights


def claims(shapes, meta) -> int:
    about = meta.get("__metadata__")
    return 3 if isinstance(about, dict) and KEY in about else 0


def convert(state, meta):
    return {key: state[key] for key in state}, read_card(meta["__metadata__"]), {}


def example(folder):
    """A tiny export."""
    from ..backbones.encoder import Encoder

    card = Card("vit", 8, 24, 2, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_weights(folder / "own.safetensors", Encoder(card).vit.state_dict(), card)
    return folder / "own.safetensors", {}
