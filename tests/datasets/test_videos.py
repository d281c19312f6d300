"""Sets of videos that are not what they seem: treated as the official evaluator does, or refused with the reason."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from selfpatch_bench.benchmarks.datasets.davis import open_davis
from selfpatch_bench.benchmarks.datasets.masks import davis_palette, edge_labels, why_grey
from selfpatch_bench.benchmarks.metrics.jf import global_scores, summarize
from selfpatch_bench.benchmarks.tasks.davis import score
from selfpatch_bench.pretrain.common.errors import UserError

H, W, N = 48, 64, 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFPATCH_CACHE", str(tmp_path / "cache"))


def square(i: int, left: int = 8, label: int = 1, top: int = 10) -> np.ndarray:
    """Frame i of a square of 14 x 14 pixels that moves to the right."""
    labels = np.zeros((H, W), np.uint8)
    labels[top : top + 14, left + 2 * i : left + 2 * i + 14] = label
    return labels


def two(i: int) -> np.ndarray:
    return np.maximum(square(i), square(i, 30, 2))


def six(i: int) -> np.ndarray:
    labels = np.zeros((H, W), np.uint8)
    labels[8:24, 4 + i : 28 + i] = np.kron(np.arange(1, 7, dtype=np.uint8).reshape(2, 3), np.ones((8, 8), np.uint8))
    return labels


def draw(root: Path, start: int = 0, **sequences) -> Path:
    """A set in the DAVIS layout. sequences: name -> labels of every frame, None for one without annotation. start: the
    number of the first mask."""
    for name, masks in sequences.items():
        frames, annotations = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        frames.mkdir(parents=True), annotations.mkdir(parents=True)
        for i, labels in enumerate(masks):
            Image.new("RGB", (W, H), (9 * i, 80, 40)).save(frames / f"{i:05d}.jpg")
            if labels is not None:
                Image.fromarray(labels).save(annotations / f"{i + start:05d}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(sequences) + "\n")
    return root


def save(folder: Path, masks: dict[int, np.ndarray]) -> Path:
    """A method's masks of the sequence a, by the number of their frame."""
    (folder / "a").mkdir(parents=True)
    for i, labels in masks.items():
        Image.fromarray(labels).save(folder / "a" / f"{i:05d}.png")
    return folder


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_davis(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_grey(labels: np.ndarray) -> np.ndarray:
    """What a converter makes of an indexed mask: the luminance of its colours."""
    return np.asarray(Image.fromarray(davis_palette()[labels]).convert("L"))


def smoothed(labels: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(labels, (0, 0), 1.2)


# ------------------------------------------------------------------------------------------- grey values (number 3)
GREY = {
    "one object as 128": ([square(i, label=128) for i in range(N)], ["only 128", "127 of 128 empty"]),
    "the palette in grey": ([in_grey(two(i)) for i in range(N)], ["only 38, 75", "palette", "73 of 75 empty"]),
    "spread over 0..254": ([two(i) * np.uint8(127) for i in range(N)], ["only 127, 254", "252 of 254 empty"]),
    "binary with smooth edges": ([smoothed(square(i, label=255)) for i in range(N)], ["edges"]),
    "labels with smooth edges": ([smoothed(square(i, label=7)) for i in range(N)], ["edges", "7 objects"]),
    "enlarged": ([cv2.resize(two(i)[:24, :32] * np.uint8(9), (W, H)) for i in range(N)], ["edges"]),
    "only first masks": ([square(0, label=128), *[None] * 5], ["only 128"]),
}


@pytest.mark.parametrize("case", GREY)
def test_grey_values_are_refused_and_insisting_is_said(case, tmp_path):
    masks, words = GREY[case]
    root = draw(tmp_path / "d", a=masks, b=[square(i) for i in range(N)] if masks[1] is not None else masks)
    text = refusal(root)
    for word in ("Annotations/480p/a/00000.png", "grey values", "official evaluator", "--odd-masks", *words):
        assert word in text
    data = open_davis(root, odd_masks=True)
    (doubt,) = data.doubts
    assert doubt.startswith("masks of grey values in a")
    assert data.content.sequences[0].objects == masks[0][masks[0] < 255].max()


def test_noise_of_jpeg_is_grey():
    rng = np.random.default_rng(0)
    noisy = square(0, label=200).astype(int) + rng.integers(-9, 10, (H, W))
    labels = noisy.clip(0, 255).astype(np.uint8)
    looked = [{"labels": np.unique(labels).tolist(), "edges": edge_labels(labels)}]
    assert "edges" in why_grey(looked, 209)


def test_objects_that_are_edges_are_named(tmp_path):
    """Labels 1 and 3, smoothed: the edge of object 3 is counted as object 2."""

    def soft(i):
        labels = np.maximum(square(i), square(i, 30, 3))
        labels[(cv2.dilate(labels, np.ones((3, 3), np.uint8)) == 3) & (labels == 0)] = 2
        return labels

    (note,) = open_davis(draw(tmp_path / "D", a=[soft(i) for i in range(N)])).notes
    assert "objects [2] occur only between others" in note


def test_labels_are_not_grey():
    """A label that is absent, objects of a pixel, nested ones, a thin one beside another, void around."""
    small = two(0)
    small[40, 5:8] = [3, 0, 3]
    nested = np.maximum(two(0), cv2.erode(square(0, label=5), np.ones((5, 5), np.uint8)))
    thin = two(0)
    thin[10:24, 44] = 1
    void = cv2.dilate(two(0), np.ones((3, 3), np.uint8))
    void[void != two(0)] = 255
    for labels, objects in ((small, 3), (nested, 5), (thin, 2), (void, 2), (square(0, label=2), 2)):
        looked = [{"labels": np.unique(labels).tolist(), "edges": edge_labels(labels)}]
        assert not why_grey(looked, objects)
    # An edge in one mask of a sequence is an object in another.
    assert not why_grey([{"labels": [0, 1, 2], "edges": [1]}, {"labels": [0, 1, 2]}], 2)


@pytest.mark.parametrize(
    ("truth", "masks", "word"),
    [
        (six, lambda i: smoothed(square(i, label=6)), "edges"),
        (two, lambda i: in_grey(two(i)), "palette"),
        (square, lambda i: smoothed(square(i, label=255)), "every pixel that is not 0"),
    ],
    ids=["smooth edges", "palette", "one object"],
)
def test_grey_results_are_refused(truth, masks, word, tmp_path):
    root = draw(tmp_path / "d", a=[truth(i) for i in range(N)])
    results = save(tmp_path / "r", {i: masks(i) for i in range(N)})
    assert word in refusal(root, results=results)
    if word != "palette":  # a label that the sequence lacks stays an error
        assert "--masks of grey values in a" in open_davis(root, results=results, odd_masks=True).doubts


def test_results_that_are_the_annotations(tmp_path):
    """Whatever they are stored as; a method's own masks are not."""
    root = draw(tmp_path / "d", a=[square(i) for i in range(N)])
    same = save(tmp_path / "same", {i: square(i, label=255) for i in range(N)})
    assert open_davis(root, results=same).doubts == ["--masks are the annotations themselves in 1 of 1 sequences"]
    other = {i: square(i) for i in range(N)} | {4: square(3)}
    assert not open_davis(root, results=save(tmp_path / "other", other)).doubts


# ------------------------------------------------------------------------------------------- the evaluator (number 4)
OFFICIAL = {"later": (63.67521367521368, 49.702380952380956)}  # J and F in percent


def later(i: int) -> np.ndarray:
    """Object 2 appears at frame 3, and stands in front of object 1."""
    return np.maximum(square(i), square(i, 16, 2, 16) if i >= 3 else 0).astype(np.uint8)


def scored(root: Path, results: Path) -> dict[str, float]:
    """J and F of the masks, in percent."""
    content = open_davis(root, results=results).content
    found = {}
    for s in content.sequences:
        paths = content.results[s.name]
        found[s.name] = summarize([score(paths[i], s, i, 0.008) for i in range(1, len(paths) - 1)])
    return global_scores(found)


def test_objects_that_appear_later_are_background(tmp_path):
    """The numbers are the official evaluator's (davis2017-evaluation ac7c43f) for these very masks."""
    root = draw(tmp_path / "d", a=[later(i) for i in range(N)], b=[two(i) for i in range(N)])
    data = open_davis(root)
    assert [s.objects for s in data.content.sequences] == [1, 2]
    (note,) = data.notes
    assert "not scored" in note
    assert "a: 2 (from 00003)" in note
    results = save(tmp_path / "r", {i: square(max(0, i - 1)) for i in range(N)})
    (results / "b").mkdir()
    for i in range(N):
        Image.fromarray(two(max(0, i - 2))).save(results / "b" / f"{i:05d}.png")
    found = scored(root, results)
    assert found["J_m"] == pytest.approx(OFFICIAL["later"][0], abs=1e-9)
    assert found["F_m"] == pytest.approx(OFFICIAL["later"][1], abs=1e-9)


def test_results_need_no_first_and_no_last_mask(tmp_path):
    root = draw(tmp_path / "d", a=[square(i) for i in range(N)])
    results = save(tmp_path / "r", {i: square(i) for i in range(1, N - 1)})
    assert scored(root, results)["JF_m"] == 100
    whole = save(tmp_path / "whole", {i: square(i) for i in range(N)})
    for spoiled in (b"damaged", b""):  # nobody reads them
        (whole / "a" / "00000.png").write_bytes(spoiled)
        assert scored(root, whole)["JF_m"] == 100
    (results / "a" / "00002.png").unlink()
    text = refusal(root, results=results)
    assert "00002.png: is missing" in text
    assert "but the first and the last" in text


@pytest.mark.parametrize(
    "masks",
    [
        [two(0), *[None] * 5],
        [square(0), None, None, two(3), None, None],
        [two(0), None],
    ],
    ids=["first masks", "first masks of each object", "two frames"],
)
def test_sets_without_annotations_are_not_scored(masks, tmp_path):
    root = draw(tmp_path / "d", a=masks, b=[square(0), *[None] * 3])
    data = open_davis(root)
    assert not data.scored
    assert not data.official
    assert "only first masks" in data.differs
    assert any("nothing is scored" in note for note in data.notes)
    results = save(tmp_path / "r", {i: square(i) for i in range(N)})
    assert "nothing to score others by" in refusal(root, results=results)


def test_a_lost_annotation_is_no_test_set(tmp_path):
    masks = [two(i) for i in range(N)]
    root = draw(tmp_path / "d", a=[*masks[:2], None, *masks[3:]])
    assert "00002.png: is missing: every frame needs its annotation" in refusal(root)
    root = draw(tmp_path / "e", a=masks, b=[two(0), *[None] * 5])
    assert "1 of 2 sequences have only their first masks (b)" in refusal(root)


def test_lists_of_test_sets_are_found(tmp_path):
    root = draw(tmp_path / "d", a=[two(0), *[None] * 5])
    (root / "ImageSets/2017/val.txt").rename(root / "ImageSets/2017/test-dev.txt")
    assert [s.name for s in open_davis(root).content.sequences] == ["a"]
    (root / "ImageSets/2017/test-dev.txt").rename(root / "ImageSets/2017/mine.txt")
    assert "there is ImageSets/2017/mine.txt" in refusal(root)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("x")]
)
def test_a_list_that_is_no_file_is_named(make, tmp_path):
    root = draw(tmp_path / "d", a=[two(i) for i in range(N)])
    listed = root / "ImageSets/2017/val.txt"
    listed.unlink()
    make(listed)
    assert refusal(root).startswith(f"{listed}: cannot be read: ")


