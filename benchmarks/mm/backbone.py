"""The registered backbones, one for each family; importing this registers them in mmengine's root MODELS."""

from .backbone_base import Backbone
from .backbone_conv import TimmResNet, TimmSwin
from .backbone_vit import TimmViT

__all__ = ["Backbone", "TimmResNet", "TimmSwin", "TimmViT"]
