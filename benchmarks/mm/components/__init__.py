"""What recipes name by `type` beside backbones; importing this registers it. Only after `ops.install()`."""

from .decay import DecayByName
from .segmentors import AugmentedEncoderDecoder

__all__ = ["AugmentedEncoderDecoder", "DecayByName"]
