"""Recipes, overrides and their errors."""

import dataclasses
import re

import pytest

from selfpatch_bench.pretrain import options
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import OBJECTIVES, from_dict, load_recipe, to_dict
from selfpatch_bench.pretrain.data.views import Mask, Views, ViewSpec
from selfpatch_bench.pretrain.options import Config, ObjectiveEntry, comments
from selfpatch_bench.pretrain.recipes import RECIPES


def test_selfpatch_is_the_published_recipe():
    cfg = load_recipe("selfpatch")
    dino, selfpatch = cfg.objectives
    assert [(e.name, e.weight) for e in cfg.objectives] == [("dino", 1.0), ("selfpatch", 0.1)]
    assert (dino.options.outputs, dino.options.centre_views) == (65536, "all")
    assert (selfpatch.options.outputs, selfpatch.options.k, selfpatch.options.radius) == (4096, 4, 1)
    assert selfpatch.options.wrap is True
    assert selfpatch.options.aggregation == "class_attention"
    assert {(o.options.hidden, o.options.bottleneck, o.options.norm_last_layer) for o in cfg.objectives} == {
        (2048, 256, True)
    }
    assert [(r.count, r.size, tuple(r.scale), r.blur_p, r.solarize_p) for r in cfg.views.rows] == [
        (1, 224, (0.25, 1.0), 1.0, 0.0),
        (1, 224, (0.25, 1.0), 0.1, 0.2),
        (8, 96, (0.05, 0.25), 0.5, 0.0),
    ]
    assert (cfg.network.class_token, cfg.network.readout, cfg.network.drop_path) == (False, "class_attention", 0.1)
    assert (cfg.loop.epochs, cfg.loop.batch, cfg.checkpoint.keep_every) == (200, 1024, 10)


def test_dino_is_the_published_recipe():
    cfg = load_recipe("dino")
    assert [tuple(r.scale) for r in cfg.views.rows] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert (cfg.network.class_token, cfg.network.readout) == (True, "token")
    assert (cfg.loop.epochs, cfg.loop.batch, cfg.checkpoint.keep_every) == (100, 512, 20)
    assert cfg.objectives[0].options.centre_views == "global"


