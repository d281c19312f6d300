"""A tiny random file of every ViT format of a library for self-supervised learning, wrapped as its code wraps it."""

from pathlib import Path

import torch

from .vit import Example, example_vit, save_example, sincos


def put(state: dict, prefix: str, factor: float = 1.0) -> dict:
    return {prefix + key: value * factor for key, value in state.items()}


def ijepa(folder: Path) -> Example:
    """A tiny training checkpoint."""
    vit = example_vit(class_token=False) | {"pos_embed": sincos(4, 24, "columns")[:, 1:]}
    predictor = {"mask_token": torch.zeros(1, 1, 8), "predictor_pos_embed": torch.zeros(1, 16, 8)}
    tree = {"encoder": put(vit, "module.", 1.5), "target_encoder": put(vit, "module."), "epoch": 3, "scaler": None}
    tree |= {"predictor": put(predictor, "module."), "opt": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    return save_example(folder / "jepa.pth.tar", tree, heads=2)


def msn(folder: Path) -> Example:
    """A tiny training checkpoint."""
    vit = example_vit() | {"fc.fc1.weight": torch.ones(8, 24), "fc.bn1.running_mean": torch.ones(8)}
    tree = {"encoder": put(vit, "module.", 1.5), "target_encoder": put(vit, "module.")}
    return save_example(folder / "msn.pth.tar", tree | {"prototypes": torch.ones(4, 8), "epoch": 3}, heads=2)


def solo(folder: Path) -> Example:
    """A tiny Lightning checkpoint of MoCo v2+."""
    vit = example_vit()
    state = put(vit, "backbone.") | put(vit, "momentum_backbone.", 1.5)
    state |= {f"{n}.weight": torch.ones(5, 24) for n in ("classifier", "momentum_classifier", "projector.0")}
    state |= {"queue": torch.ones(2, 8, 4), "queue_ptr": torch.zeros(1).long()}
    tree = {"state_dict": state, "hyper_parameters": {"method": "mocov2plus"}, "global_step": 10}
    return save_example(folder / "solo.ckpt", tree, heads=2)


def lightly(folder: Path) -> Example:
    """A tiny Lightning checkpoint of the benchmark's DINO, whose `backbone` is the teacher."""
    masked = put(example_vit(), "vit.") | {"mask_token": torch.ones(1, 1, 24)}
    state = put(masked, "backbone.") | put(masked, "student_backbone.", 1.5)
    state |= {f"{n}.layers.0.weight": torch.ones(8, 24) for n in ("projection_head", "student_projection_head")}
    state |= {"criterion.center.center": torch.ones(1, 1, 4), "online_classifier.linear.weight": torch.ones(5, 24)}
    return save_example(folder / "lightly.ckpt", {"state_dict": state, "global_step": 10}, heads=2)


def lightly_train(folder: Path) -> Example:
    """A tiny Lightning checkpoint of DINO, without the pickled modules that real ones also hold."""
    vit, inner = example_vit(), "embedding_model.wrapped_model._model."
    state = put(vit, f"teacher_{inner}") | put(vit, f"student_{inner}", 1.5)
    state |= {f"{side}_projection_head.layers.0.weight": torch.ones(8, 24) for side in ("teacher", "student")}
    tree = {"state_dict": state | {"criterion.center.center": torch.ones(1, 1, 4)}, "global_step": 10}
    return save_example(folder / "lightly_train.ckpt", tree, heads=2)
