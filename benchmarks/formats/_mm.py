"""What the formats of open-mmlab's backbones share: names beside a backbone, what a runner writes, mean and std."""

import re
from collections.abc import Iterable, Mapping

from ...pretrain.common.errors import UserError
from . import IMAGENET, under
from .mmpretrain_vit import config_of, normalisation

HOMES = ("state_dict.backbone.", "backbone.")
# The second network of its self-supervised models: an averaged Sequential of backbone and neck.
AVERAGED = ("encoder_k.", "momentum_encoder.", "target_net.")
BESIDE = {"head.": "head", "neck.": "neck", "queue": "queue", "target_generator.": "target generator"}
RUNNER = {"message_hub", "param_schedulers"}
VERSIONS = re.compile(r"mm\w*_version|cfg|config|CLASSES|dataset_meta")


def teachers(ends: Iterable[str] = HOMES) -> tuple[str, ...]:
    """Prefixes of the averaged backbone beside these."""
    return tuple(f"{end.removesuffix('backbone.')}{name}0." for end in ends for name in AVERAGED)


def by_runner(meta: Mapping) -> bool:
    """Did mmcv's or mmengine's runner write the file?"""
    about = meta.get("meta")
    return bool(RUNNER & meta.keys()) or (isinstance(about, dict) and any(VERSIONS.fullmatch(str(k)) for k in about))


def beside(root: str) -> dict[str, str]:
    """Reasons to drop what lies beside a backbone; root: what comes before `backbone.` in its name."""
    return under(root, BESIDE | dict.fromkeys(AVERAGED, "teacher")) | {"ema_state_dict.": "EMA copy"}


def images_of(state, meta: Mapping) -> dict:
    """Mean and std by the config that the file holds, else ImageNet's, assumed. Raises UserError for BGR images."""
    if re.search(r"\b(bgr_to_rgb|to_rgb)['\"]?\s*[=:]\s*False", config_of(meta)):
        raise UserError("its config feeds BGR images, which no encoder here takes")
    found = normalisation(meta)
    state.assume(*(IMAGENET if not found else ()))
    return found or IMAGENET
