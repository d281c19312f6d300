"""Parts that evaluate: runs and their records, fine-tuning, a user's plug-ins, the cache of looked-at files."""

import json
import re
import shutil

import torch

from .place import DATA, PLUGINS, Place, quiet, summary

DAVIS = ("size=192", "multiple=32", "radius=6")
KNN = ("resize=64", "crop=64", "k=3", "other_k=[1,5]")
PROBE = ("resize=64", "crop=64", "epochs=3", "batch=6")
SMALL_COCO = (
    "classes=3", "workers=0", "batch=3", "per_gpu=3", "warmup=0", "lr=0.006", "epochs=14", "blocks=0,1,2,3",
    "model.neck.out_channels=16", "model.rpn_head.in_channels=16", "model.rpn_head.feat_channels=16",
    "model.rpn_head.anchor_generator.scales=[4]", "model.roi_head.bbox_roi_extractor.out_channels=16",
    "model.roi_head.mask_roi_extractor.out_channels=16", "model.roi_head.bbox_head.in_channels=16",
    "model.roi_head.bbox_head.fc_out_channels=32", "model.roi_head.mask_head.in_channels=16",
    "model.roi_head.mask_head.conv_out_channels=16", "model.roi_head.mask_head.num_convs=1",
    "model.train_cfg.rpn_proposal.nms_pre=50", "model.train_cfg.rpn_proposal.max_per_img=20",
    "model.train_cfg.rcnn.sampler.num=16", "model.test_cfg.rpn.nms_pre=50", "model.test_cfg.rpn.max_per_img=20",
    "train_dataloader.dataset.pipeline=[{type: LoadImageFromFile},{type: LoadAnnotations,with_bbox: true,"
    "with_mask: true},{type: Resize,scale: [96,96],keep_ratio: true},{type: RandomFlip,prob: 0.5},"
    "{type: PackDetInputs}]",
    "val_dataloader.dataset.pipeline.1.scale=[96,96]",
)  # fmt: skip
SMALL_ADE = (
    "classes=9", "workers=0", "blocks=0,1,2,3", "iterations=6", "warmup=0",
    "train_dataloader.dataset.pipeline.2.scale=[96,64]", "train_dataloader.dataset.pipeline.3.crop_size=[64,64]",
    "val_dataloader.dataset.pipeline.1.scale=[96,64]",
)  # fmt: skip
OWN_ADE = (
    *SMALL_ADE, "batch=3", "per_gpu=3", "lr=0.003", "model.data_preprocessor.size=[64,64]",
    "model.neck.out_channels=16", "model.decode_head.in_channels=[16,16,16,16]", "model.decode_head.channels=16",
)  # fmt: skip


def evaluation(place: Place) -> dict[str, str]:
    """Frozen evaluations in all their variants: what is printed, and the records."""
    a, b = (place.networks / f"{name}.safetensors" for name in "ab")
    conv = [place.examples[name][0] for name in ("timm_resnet", "timm_swin")]
    found = [
        place.run(a, b, "--task", "davis", *DAVIS),
        place.run(a, "--task", "davis", "--rerun", *DAVIS),
        place.run(a, "--task", "davis", "--limit", "1", "--pictures", *DAVIS),
        place.run(a, "--task", "davis", "--row", "DINO|ViT-S/16"),
        place.run(a, b, "--task", "knn", *KNN),
        place.run(a, "--task", "linear", "--seed", "0,1", "lr=0.1", *PROBE),
        place.run(a, b, "--task", "linear_sweep", "rates=[0.1,1.0]", *PROBE),
        place.run(*conv, "--task", "davis,knn", *DAVIS, *KNN),
        place.run(a, "--task", "knn", *KNN),  # done already
    ]
    masks = next(p for p in sorted((place.folder / "results/artifacts/davis").iterdir()) if "." not in p.name) / "masks"
    shutil.copytree(masks, place.folder / "rival/masks")
    found += [place.run("--masks", "rival/masks", "--task", "davis", "--name", "rival")]
    drawn = sorted(p.name for p in (place.folder / "results/artifacts").glob("davis/*/pictures/*"))
    kept = sorted(str(p.relative_to(place.folder)) for p in (place.folder / "cache/features").rglob("*.npy"))
    text = "\n".join([*map(str, found), f"pictures: {', '.join(drawn)}", *kept]) + "\n"
    return {"said.txt": text} | records(place)


