"""Neighbour tables of the patch grid."""

import pytest
import torch

from plain_pretrain import window
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.geometry import neighbours

# What the official code gathers, recorded by running it: (side, patch) -> neighbours.
OFFICIAL = {
    (14, 0): [1, 13, 14, 15, 27, 182, 183, 195],
    (14, 15): [0, 1, 2, 14, 16, 28, 29, 30],
    (14, 195): [0, 12, 13, 168, 180, 181, 182, 194],
    (6, 0): [1, 5, 6, 7, 11, 30, 31, 35],
}


@pytest.mark.parametrize(("place", "expected"), OFFICIAL.items())
def test_torus_as_the_official_code(place, expected):
    side, patch = place
    index, valid = neighbours(side, side)
    assert index[patch].tolist() == expected
    assert valid is None


@pytest.mark.parametrize(("side", "entries", "share"), [(14, 164, 0.265), (6, 68, 0.556)])
def test_share_of_wrapped_neighbours(side, entries, share):
    index, _ = neighbours(side, side)
    own = torch.arange(side * side)[:, None]
    far = ((index // side - own // side).abs() > 1) | ((index % side - own % side).abs() > 1)
    assert int(far.sum()) == entries
    assert float(far.any(1).float().mean()) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("hw", [(6, 6), (14, 14), (5, 7), (2, 9), (3, 3), (2, 2), (1, 4), (1, 1)])
def test_against_a_written_out_window(hw, radius, wrap):
    index, valid = neighbours(*hw, radius, wrap)
    rows = [row[keep] for row, keep in zip(index, valid, strict=True)] if valid is not None else list(index)
    assert [row.tolist() for row in rows] == window(*hw, radius, wrap)


def test_clipped_corner_has_three():
    _, valid = neighbours(14, 14, 1, wrap=False)
    assert valid.sum(1)[[0, 1, 15]].tolist() == [3, 5, 8]


@pytest.mark.parametrize("wrap", [True, False])
def test_all_is_every_other_patch(wrap):
    index, valid = neighbours(4, 6, "all", wrap)
    assert valid is None
    for i, row in enumerate(index.tolist()):
        assert row == [j for j in range(24) if j != i]


@pytest.mark.parametrize("radius", [0, -1, "most"])
def test_bad_radius_is_named(radius):
    with pytest.raises(UserError, match=f"radius {radius}"):
        neighbours(6, 6, radius)
