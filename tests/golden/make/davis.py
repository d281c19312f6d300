"""Official label propagation and DAVIS-2017 measures on videos that our own program draws.

    python tests/golden/make/davis.py facebookresearch/dino davisvideochallenge/davis2017-evaluation
                                      (commit 7c446df)      (commit ac7c43f)

The arguments are the folders of those repositories. Writes official/davis_drawn/scores.json, which names the videos
(the arguments of `make_videos`) and the network (drawn/network.pth), and official/davis_drawn/masks/SEQUENCE/*.png.
The protocol is the official one: 480 pixels high, 7 previous frames and the first, radius 12, the 5 largest.
"""

import json
import shutil
import sys
import tempfile
import types
from functools import partial
from pathlib import Path

import numpy as np
import official
import torch
from PIL import Image
from torch import nn

from selfpatch_bench.benchmarks.synthetic.scenes import make_videos

VIDEOS = {"sequences": 2, "frames": 5, "size": [120, 214], "seed": 7}
OUT = official.OUT / "davis_drawn"
NETWORK = official.OUT.parent / "drawn/network.pth"
official.use(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import eval_video_segmentation as evaluation  # noqa: E402
import vision_transformer as vits  # noqa: E402
from davis2017.metrics import db_eval_boundary, db_eval_iou  # noqa: E402
from davis2017.utils import db_statistics  # noqa: E402

net = vits.VisionTransformer(
    patch_size=16,
    embed_dim=32,
    depth=4,
    num_heads=2,
    qkv_bias=True,
    num_classes=0,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
).eval()
teacher = torch.load(NETWORK, weights_only=True)["teacher"]
net.load_state_dict({k.removeprefix("backbone."): v for k, v in teacher.items()})
shutil.rmtree(OUT, ignore_errors=True)
evaluation.args = types.SimpleNamespace(
    output_dir=str(OUT / "masks"), n_last_frames=7, size_mask_neighborhood=12, topk=5, patch_size=16
)
palette = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)], np.uint8)
sequences = {}
with tempfile.TemporaryDirectory() as folder:
    root = make_videos(Path(folder) / "videos", **VIDEOS)
    for name in (root / "ImageSets/2017/val.txt").read_text().split():
        frames = sorted((root / "JPEGImages/480p" / name).glob("*.jpg"))
        truths = sorted((root / "Annotations/480p" / name).glob("*.png"))
        first = evaluation.read_seg(str(truths[0]), 16)
        evaluation.eval_video_tracking_davis(
            evaluation.args, net, [str(f) for f in frames], str(frames[0].parent), *first, palette
        )
        truth = np.stack([np.array(Image.open(p)) for p in truths])
        found = np.stack([np.array(Image.open(OUT / "masks" / name / p.name)) for p in truths])
        objects = {}
        for number in range(1, truth[0].max() + 1):
            masks = (truth == number)[1:-1], (found == number)[1:-1]  # the first and the last frame do not count
            objects[str(number)] = scores = {}
            for measure, of in (("J", db_eval_iou), ("F", db_eval_boundary)):
                values = of(*masks)
                scores[measure] = dict(zip(("mean", "recall", "decay"), map(float, db_statistics(values)), strict=True))
                scores[f"{measure}_per_frame"] = [round(float(v), 9) for v in values]
        sequences[name] = {"frames": len(frames), "objects": objects}
every = [o for s in sequences.values() for o in s["objects"].values()]
overall = {
    f"{m}_{s[0].upper()}": float(np.mean([o[m][s] for o in every])) for m in "JF" for s in ("mean", "recall", "decay")
}
overall["JF_M"] = (overall["J_M"] + overall["F_M"]) / 2
facts = {"videos": VIDEOS, "checkpoint": "drawn/network.pth", "heads": 2, "frames": None}
text = json.dumps(facts | {"global": overall, "sequences": sequences}, indent=1)
(OUT / "scores.json").write_text(text + "\n")
print(overall)
