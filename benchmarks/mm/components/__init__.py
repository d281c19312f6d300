"""What recipes name by `type` beside backbones; importing this registers it. Only after `ops.install()`."""

from .decay import DecayByName, LayerDecay
from .segmentors import AugmentedEncoderDecoder

__all__ = ["AugmentedEncoderDecoder", "DecayByName", "LayerDecay"]
