"""The registered backbones, one for each family; importing this registers them in mmengine's root MODELS."""

from .base import Backbone
from .conv import TimmResNet, TimmSwin
from .own import OwnNetwork
from .vit import TimmViT

__all__ = ["Backbone", "OwnNetwork", "TimmResNet", "TimmSwin", "TimmViT"]
