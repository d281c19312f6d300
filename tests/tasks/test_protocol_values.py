"""Values of every task are held against their types, their bounds and the network's card, without any data."""

import pytest

from selfpatch_bench.benchmarks.run.options import Options
from selfpatch_bench.benchmarks.run.plan import parse
from selfpatch_bench.benchmarks.tasks._registry import get_task, tasks
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError

VIT = Card("vit", 16, 48, 2, 4, mean=(0.5,) * 3, std=(0.5,) * 3).as_dict()
STAGES = {"blocks": (1, 1, 1, 1), "widths": (8, 16, 32, 64), "stem_channels": 8, "bn_eps": 1e-5}
RESNET = Card("resnet", block="basic", mean=(0.5,) * 3, std=(0.5,) * 3, **STAGES).as_dict()
OWN = Card("mine", strides=(4, 12), widths=(3, 3), mean=(0.5,) * 3, std=(0.5,) * 3).as_dict()


def check(task: str, card: dict, *given: str):
    """Parse `key=value` and hold it against the card; -> the protocol's values."""
    values, _ = parse({task: get_task(task)}, Options(overrides=list(given)))[task]
    get_task(task).check_card(values, card)
    return values


@pytest.mark.parametrize(
    ("task", "value", "said", "card"),
    [
        ("davis", "block=4", "the network has stages 0 to 3, or -1 for the last; nearest: 3", RESNET),
        ("davis", "context=1000000000000000000000", "whole numbers have 64 bits here", RESNET),
        ("davis", "size=100000000", "at most 8192", RESNET),
        ("knn", "crop=100000000", "at most 8192", RESNET),
        ("davis", "size=15", "frames of less than a patch (16 pixels); nearest: 16", RESNET),
        ("knn", "crop=8", "crop=8: less than a patch of the network; nearest: 16", VIT),
        ("knn", "k=none", "k is a whole number", VIT),
        ("knn", "other_k=10", "other_k is a list of whole numbers", VIT),
        ("knn", "temperature=.inf", "temperature=inf: it must be finite and above 0", VIT),
        ("knn", "precision=fp16", "float32 or bf16", VIT),
        ("linear", "blocks=9", "blocks=9: the network has 2; nearest: 2", VIT),
        ("linear", "blocks=2", "for networks with a class token", RESNET),
        ("linear", "avgpool=maybe", "avgpool is true or false or none", VIT),
        ("linear", "crop=8", "nearest: 16", VIT),
        ("linear_sweep", "blocks=3", "nearest: 2", VIT),
        ("copydays", "size=11", "size=11: less than a patch of the network; nearest: 12", OWN),
        ("hummingbird_voc", "size=100", "no whole number of the network's patches of 16 pixels; nearest: 96", VIT),
        ("hummingbird_voc", "size=100", "no whole number of the network's patches of 12 pixels; nearest: 96", OWN),
        ("hummingbird_voc", "std=[0.5]", "std=[0.5]: three numbers are needed", VIT),
        ("hummingbird_voc", "mean=[]", "mean=[]: three numbers are needed", VIT),
        ("seg_knn", "k=[]", "k=[]: at least one value is needed to choose from", VIT),
        ("seg_logreg", "c=[]", "c=[]: at least one value is needed to choose from", VIT),
        ("linear_sweep", "rates=[0.1,0]", "rates[1]=0.0: it must be above 0", VIT),
        ("coco_maskrcnn_1x", "blocks=0,1,2,9", "the network has 2 blocks, 0 to 1", VIT),
        ("ade20k_semfpn_40k", "iterations=0", "a whole number of at least 1", VIT),
    ],
)
def test_one_line_with_what_is_valid(task, value, said, card):
    with pytest.raises(UserError) as caught:
        check(task, card, value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_are_checked_without_a_run(tmp_path):
    """As `selfpatch doctor` does it: flags of a task's own have their defaults there."""
    for name in tasks():
        with pytest.raises(UserError):
            get_task(name).check_data(tmp_path)


def test_what_is_valid_passes():
    assert check("davis", VIT, "block=-2", "bound=3", "radius=none").radius is None
    assert check("knn", VIT, "crop=16").crop == 16
    assert check("linear", VIT, "blocks=2", "avgpool=none").avgpool is None
    assert check("hummingbird_voc", OWN, "mean=none").size is None
