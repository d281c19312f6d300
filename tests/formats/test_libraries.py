"""Files as other libraries save them: each is read, asked about or refused as its `expect` says."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.checkpoints.open import build, ready
from selfpatch_bench.benchmarks.commands.inspect import report
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

LIBRARIES = Path(os.environ.get("SELFPATCH_SHARED", "../shared")) / "checkpoints" / "libraries"
# float32 on a CPU by two implementations of the same network: sums in another order
PARITY = 3e-6
FILES = sorted(LIBRARIES.glob("*.json")) or [None]


def opened(path: Path, given: dict):
    given = dict(given)
    own = {key: given.pop(key) for key in ("format", "weights", "part") if key in given}
    return open_checkpoint(path, card=given, **own)


def check_features(path: Path, given: dict) -> None:
    checkpoint = opened(path, given)
    ready(checkpoint)
    encoder, golden = build(checkpoint), np.load(path.parent / f"{path.name.split('.')[0]}.npz")
    for tag in sorted({name.partition(".")[0] for name in golden.files}):
        found = encoder(torch.from_numpy(golden[f"{tag}.image"]))
        for key, value in (("image_vector", found.image), ("patch_map", found.patches[0])):
            if (name := f"{tag}.{key}") in golden.files:
                want = torch.from_numpy(golden[name])
                if key == "patch_map" and want.ndim == 3:  # tokens [1, N, D]
                    want = want.transpose(1, 2)
                want = want.reshape(value.shape)
                error = float((value - want).abs().max() / want.abs().max())
                assert error <= PARITY, (name, error)


@pytest.mark.shared
@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem if p else "absent")
def test_a_library_s_file_does_what_is_expected_of_it(file):
    if file is None:
        pytest.skip(f"{LIBRARIES} is absent")
    about = json.loads(file.read_text())
    expect, given = about["expect"], about.get("load_kwargs") or {}
    same = (p for p in sorted(file.parent.iterdir()) if p.name.split(".")[0] == file.stem)
    path = next(p for p in same if p.suffix not in (".json", ".npz"))
    words = expect.get("words", [])
    if expect["kind"] == "right":
        if words:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = report(path, given.get("format"), {k: v for k, v in given.items() if k != "format"})
            assert all(word in text for word in words), text
        check_features(path, given | expect.get("then", {}))
        return
    with pytest.raises(UserError) as info:
        ready(opened(path, given))
    message = str(info.value)
    assert message.isprintable(), message
    assert all(word in message for word in words), message
    if "then" in expect:
        check_features(path, given | expect["then"])