def finetuning(place: Place) -> dict[str, str]:
    """Two built-in mm recipes and a user's own, trained for some steps: records, and the weights at the end."""
    a = place.networks / "a.safetensors"
    found = [
        place.run(a, "--task", "coco_maskrcnn_1x", *SMALL_COCO),
        place.run(a, "--task", "ade20k_semfpn_40k", *OWN_ADE),
        place.run(a, "--task", "small_fpn", "--plugins", PLUGINS, *SMALL_ADE),
    ]
    lines = []
    for last in sorted((place.folder / "results/artifacts").glob("*/*/last.pth")):
        state = torch.load(last, weights_only=False)
        lines.append(f"{last.parent.parent.name}: {summary(state['state_dict'])}")
    return {"said.txt": "\n".join([*map(str, found), *lines]) + "\n"} | records(place)


def plugins(place: Place) -> dict[str, str]:
    """A user's plug-in folder with one of each kind: listed, and used."""
    given = ("--plugins", PLUGINS)
    shouty = place.networks / "shouty.safetensors"
    lists = [place("ls", kind, *given) for kind in ("tasks", "formats", "recipes", "ablations")]
    lists += [place("ls", "tasks", env={"SELFPATCH_PLUGINS": str(PLUGINS)})]
    found = [re.sub(" {2,}", "  ", str(done)) for done in lists]  # columns are as wide as the longest path
    found += [
        place("zoo", "shouty_net", *given),
        place("inspect", shouty, *given),
        place("inspect", shouty),
        place("convert", shouty, "quiet.safetensors", *given),
        place.run(shouty, "--task", "brightness", "--seed", "0,1", *given),
        place.run(shouty, "--task", "brightness", *given, "fail=true"),
        place.run(shouty, "--task", "brightness", *given, "level=2"),
        place.run(shouty, "--task", "knn", *KNN, *given),
    ]
    pictures = DATA / "classes/train"
    train = ("agree", "--data", pictures, "--out", "runs/agree", "data.workers=0", "log.every=1", *given)
    learned = [quiet(place("pretrain", *train)), place("export", "runs/agree", *given)]
    ablate = ("pair", "--data", pictures, "--video", DATA / "davis", "--out", "grid", "--quick", "--device", "cpu")
    learned += [quiet(place("ablate", *ablate, *given))]
    weights = torch.load(place.folder / "runs/agree/checkpoints/step-00000003.pt", weights_only=True)
    text = "\n".join([*map(str, found), *(trained(str(done)) for done in learned)])
    return {"said.txt": f"{text}weights: {summary(weights['student'])}\n"} | records(place)


def trained(text: str) -> str:
    """Fingerprints and keys of weights that were trained here are as exact as the training."""
    text = re.sub(r"sha256:(?=\w{64})", "bits:", text)
    return re.sub(r"(?<=records/davis/)\w{16}(?=\.json)", "KEY", text)


def records(place: Place, out: str = "results") -> dict[str, str]:
    """The records of a folder without times, machine and paths, as they are stored: file -> text."""
    found = {p: json.loads(p.read_text()) for p in (place.folder / out / "records").glob("*/*.json")}
    order = sorted(found, key=lambda p: (found[p]["created"], p.name))
    texts = {}
    for number, path in enumerate(order):
        record = found[path] | {"environment": {}, "wall_seconds": 0.0, "peak_memory_bytes": {"process": 0}}
        record |= {"created": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}.000Z"}
        record |= {key: "" for key in ("traceback", "log") if key in record}
        text = place.plain(json.dumps(record, indent=1)) + "\n"
        texts[f"records/{path.parent.name}/{path.name}"] = text
    return texts