def test_what_gives_no_score_is_left_out(tmp_path):
    short, empty = [two(0), two(1)], [square(i, label=int(i > 2)) for i in range(N)]
    root = draw(tmp_path / "d", a=[two(i) for i in range(N)], b=short, c=empty)
    data = open_davis(root)
    assert [s.name for s in data.content.sequences] == ["a"]
    assert ["b (2 frames)" in data.notes[0], "c (6 frames)" in data.notes[1]] == [True, True]
    assert all("--list" in note for note in data.notes)
    assert "no sequence to use" in refusal(draw(tmp_path / "e", b=short))
    assert "first mask is empty" in refusal(draw(tmp_path / "f", c=empty))


def test_names_with_spaces(tmp_path):
    masks = [square(i) for i in range(N)]
    root = draw(tmp_path / "d", **{"my clip 1": masks, "b": masks})
    assert [s.name for s in open_davis(root).content.sequences] == ["my clip 1", "b"]
    listed = root / "pairs.txt"
    stems = [f"480p/my clip 1/{i:05d}" for i in range(3)]
    listed.write_text("".join(f"/JPEGImages/{stem}.jpg /Annotations/{stem}.png\n" for stem in stems))
    (sequence,) = open_davis(root, listed).content.sequences
    assert (sequence.name, len(sequence.frames)) == ("my clip 1", 3)


