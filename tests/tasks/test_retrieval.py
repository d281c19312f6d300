"""Copy detection and retrieval: equal to the official code on drawn pictures (tests/golden/drawn) and shared ones."""

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frozen import BOTH, DRAWN, golden_of, run_task
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.commands.compare import verdict_of
from selfpatch_bench.benchmarks.datasets.retrieval.copydays import open_copydays
from selfpatch_bench.benchmarks.datasets.retrieval.revisited import open_revisited, read_relevant
from selfpatch_bench.benchmarks.metrics.ranking import average_precision, precision_at
from selfpatch_bench.benchmarks.results.record import Model, Record
from selfpatch_bench.benchmarks.tasks._registry import get_task
from selfpatch_bench.benchmarks.tasks._retrieval import TokenAndGem, Whitening, multi_scale
from selfpatch_bench.benchmarks.tasks.copydays import Squeeze
from selfpatch_bench.benchmarks.tasks.revisited import Thumbnail, scores

FEATURES = 1e-5  # max|a-b| / max|b|: float32 sums in another order
POINTS = 0.01  # of 100: average precisions are fractions of ranks, and equal where no two similarities tie


def relative(a, b) -> float:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float((a - b).abs().max() / b.abs().max())


def picture(encoder, prepare, path: Path) -> torch.Tensor:
    image = prepare(np.asarray(Image.open(path).convert("RGB"))).copy()
    return encoder.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])


@BOTH
def test_copydays_equals_the_official_code(golden, tmp_path):
    place = golden_of(golden)
    want, _ = place.read("copydays")
    encoder, root = place.network(tmp_path, "copydays"), place.data["copydays"]
    for case, parts in want["mAP"].items():
        given = {what: place.data[what] for what in ("distractors", "whitening") if what[:6] in case}
        found = run_task("copydays", encoder, root, **given)
        assert set(found["metrics"]) == {f"mAP_{block.replace('/', '_')}" for block in parts}
        for block, value in parts.items():
            assert abs(found["metrics"][f"mAP_{block.replace('/', '_')}"] - 100 * value) < POINTS, (case, block)
        counts = {name: len(values) for name, values in found["parts"]["queries"].items()}
        assert counts == {f"mAP_{block.replace('/', '_')}": count for block, count in want["blocks"].items()}
        if "distractors" in given:
            assert found["protocol"]["database"] == want["database"]
    files = sorted((root / "original").glob("*.jpg"))
    extract = TokenAndGem(4.0, 1e-6, token=True)
    raw = [extract(encoder, picture(encoder, Squeeze(320), path)) for path in files[: len(want["query_raw"])]]
    assert relative(torch.nn.functional.normalize(torch.cat(raw), dim=1), want["query_raw"]) < FEATURES


RESULTS = {"multiscale": ("multiscale=true",), "cropped": ("cropped=true",)}


@BOTH
def test_retrieval_equals_the_official_code(golden, tmp_path):
    place = golden_of(golden)
    want = place.read("retrieval")[0]["results"]
    encoder, root = place.network(tmp_path, "retrieval"), place.data["revisited"]
    for case, numbers in want.items():
        size, _, more = case.partition("_")
        values = [value for word, some in RESULTS.items() if word in more for value in some]
        found = run_task("roxford5k", encoder, root, f"size={size}", *values)
        metrics, queries = found["metrics"], found["parts"]["queries"]
        for name, value in numbers.items():
            if name.startswith("AP_"):
                ours = queries[f"m{name}"]
                assert [x is None for x in ours] == [x is None for x in value], (case, name)
                assert all(abs(x - 100 * y) < POINTS for x, y in zip(ours, value, strict=True) if y is not None)
            elif name.startswith("m"):
                assert abs(metrics[name] - value) < POINTS, (case, name)
        if "cropped" not in case:
            names = read_relevant(root / "roxford5k/gnd_roxford5k.pkl")[1]
            x = picture(encoder, Thumbnail(int(size)), root / f"roxford5k/jpg/{names[0]}.jpg")
            vector = multi_scale(encoder, x) if values else encoder(x).image
            vector = torch.nn.functional.normalize(vector, dim=1)[0]
            assert relative(vector, torch.tensor(numbers["query_feature_0"])) < FEATURES


def test_paris_and_oxford_are_seen_as_their_script_sees_them():
    oxford, paris = (get_task(name).protocol() for name in ("roxford5k", "rparis6k"))
    assert (oxford.size, oxford.multiscale, oxford.cropped) == (224, False, False)
    assert (paris.size, paris.multiscale, paris.cropped) == (512, True, False)
    assert get_task("roxford5k:cropped").published == ()