@pytest.mark.parametrize("recipe", sorted(RECIPES.scan()))
def test_every_recipe_is_valid_and_says_where_it_comes_from(recipe):
    cfg = load_recipe(recipe)
    assert cfg.recipe == recipe
    header = [line for line in RECIPES.get(recipe).path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(header)
    assert all(word in text for word in ("Source:", "Faithful", "Command:", "Expected:")), text
    assert from_dict(to_dict(cfg)) == cfg


OVERRIDES = {
    "loop.batch=64": lambda c: c.loop.batch == 64,
    "schedule.lr=5e-4": lambda c: c.schedule.lr == 5e-4,
    "network.backbone=vit_tiny_patch8": lambda c: c.network.backbone == "vit_tiny_patch8",
    "network.overrides={depth: 2}": lambda c: c.network.overrides == {"depth": 2},
    "network.overrides.depth=2": lambda c: c.network.overrides == {"depth": 2},
    "network.class_token=null": lambda c: c.network.class_token is None,
    "views.rows.2.count=4": lambda c: c.views.rows[2].count == 4,
    "views.rows[2].scale=[0.1,0.2]": lambda c: tuple(c.views.rows[2].scale) == (0.1, 0.2),
    "views.rows=[{size: 64, count: 2}]": lambda c: [(r.size, r.count) for r in c.views.rows] == [(64, 2)],
    "optim.freeze=[]": lambda c: c.optim.freeze == [],
    "optim.clip=null": lambda c: c.optim.clip is None,
    "objectives.selfpatch.weight=0": lambda c: [e.weight for e in c.objectives] == [1, 0],
    "objectives.1.k=8": lambda c: c.objectives[1].options.k == 8,
    "objectives.selfpatch={k: 8, weight: 0.5}": lambda c: (
        (c.objectives[1].options.k, c.objectives[1].weight) == (8, 0.5)
    ),
    "objectives.selfpatch.radius=all": lambda c: c.objectives[1].options.radius == "all",
    "objectives.selfpatch.radius=2": lambda c: c.objectives[1].options.radius == 2,
    "objectives=[{name: dino, head: h}]": lambda c: [(e.name, e.options.head) for e in c.objectives] == [("dino", "h")],
    "data.path=/some where/a=b": lambda c: c.data.path == "/some where/a=b",
}


@pytest.mark.parametrize("text", OVERRIDES)
def test_overrides(text):
    cfg = load_recipe("selfpatch", [text])
    assert OVERRIDES[text](cfg)
    assert from_dict(to_dict(cfg)) == cfg


ERRORS = {
    "loop.bacth=64": "no loop.bacth; in loop there are: epochs, steps, batch",
    "lop.batch=64": "no lop; there are: recipe, seed",
    "loop=64": "in loop there are: epochs",
    "loop.batch=many": "loop.batch=many",
    "loop.batch=2.5": "could not be converted to Integer",
    "loop.batch=0": "at least 1",
    "loop.batch": "written as key=value",
    "loop.batch.size=3": "loop.batch is a single value",
    "loop.precision=half": "auto, float32, bf16, fp16 or float64",
    "optim.clip_mode=all": "per_tensor or global",
    "optim.clip=0": "above 0",
    "optim.freeze=[a": "not valid yaml",
    "views.rows.3.size=64": "views.rows has rows 0 to 2",
    "views.rows.0.siz=64": "in views.rows.0 there are: count, size",
    "views.rows.0.scale=[0.5,0.2]": "scale",
    "objectives.moby.weight=1": "there are: dino, selfpatch",
    "objectives.selfpatch.K=4": "no K; there are: head, outputs",
    "objectives.selfpatch=4": "objectives.selfpatch=4: not an option; in objectives.selfpatch there are: head, outputs",
    "objectives.selfpatch={K: 4}": "objectives.selfpatch: there is no K; there are: head, outputs",
    "objectives.selfpatch.k=four": "k=four",
    "objectives=[{name: dyno}]": "no objective called dyno; there are: dino, ",
    "objectives=dino": "objectives is a list",
    "objectives=[{weight: 1}]": "needs a name",
    "objectives=[{name: dino, weight: 0}]": "at least one with a weight",
    "objectives=[{name: dino}, {name: dino}]": "listed twice",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_what_is_valid(text):
    with pytest.raises(UserError) as error:
        load_recipe("selfpatch", [text])
    assert ERRORS[text] in str(error.value)
    assert "\n" not in str(error.value)


# Numbers that no run can have: option=value -> what it must be.
ABSURD = {
    "log.every=0": "at least 1",
    "log.every=-1": "at least 1",
    "data.workers=-1": "at least 0 and at most 1024",
    "data.prefetch=0": "at least 1 and at most 1024",
    "data.std=[0,0,0]": "above 0 and at most 1",
    "data.std=[0.2,.nan,0.2]": "finite and above 0 and at most 1",
    "data.mean=[0.5,0.5,1.5]": "at least 0 and at most 1",
    "checkpoint.every_steps=-2": "at least 1",
    "checkpoint.keep_every=-1": "at least 0",
    "schedule.lr=-1": "at least 0 and at most 1000",
    "schedule.lr=.nan": "finite and at least 0",
    "schedule.lr=nan": "finite and at least 0",
    "schedule.min_lr=.inf": "finite and at least 0",
    "schedule.weight_decay=-0.1": "at least 0",
    "schedule.warmup_epochs=-.inf": "finite and at least 0",
    "schedule.ema=2.0": "at least 0 and at most 1",
    "schedule.ema_end=-0.5": "at least 0 and at most 1",
    "schedule.ema_shift=-1": "at least 0",
    "schedule.lr_batch=0": "at least 1",
    "optim.freeze_epochs=-1": "at least 0",
    "optim.betas=[0.9,1.0]": "at least 0 and below 1",
    "optim.eps=0": "above 0",
    "optim.clip=-3": "above 0",
    "loop.epochs=-3": "at least 1",
    "loop.steps=0": "at least 1",
    "loop.accumulation=0": "at least 1",
    "loop.epochs=1000000000000": "at most 100000000",
    "network.drop_path=1.2": "at least 0 and below 1",
    "network.readout_depth=0": "at least 1",
    "network.image_size=-8": "at least 1",
    "network.overrides={depth: 0}": "at least 1",
    "network.overrides={embed_dim: 32, num_heads: 0}": "at least 1",
    "network.overrides={init_values: .nan}": "finite",
    "views.rows.0.flip=1.5": "at least 0 and at most 1",
    "views.rows.1.size=0": "at least 1",
    "views.rows.1.jitter=[0.4,.inf,0.2,0.1]": "finite and at least 0",
    "views.rows.2.count=-1": "at least 0",
    "views.rows.2.blur_radius=[-1,2]": "at least 0",
    "views.rows=[{size: 64, count: 2, gray_p: -0.1}]": "at least 0 and at most 1",
    "views.mask.aspect=[0,2]": "at least 0.01",
    "objectives.dino.weight=-1": "at least 0",
    "objectives.selfpatch.weight=.nan": "finite and at least 0",
    "objectives.dino.student_temperature=0": "above 0",
    "objectives.dino.centre_momentum=1.5": "at least 0 and at most 1",
    "objectives.dino.outputs=0": "at least 1",
    "objectives.selfpatch.teacher_temperature_epochs=-1": "at least 0",
    "objectives=[{name: moby, queue: -4}]": "at least 1",
    "objectives=[{name: sere, channel_temperature: 0}]": "above 0",
    "watch.every=0": "at least 1",
    "watch.size=0": "at least 1",
    "seed=-1": "at least 0",
}


@pytest.mark.parametrize("text", ABSURD)
def test_absurd_numbers(text):
    """One line with the option, its value and what it can be."""
    with pytest.raises(UserError) as error:
        load_recipe("selfpatch", [text])
    name, must = re.fullmatch(r"(\S+)=.+: (?:it|each) must be (.*)", str(error.value)).groups()
    key = text.partition("=")[0].replace(".rows.", ".rows[")
    assert name.replace("]", "").startswith(key)
    assert ABSURD[text] in must


def numbers(options: type, name: str):
    """(name, field) of all numeric fields of a dataclass, and of those inside it."""
    for one in dataclasses.fields(options):
        inner = one.default_factory if dataclasses.is_dataclass(one.default_factory) else None
        if inner:
            yield from numbers(inner, f"{name}.{one.name}")
        elif {"int", "float"} & set(re.findall(r"\w+", str(one.type))):
            yield f"{name}.{one.name}", one


OPTIONS = [plugin.module.Config for plugin in OBJECTIVES.scan().values()]


@pytest.mark.parametrize("options", [Config, ViewSpec, *OPTIONS], ids=lambda o: o.__module__.rpartition(".")[2])
def test_every_number_has_bounds(options):
    """Whoever adds an option says what it can be."""
    found = dict(numbers(options, options.__name__))
    assert [name for name, one in found.items() if "bounds" not in one.metadata and "radius" not in name] == []


SECTIONS = [f.type for f in dataclasses.fields(Config) if getattr(f.type, "__module__", "") == options.__name__]


@pytest.mark.parametrize("section", [*SECTIONS, Config, ObjectiveEntry, Views, ViewSpec, Mask, *OPTIONS])
def test_every_option_has_a_comment(section):
    said = comments(section)
    assert [
        f.name for f in dataclasses.fields(section) if f.name not in said and not dataclasses.is_dataclass(f.type)
    ] == []


def test_comments_of_a_base_and_of_several_lines():
    @dataclasses.dataclass
    class Base:
        """radius: is no comment."""

        # How far,
        # in patches.
        radius: int = 1
        k: int = 4

    @dataclasses.dataclass
    class Own(Base):
        # Of neighbours.
        k: int = 8

    assert comments(Own) == {"radius": "How far, in patches.", "k": "Of neighbours."}


def test_numbers_of_a_plugin_are_finite(tmp_path, monkeypatch):
    """An objective that says no bounds, as one of a user's may, still gets no NaN."""
    (tmp_path / "objectives").mkdir()
    text = "from dataclasses import dataclass\n@dataclass\nclass Config:\n    scale: float = 1.0\n"
    (tmp_path / "objectives/mine.py").write_text(text + "class Objective: pass\n")
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path))
    assert load_recipe("selfpatch", ["objectives=[{name: mine, scale: -3}]"]).objectives[0].options.scale == -3
    with pytest.raises(UserError, match=r"^objectives\.mine\.scale=nan: it must be finite$"):
        load_recipe("selfpatch", ["objectives=[{name: mine, scale: .nan}]"])


