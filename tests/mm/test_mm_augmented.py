"""Test-time augmentation of segmentors: one fine-tuned model, tested at several scales and flipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_mm_build import tiny

from mm_building import CARDS, build, configured, mm, model_of, training
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, make_ade20k
from selfpatch_bench.pretrain.common.weights import save_weights
from selfpatch_bench.pretrain.distributed import Ranks

pytestmark = mm
PLAIN, NAME = "ade20k_upernet_swin_160k", "ade20k_upernet_swin_160k_tta"
CLASSES = f"classes={len(ADE_CLASSES)}"
SCALES = [(48 + 12 * i, 32 + 8 * i) for i in range(6)]  # of `tiny`


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A drawn set, a checkpoint, and a model as the plain recipe would leave it (last.pth)."""
    build()
    from selfpatch_bench.benchmarks.backbones.conv import timm_network

    folder = tmp_path_factory.mktemp("tta")
    make_ade20k(folder / "ade20k", (1, 1), (48, 80))
    torch.manual_seed(0)
    save_weights(folder / "net.safetensors", timm_network(CARDS["swin"]).state_dict(), CARDS["swin"])
    cfg, _ = configured(PLAIN, *tiny(PLAIN), CLASSES, data=folder / "ade20k", world=1, device="cpu")
    model = model_of(cfg)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)  # so that the classes differ from place to place
    torch.save({"state_dict": model.state_dict()}, folder / "last.pth")
    return folder


@pytest.fixture(scope="module")
def loaded(place):
    """(model of the recipe with the plain one's weights, its validation batches)."""
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    cfg, _ = configured(NAME, *tiny(NAME), CLASSES, data=place / "ade20k", world=1, device="cpu")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    model = model_of(cfg)
    model.load_state_dict(torch.load(place / "last.pth", weights_only=True)["state_dict"], strict=True)
    return model.eval(), list(loader)


def by_hand(model, path):
    """[C, H, W] mean of the class probabilities of twelve views, made without mm's pipelines and post-processing."""
    import mmcv

    image = np.asarray(Image.open(path).convert("RGB"))
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (CARDS["swin"].mean, CARDS["swin"].std))
    total = 0
    for scale in SCALES:
        view = torch.from_numpy(mmcv.imrescale(image, scale)).permute(2, 0, 1).float()
        for flip in (False, True):
            x = ((view.flip(2) if flip else view) - mean) / std
            logits = model.decode_head(model.backbone(x[None]))
            logits = F.interpolate(logits, x.shape[1:], mode="bilinear")
            logits = F.interpolate(logits, image.shape[:2], mode="bilinear")[0]
            total = total + (logits.flip(2) if flip else logits).softmax(0)
    return total / 12


def test_the_prediction_is_the_largest_mean_probability(loaded):
    from mmseg.models import SegTTAModel

    model, batches = loaded
    wrapped = SegTTAModel(module=super_of(model))
    for batch in batches:
        with torch.no_grad():
            (found,) = model.test_step(batch)
            (theirs,) = wrapped.test_step(batch)
            want = by_hand(model, found.img_path)
        assert found.pred_sem_seg.data.shape == (1, *found.ori_shape)
        assert torch.equal(found.pred_sem_seg.data, theirs.pred_sem_seg.data)
        assert "seg_logits" not in found
        assert torch.equal(found.gt_sem_seg.data, theirs.gt_sem_seg.data)
        assert found.gt_sem_seg.data.shape == (1, *found.ori_shape)  # at the picture's own size, not flipped
        two, _ = want.topk(2, 0)
        clear = two[0] - two[1] > 1e-5
        assert clear.float().mean() > 0.99
        assert torch.equal(found.pred_sem_seg.data[0][clear], want.argmax(0)[clear])
        assert len(found.pred_sem_seg.data.unique()) > 1


def super_of(model):
    """The same network as mmseg's own class, which SegTTAModel wraps."""
    from mmseg.models import EncoderDecoder

    plain = object.__new__(EncoderDecoder)
    plain.__dict__ = model.__dict__
    return plain


def test_one_training_gives_both_numbers(place, loaded):
    """mmengine's own loop with the plain recipe's last.pth; what it counts is what the model predicts."""
    from selfpatch_bench.benchmarks.mm import launch

    asked = training(NAME, *tiny(NAME), CLASSES, export=place / "net.safetensors", data=place / "ade20k", limit=None)
    asked = replace(asked, out=str(place), eval_only=str(place / "last.pth"))
    found = launch.train_and_test(build(), asked, Ranks("cpu"))
    model, batches = loaded
    right = count = 0
    with torch.no_grad():
        for batch in batches:
            (sample,) = model.test_step(batch)
            truth = sample.gt_sem_seg.data
            right += (sample.pred_sem_seg.data == truth)[truth != 255].sum().item()
            count += (truth != 255).sum().item()
    assert found["metrics"]["aAcc"] == pytest.approx(100 * right / count)
    assert found["protocol"]["id"] == "ade20k-upernet-swin-160k-tta-v1"
    pipeline = found["protocol"]["config"]["val_dataloader"]["dataset"]["pipeline"]
    assert [view["scale"] for view in pipeline[1]["transforms"][0]] == [list(scale) for scale in SCALES]


def test_the_recipe_says_the_views_of_the_protocol():
    cfg, _ = configured(NAME)
    scales, flips, _, _ = cfg.val_dataloader.dataset.pipeline[1].transforms
    assert [tuple(view.scale) for view in scales] == [
        (1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896),
    ]  # fmt: skip
    assert all(view.keep_ratio for view in scales)
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    plain, _ = configured(PLAIN)
    for part in ("train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg"):
        assert cfg[part] == plain[part]