# --- Ranks


def test_average_precision_by_hand():
    assert average_precision([0], 1) == 1
    assert average_precision([1], 1) == (0 + 1 / 2) / 2
    assert average_precision([0, 2], 4) == pytest.approx((1 + 1 + 1 / 2 + 2 / 3) / 2 / 4)
    assert average_precision([], 3) == 0
    assert precision_at([0, 3], 10) == 2 / 4  # up to the last positive
    assert precision_at([0, 3], 1) == 1
    assert precision_at([5], 1) == 0


def test_junk_is_taken_away_and_queries_without_positives_are_left_out():
    class One:
        def __init__(self, easy, hard, junk):
            self.easy, self.hard, self.junk = (np.array(x, np.int64) for x in (easy, hard, junk))

    ranking = np.array([4, 0, 1, 2, 3])
    metrics, parts = scores([ranking, ranking], [One([0], [], [4]), One([], [2], [4, 0])])
    assert parts["queries"] == {"mAP_E": [100, None], "mAP_M": [100, 25], "mAP_H": [None, 25]}
    assert metrics["mAP_M"] == 62.5
    assert metrics["mP@1_H"] == 0


def test_the_corrected_whitening_makes_every_direction_vary_alike():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)).double() @ torch.randn(6, 6).double() + 3
    centred = Whitening(x, 1e-5, centred=True)(x)
    assert relative(centred.T @ centred / len(x), torch.eye(6).double()) < 1e-9
    faithful = Whitening(x, 1e-5, centred=False)(x)
    assert relative(faithful.T @ faithful / len(x), torch.eye(6).double()) > 0.1


def test_without_a_class_token_the_mean_is_alone(tmp_path):
    encoder = golden_of("drawn").network(tmp_path, "copydays")
    images = torch.randn(2, 3, 48, 48)
    both, alone = (TokenAndGem(4.0, 1e-6, token)(encoder, images) for token in (True, False))
    assert torch.equal(both[:, -alone.shape[1] :], alone)
    assert both.shape[1] == 2 * alone.shape[1]


def test_compare_pairs_queries():
    def record(values):
        model = Model("x", "sha256:0")
        return Record("k", model, "copydays", metrics={"mAP_strong": 1.0}, parts={"queries": {"mAP_strong": values}})

    worse, better = [10.0, 20, None, 30, 40, 50, 60], [11.0, 22, 5, 33, 44, 55, 66]
    verdict = verdict_of([record(worse)], [record(better)], "mAP_strong")
    assert (verdict.n, verdict.difference) == (6, 3.5)
    assert "6 queries" in verdict.how


# --- What can be wrong with the data


@pytest.fixture
def copies(tmp_path) -> Path:
    shutil.copytree(DRAWN / "data/copydays", tmp_path / "copydays")
    return tmp_path / "copydays"


def test_a_picture_smaller_than_a_patch_is_named(tmp_path):
    place = golden_of("drawn")
    shutil.copytree(place.data["revisited"], tmp_path / "small")
    narrow = sorted((tmp_path / "small/roxford5k/jpg").iterdir())[3]
    Image.new("RGB", (60, 3)).save(narrow)
    with pytest.raises(UserError, match=f"{narrow.name}: a 3x60 image is smaller than a patch"):
        run_task("roxford5k", place.network(tmp_path, "retrieval"), tmp_path / "small")


def test_copydays_says_what_is_wrong(copies):
    found = open_copydays(copies)
    assert get_task("copydays").check_data(copies).fingerprint == found.fingerprint  # as `selfpatch doctor` looks
    assert not found.official
    assert "no distractors, no whitening" in found.differs
    assert "16 of 18 other blocks are absent" in found.differs
    extra = sorted((copies / "crops/50").glob("*"))[0]
    shutil.copy(extra, extra.with_name("999.jpg"))
    with pytest.raises(UserError, match=r"crops/50: 21 pictures, but original/ has 20"):
        open_copydays(copies)
    extra.with_name("999.jpg").unlink()
    shutil.copy(extra, copies / "strong/x999.jpg")
    with pytest.raises(UserError, match=r"strong/x999.jpg: is a copy of no original: .* begins with x999"):
        open_copydays(copies)
    with pytest.raises(UserError, match=r"--whitening: .*no such file"):
        open_copydays(DRAWN / "data/copydays", whitening=copies / "absent")
    shutil.rmtree(copies / "strong")
    with pytest.raises(UserError, match="no strong"):
        open_copydays(copies)


