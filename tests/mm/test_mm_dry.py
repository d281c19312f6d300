"""The evaluation is tried before the first training step: what breaks it costs seconds, and the training no bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mm_building import build, mm
from mm_building import training as training_of
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.demo_full import SMALL_ADE, SMALL_COCO, SMALL_FPN
from selfpatch_bench.benchmarks.mm import launch
from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights
from selfpatch_bench.pretrain.distributed import Ranks

pytestmark = mm
COCO, ADE = "coco_maskrcnn_1x", "ade20k_semfpn_40k"
CARD = Card("vit", 16, 24, 4, 2, False, False, pos="learned 4x4", readout="mean", mean=(0.5,) * 3, std=(0.5,) * 3)
VALUES = {  # drop path and dropout draw random numbers; of two pictures a step is made
    COCO: (
        *(v for v in SMALL_COCO if v != "warmup=0"),
        "batch=2",
        "per_gpu=2",
        "model.backbone.drop_path=0.5",
        "epochs=1",
    ),
    ADE: (*SMALL_ADE, *SMALL_FPN, "batch=2", "per_gpu=2", "model.backbone.drop_path=0.5", "iterations=2"),
}
MAKE = {COCO: make_coco, ADE: make_ade20k}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    torch.manual_seed(0)
    save_weights(folder / "net.safetensors", Encoder(CARD).vit.state_dict(), CARD)
    for name, make in MAKE.items():
        make(folder / name, (4, 3), (64, 96))
    return folder


def described(place, name, out, *values, data=None, **more):
    chosen = training_of(
        name, *VALUES[name], *values, export=place / "net.safetensors", data=data or place / name, **more
    )
    chosen.out = str(out)
    out.mkdir(parents=True, exist_ok=True)
    return chosen


def work(training) -> dict:
    """What the processes of a training do, in this one."""
    with Ranks("cpu", training.out) as ranks:
        return launch.train_and_test(build(), training, ranks)


@pytest.mark.parametrize("name", [COCO, ADE])
def test_a_training_is_the_same_with_and_without_it(place, tmp_path, monkeypatch, name):
    """Weights, optimiser, batch-norm statistics and figures, to the last bit, also of an evaluation after another one
    on the same annotations."""
    from selfpatch_bench.benchmarks.mm.evaluation import dry

    found, tried = [], []
    for kind in ("with", "without"):
        if kind == "without":
            monkeypatch.setattr(dry, "rehearse", lambda *_: tried.append(1))
        result = work(described(place, name, tmp_path / kind))
        state = torch.load(tmp_path / kind / "last.pth", weights_only=True)
        found.append((state["state_dict"], state["optimizer"]["state"], result["metrics"]))
        found[-1] += (json.dumps([state["param_schedulers"], result["parts"], result["protocol"]]),)
    assert tried == [1]
    torch.testing.assert_close(found[0][:3], found[1][:3], rtol=0, atol=0)
    assert found[0][3] == found[1][3]
    if name == COCO:  # whose warm-up of 1000 iterations is longer than the run of two, which only its pictures say
        assert result["protocol"]["warmup"] == 2
        assert [
            s["end"] for s in (result["protocol"]["config"]["param_scheduler"][0], state["param_schedulers"][0])
        ] == [3, 3]


@pytest.fixture(scope="module")
def runners(place, tmp_path_factory):
    """Runners as they are before the first step, their data in a folder of their own."""
    from mmengine.runner import Runner

    made = {}
    for name in MAKE:
        data = shutil.copytree(place / name, tmp_path_factory.mktemp("data") / name)
        training = described(place, name, tmp_path_factory.mktemp("out"), data=data)
        with Ranks("cpu", name) as ranks:
            cfg, _ = build().config(training, CARD, 1, "cpu")
            launch.prepare(cfg, training, ranks)
            made[name] = Runner.from_cfg(cfg), data
            assert made[name][0].test_loop  # is made in this one's scope
    return made


def nms_of_another_name(runner, data, patch):
    patch.setitem(runner.model.roi_head.test_cfg, "score_thr", 1.0)  # as of 80 classes, where nothing is likely enough
    patch.setitem(runner.model.roi_head.test_cfg, "nms", {"type": "nmms", "iou_threshold": 0.5})


def op_that_is_absent(runner, data, patch):
    def absent(*_, **__):
        raise ImportError("nms was not compiled")

    patch.setattr("mmdet.models.layers.bbox_nms.batched_nms", absent)


def threshold_of_masks(runner, data, patch):
    patch.setitem(runner.model.roi_head.test_cfg, "mask_thr_binary", "half")


def too_many_classes(runner, data, patch):
    patch.setattr(runner.test_loop.evaluator.metrics[0], "dataset_meta", {"classes": ("round", "polygon", "star", "x")})


def broken_mask(runner, data, patch):
    api = runner.test_loop.evaluator.metrics[0]._coco_api
    last = api.anns[max(api.anns)]  # of a picture that is not the first
    patch.setitem(last, "segmentation", {"size": [64, 96], "counts": "no run lengths"[:3]})


def unreadable_picture(runner, data, patch):
    sorted(data.rglob("val*/*.jpg"))[0].write_bytes(b"no picture")


def no_stride(runner, data, patch):
    patch.setattr(runner.model, "test_cfg", type(runner.model.test_cfg)(mode="slide", crop_size=(32, 32)))


def unreadable_map(runner, data, patch):
    sorted((data / "annotations/validation").glob("*.png"))[-1].write_bytes(b"no map")


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        (COCO, nms_of_another_name, "nmms"),
        (COCO, op_that_is_absent, "ImportError: nms was not compiled"),
        (COCO, threshold_of_masks, "TypeError"),
        (COCO, too_many_classes, "4 classes, of which the set has 3"),
        (COCO, broken_mask, ""),
        (COCO, unreadable_picture, "cannot be read as a picture"),
        (ADE, no_stride, "stride"),
        (ADE, unreadable_map, r"\S+\.png: "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_breaks_the_evaluation_is_said_before_the_first_step(runners, monkeypatch, name, fault, words):
    """And nothing of it is left: modes, results, thresholds."""
    from selfpatch_bench.benchmarks.mm.evaluation import dry

    runner, data = runners[name]
    runner.model.train()
    fault(runner, data, monkeypatch)
    threshold = name == COCO and runner.model.roi_head.test_cfg["score_thr"]
    with pytest.raises(UserError, match=rf"^tried before the first training step, the evaluation fails: .*{words}"):
        dry.DryEvaluation().before_train(runner)
    assert runner.model.training
    assert not runner.test_loop.evaluator.metrics[0].results
    assert threshold == (name == COCO and runner.model.roi_head.test_cfg["score_thr"])


def test_an_evaluation_that_fails_after_the_training_names_the_weights(runners, monkeypatch):
    from selfpatch_bench.benchmarks.mm.evaluation import dry

    runner, data = runners[ADE]
    no_stride(runner, data, monkeypatch)
    with pytest.raises(
        UserError, match=r"training is complete.* --eval-only \S+/last\.pth; the reason: AttributeError"
    ):
        dry.evaluate_trained(runner)