def test_recipes_that_are_not():
    with pytest.raises(UserError, match="no recipe called sealpatch; there are: dino, "):
        load_recipe("sealpatch")
    with pytest.raises(UserError, match="no such file"):
        load_recipe("nothing/here.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network: [", "not yaml"),
        ("- a", "holds no options"),
        ("network: {bakbone: x}", "bakbone"),
        ("netwrk: {backbone: x}", "there is no netwrk"),
        ("objectives: [{name: dino, weights: 2}]", "no weights; there are"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_recipe(str(path))


def test_a_recipe_from_a_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("views: {rows: [{count: 2, size: 64}]}\nobjectives: [{name: dino, weight: 1}]\n")
    cfg = load_recipe(str(path), ["loop.batch=4"])
    assert (cfg.recipe, cfg.loop.batch, cfg.views.rows[0].size) == ("own", 4, 64)


def test_options_are_plain_dataclasses():
    cfg = load_recipe("selfpatch")
    assert all(dataclasses.is_dataclass(e.options) for e in cfg.objectives)
    module = OBJECTIVES.get("selfpatch").module
    assert type(cfg.objectives[1].options) is module.Config


def test_per_gpu_and_accumulation():
    """Of a ceiling and a number of micro-steps the later one holds; stored configurations have either."""
    stored = to_dict(load_recipe("dino", ["loop.accumulation=2"]))
    given = {
        (): 2,
        ("loop.per_gpu=32",): None,
        ("loop={per_gpu: 32}",): None,
        ("loop.per_gpu=32", "loop.accumulation=4"): 4,
        ("loop.accumulation=4", "loop.per_gpu=32"): None,
    }
    for values, expected in given.items():
        assert from_dict(stored, values).loop.accumulation == expected, values