def test_what_lies_beside_is_part_of_the_data(copies, tmp_path):
    distractors = tmp_path / "more"
    shutil.copytree(copies / "strong", distractors)
    plain, with_more = open_copydays(copies), open_copydays(copies, distractors=distractors)
    assert "20 distractors instead of 10000" in with_more.differs
    next(distractors.iterdir()).unlink()
    marks = {plain.fingerprint, with_more.fingerprint, open_copydays(copies, distractors).fingerprint}
    assert len(marks) == 3
    assert open_copydays(copies, limit=3).content.originals.picks.size == 20  # the database stays whole
    assert [len(block.pictures) for block in open_copydays(copies, limit=3).content.blocks] == [3] * 4


@pytest.fixture
def oxford(tmp_path) -> Path:
    shutil.copytree(DRAWN / "data/revisited/roxford5k", tmp_path / "roxford5k")
    return tmp_path / "roxford5k"


def test_lists_arrays_and_byte_strings_are_the_same(oxford):
    official = read_relevant(oxford / "gnd_roxford5k.pkl")
    tree = pickle.loads((oxford / "gnd_lists.pkl").read_bytes())

    def old(node):
        if isinstance(node, dict):
            return {old(k): old(v) for k, v in node.items()}
        if isinstance(node, list):
            return [old(v) for v in node]
        return node.encode() if isinstance(node, str) else node

    (oxford / "bytes.pkl").write_bytes(pickle.dumps(old(tree), protocol=2))
    for name in ("gnd_lists.pkl", "bytes.pkl"):
        *names, relevant = read_relevant(oxford / name)
        assert names == list(official[:2])
        for one, other in zip(relevant, official[2], strict=True):
            assert all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("easy", "hard", "junk"))
            assert one.box == other.box


BAD = {
    "no list": (lambda t: [t], "is no list of relevant pictures"),
    "lacks": (lambda t: {k: v for k, v in t.items() if k != "gnd"}, "it has no gnd"),
    "count": (lambda t: t | {"gnd": t["gnd"][:-1]}, "gnd is of 4 queries, qimlist of 5"),
    "index": (lambda t: t["gnd"][1].update(easy=[99]), "query 1: easy names picture 99"),
    "negative": (lambda t: t["gnd"][1].update(junk=[-1]), "query 1: junk names picture -1"),
    "fraction": (lambda t: t["gnd"][0].update(hard=[0.5]), "query 0: hard is no list of whole numbers"),
    "texts": (lambda t: t["gnd"][0].update(hard=["a"]), "query 0: hard is no list of whole numbers"),
    "box": (lambda t: t["gnd"][2].update(bbx=[5, 5, 5, 9]), "query 2: bbx is no box"),
    "box of nan": (lambda t: t["gnd"][2].update(bbx=[float("nan")] * 4), "query 2: bbx is no box"),
    "keys": (lambda t: t["gnd"][3].pop("bbx"), "query 3: has no bbx"),
    "name": (lambda t: t["imlist"].__setitem__(0, "../../x"), "imlist names ../../x"),
    "names": (lambda t: t.update(imlist=[1, 2]), "imlist is no list of names"),
    "absent": (lambda t: t["imlist"].__setitem__(0, "gone"), r"lacks jpg/gone.jpg of 23 pictures"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_list_that_is_wrong_is_refused(case, oxford):
    change, words = BAD[case]
    tree = pickle.loads((oxford / "gnd_lists.pkl").read_bytes())
    changed = change(work := copy.deepcopy(tree))
    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(changed if case in ("no list", "lacks", "count") else work))
    with pytest.raises(UserError, match=words) as info:
        open_revisited("roxford5k", oxford)
    assert str(info.value).isprintable()


def test_a_pickle_that_would_run_something_is_not_run(oxford, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({"imlist": [], "qimlist": [], "gnd": Evil()}))
    with pytest.raises(UserError):
        open_revisited("roxford5k", oxford)
    assert not (tmp_path / "ran").exists()


def test_what_is_relevant_is_part_of_the_data(oxford):
    before = open_revisited("roxford5k", oxford.parent)  # the folder above does as well
    assert before.differs == "18 database pictures instead of 4993, 5 queries instead of 70"
    tree = pickle.loads((oxford / "gnd_lists.pkl").read_bytes())
    tree["gnd"][0]["junk"] = []
    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(tree))
    assert open_revisited("roxford5k", oxford).fingerprint != before.fingerprint
