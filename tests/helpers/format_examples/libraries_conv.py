"""A tiny random file of the ResNets and Swins of libraries that train, and of whole training files."""

import re
from pathlib import Path

import torch

from .conv import deep_resnet_weights, resnet_weights
from .vit import Example, save_example


def named(prefix: str, *parts: dict) -> dict:
    return {f"{prefix}{k}": v for part in parts for k, v in part.items()}


def mm_resnet_names(weights: dict) -> dict:
    """timm's names of a ResNet-D as mmpretrain's, which counts no pooling in the first stage."""
    found = {}
    for key, value in weights.items():
        if match := re.fullmatch(r"conv1\.(\d)\.(\w+)", key):
            part, place = "bn" if int(match[1]) % 3 else "conv", int(match[1]) // 3
            key = f"stem.{place}.{part}.{match[2]}"
        key = re.sub(r"^bn1\.", "stem.2.bn.", key)
        key = re.sub(r"^layer1\.0\.downsample\.(\d)", lambda m: f"layer1.0.downsample.{int(m[1]) - 1}", key)
        found[key] = value
    return found


def mmpretrain_resnet(folder: Path) -> Example:
    """A tiny MoCo v3 with ResNetV1d, by mmengine's runner."""
    neck = {"fc0.weight": torch.zeros(8, 32)}
    online, teacher = (mm_resnet_names(deep_resnet_weights()) for _ in range(2))
    state = named("backbone.", online) | named("neck.", neck) | {"head.predictor.fc0.weight": torch.zeros(8, 8)}
    state |= named("momentum_encoder.module.0.", teacher) | named("momentum_encoder.module.1.", neck)
    config = "data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)"
    meta = {"epoch": 3, "cfg": config, "mmengine_version": "0.10.0"}
    tree = {"meta": meta, "state_dict": state | {"momentum_encoder.steps": torch.tensor(3)}, "message_hub": {}}
    return save_example(folder / "mmpretrain.pth", tree | {"optimizer": {"state": {0: {"step": torch.ones(1)}}}})


def mocov3_resnet(folder: Path) -> Example:
    """A tiny training checkpoint."""
    head = {"fc.0.weight": torch.zeros(8, 32), "fc.1.running_mean": torch.zeros(8)}
    state = named("module.base_encoder.", resnet_weights(), head)
    state |= named("module.momentum_encoder.", resnet_weights(), head) | {
        "module.predictor.0.weight": torch.zeros(8, 8)
    }
    return save_example(folder / "mocov3.pth.tar", {"epoch": 3, "arch": "resnet50", "state_dict": state})


def pixpro(folder: Path) -> Example:
    """A tiny training checkpoint."""
    head = {"linear1.weight": torch.zeros(8, 32, 1, 1)}
    state = named("module.encoder.", resnet_weights()) | named("module.encoder_k.", resnet_weights())
    state |= named("module.projector.", head) | named("module.projector_k.", head)
    return save_example(folder / "pixpro.pth", {"model": state | {"module.value_transform.weight": torch.zeros(8, 8)}})


def vicreg(folder: Path) -> Example:
    """A tiny training checkpoint of Barlow Twins, whose projections go through a norm."""
    state = named("module.backbone.", resnet_weights()) | {"module.projector.0.weight": torch.zeros(8, 32)}
    state |= {"module.bn.running_mean": torch.zeros(8), "module.bn.num_batches_tracked": torch.tensor(3)}
    return save_example(folder / "barlow.pth", {"epoch": 3, "model": state, "optimizer": {"state": {}}})