# ------------------------------------------------------------------------------------------- near misses
def test_numbers_that_are_off_by_one(tmp_path):
    masks = [square(i) for i in range(N)]
    root = draw(tmp_path / "d", a=masks, start=1)
    text = refusal(root)
    assert "masks 00001 to 00006, but frames 00000 to 00005" in text
    assert "off by 1" in text
    right = draw(tmp_path / "e", a=masks)
    shifted = save(tmp_path / "r", {i + 1: square(i) for i in range(N)})
    assert "off by 1" in refusal(right, results=shifted)
    folder = save(tmp_path / "s", {}) / "a"
    for i in range(N):
        Image.fromarray(masks[i]).save(folder / f"{i}.png")
    assert "spelled otherwise" in refusal(right, results=tmp_path / "s")


def test_a_folder_too_high_or_too_low(tmp_path):
    root = draw(tmp_path / "sets" / "mine" / "d", a=[square(i) for i in range(N)])
    assert f"that is {root}" in refusal(root.parent)
    assert f"that is {root}" in refusal(root / "JPEGImages/480p")
    results = save(tmp_path / "r", {i: square(i) for i in range(N)})
    assert f"they are in {results}" in refusal(root, results=results.parent)
    assert "it holds masks itself" in refusal(root, results=results / "a")


