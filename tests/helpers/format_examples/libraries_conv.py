"""A tiny random file of the ResNets and Swins of libraries that train, and of whole training files."""

import re
from pathlib import Path

import torch

from .conv import deep_resnet_weights, resnet_weights, swin_weights
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


def hf_resnet(folder: Path) -> Example:
    """A tiny classifier's state dict."""
    state = {"classifier.1.weight": torch.zeros(5, 32), "classifier.1.bias": torch.zeros(5)}
    for key, value in resnet_weights().items():
        key = re.sub(
            r"^(layer\d\.\d\.)?(conv|bn)(\d)\.", lambda m: f"{m[1] or 'stem.'}layer.{int(m[3]) - 1}.{m[2]}.", key
        )
        key = re.sub(r"^stem\.layer\.0\.", "embedder.embedder.", key)
        key = re.sub(r"downsample\.([01])\.", lambda m: f"shortcut.{('conv', 'bn')[int(m[1])]}.", key)
        key = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", key)
        state["resnet." + key.replace(".conv.", ".convolution.").replace(".bn.", ".normalization.")] = value
    return save_example(folder / "hf_resnet.bin", state)


HF_SWIN = {".norm1.": ".layernorm_before.", ".norm2.": ".layernorm_after.", "patch_embed.norm.": "embeddings.norm."}
HF_SWIN |= {"patch_embed.proj.": "embeddings.patch_embeddings.projection."}
HF_SWIN_4 = {
    ".attn.proj.": ".attention.output.dense.",
    ".attn.rel": ".attention.self.rel",
    ".attn.": ".attention.self.",
}
HF_SWIN_4 |= {".mlp.fc1.": ".intermediate.dense.", ".mlp.fc2.": ".output.dense."}
HF_SWIN_5 = {".attn.proj.": ".attention.o_proj.", ".attn.rel": ".attention.relative_position_bias.rel"}
HF_SWIN_5 |= {".attn.": ".attention."}


def hf_swin_names(weights: dict, version: int = 4) -> dict:
    """Official names of a Swin as transformers', whose query, key and value are separate."""
    found = {}
    for key, value in weights.items():
        key = re.sub(r"^norm\.", "layernorm.", re.sub(r"^layers\.", "encoder.layers.", key))
        parts = {key: value}
        if ".qkv." in key:
            names = ("query", "key", "value") if version == 4 else ("q_proj", "k_proj", "v_proj")
            parts = {key.replace("qkv", name): part for name, part in zip(names, value.chunk(3), strict=True)}
        for name, part in parts.items():
            for old, new in (HF_SWIN | (HF_SWIN_4 if version == 4 else HF_SWIN_5)).items():
                name = name.replace(old, new)
            found[name] = part
    return found


def hf_swin(folder: Path) -> Example:
    """A tiny classifier's state dict, in the names of version 4, with the index as a buffer."""
    weights = {k: v for k, v in swin_weights(official=True).items() if "attn_mask" not in k}
    head = {"classifier.weight": torch.zeros(5, 64)}
    return save_example(folder / "hf_swin.bin", named("swin.", hf_swin_names(weights)) | head)


def torchvision_swin(folder: Path) -> Example:
    """A tiny checkpoint of torchvision's training code, with an average."""
    weights = {k: v for k, v in swin_weights(official=True).items() if "attn_mask" not in k}
    state = {"head.weight": torch.zeros(5, 64)}
    for key, value in weights.items():
        key = re.sub(r"^patch_embed\.(proj|norm)", lambda m: f"features.0.{0 if m[1] == 'proj' else 2}", key)
        key = re.sub(r"^layers\.(\d)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}", key)
        key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"features.{2 * int(m[1]) + 2}", key)
        key = key.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
        state[key] = value.flatten() if key.endswith("index") else value
    average = {"n_averaged": torch.tensor(3)} | named("module.", state)
    return save_example(folder / "tv_swin.pth", {"model": state, "model_ema": average, "epoch": 3, "optimizer": {}})


def ibot_swin(folder: Path) -> Example:
    """A tiny full checkpoint."""
    head = {"head.mlp.0.weight": torch.zeros(8, 64), "head.last_layer.weight_g": torch.ones(4, 1)}
    teacher, student = (
        named("backbone.", {k: v for k, v in swin_weights(official=True).items() if "attn_mask" not in k}) | head
        for _ in range(2)
    )
    student = named("module.", student, {"backbone.masked_embed": torch.zeros(1, 8)})
    loss = {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)}
    return save_example(folder / "ibot_swin.pth", {"student": student, "teacher": teacher, "ibot_loss": loss})


def lightly_resnet(folder: Path) -> Example:
    """A tiny Lightning checkpoint of MoCo, whose backbones are Sequentials of a ResNet's children."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    name = re.compile(rf"^({'|'.join(numbers)})\.")
    online, other = (
        {name.sub(lambda m: f"{numbers[m[1]]}.", k): v for k, v in resnet_weights().items()} for _ in range(2)
    )
    heads = ("projection_head", "projection_head_momentum")
    state = named("backbone.", online) | named("backbone_momentum.", other)
    state |= {f"{k}.layers.0.weight": torch.zeros(2, 2) for k in heads} | {"criterion.memory_bank.bank": torch.zeros(2)}
    return save_example(folder / "lightly.ckpt", {"state_dict": state, "epoch": 3})