def test_other_resolutions_and_none(tmp_path):
    root = draw(tmp_path / "d", a=[square(i) for i in range(N)])
    for part in ("JPEGImages", "Annotations"):
        (root / part / "480p").rename(root / part / "1080p")
    assert "holds 1080p; only 480p is read" in refusal(root)
    for part in ("JPEGImages", "Annotations"):
        (root / part / "1080p" / "a").rename(root / part / "a")
        (root / part / "1080p").rmdir()
    assert "holds the sequences themselves" in refusal(root)


def test_masks_as_jpeg(tmp_path):
    root = draw(tmp_path / "d", a=[square(i) for i in range(N)])
    results = save(tmp_path / "r", {})
    for folder in (results / "a", root / "Annotations/480p/a"):
        for i in range(N):
            Image.fromarray(square(i, label=255)).save(folder / f"{i:05d}.jpg")
    assert "JPEG does not keep labels" in refusal(root, results=results)
    for path in (root / "Annotations/480p/a").glob("*.png"):
        path.unlink()
    assert "JPEG does not keep labels" in refusal(root)


# ------------------------------------------------------------------------------------------- the shared cases
CASES = {
    "davis_gray_128": "only 128",
    "davis_gray_palette": "only 38, 75",
    "davis_later_object": "note: a: 2 (from 00003)",
    "davis_space_name": "",
    "davis_test_dev": "note: nothing is scored",
    "davis_two_frames": "note: b (2 frames)",
    "davis_results_no_first": "",
}


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_shared_cases(case):
    folder, (kind, _, word) = SHARED / "cases" / case, CASES[case].partition("note: ")
    if kind:
        assert kind in refusal(folder / "D")
        return
    results = folder / "results"
    data = open_davis(folder / "D", results=results if results.is_dir() else None)
    assert word in " ".join(data.notes)
