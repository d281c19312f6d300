"""What is often given and not read is named for what it is, with what to do."""

import json
import zipfile

import pytest
import timm
import torch

from format_examples import example_vit, format_example
from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.checkpoints.foreign import described, telling
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

PICKLED = r"--trust-pickle` takes its tensors out"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.gguf", b"GGUF\3\0\0\0" + bytes(64), "a GGUF file"),
        ("x.onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(64), "an ONNX graph"),
        ("x.onnx", b"\x08\x07\x3a\x90\x4e" + bytes(64), "an ONNX graph"),
    ],
)
def test_files_of_other_kinds(name, data, words, tmp_path):
    (path := tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        open_checkpoint(path)


@pytest.mark.parametrize(("record", "words"), [("x/code/a.py", PICKLED), ("x/archive_format", r"torch.export program")])
def test_archives_of_programs(record, words, tmp_path):
    with zipfile.ZipFile(path := tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\2}.")
        file.writestr(record, "x" * 100)
    with pytest.raises(UserError, match=words):
        open_checkpoint(path)


def test_a_pickled_module(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, num_classes=0)
    torch.save({"model": net, "epoch": 3}, path := tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"refuses to unpickle timm\S+VisionTransformer, .*" + PICKLED):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "model_type", "words"),
    [
        (["vision_model.pre_layrnorm.weight"], None, "it is CLIP (trained with text"),
        (["a.weight"], "clip_vision_model", "it is CLIP (trained with text"),
        (["vision_model.head.probe", "vision_model.embeddings.patch_embedding.weight"], None, "it is SigLIP"),
        (["a.weight"], "siglip2_vision_model", "it is SigLIP"),
        (["visual.transformer.resblocks.0.ln_1.weight", "text_projection"], None, "it is open_clip's or OpenAI's CLIP"),
        (["image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.iou_token.weight"], None, "it is SAM (Segment"),
        (["image_encoder.trunk.blocks.0.norm1.weight"], None, "it is SAM 2"),
        (["blocks.0.norm1.weight", "blocks.2.proj.weight"], None, "it is Hiera"),
        (["blocks.0.attn.proj.weight", "blocks.1.proj.weight"], None, "it is Hiera"),
        (["hiera.encoder.stages.0.layers.0.attn.qkv.weight"], None, "it is Hiera"),
        (["encoder.stages.0.layers.0.dwconv.weight"], None, "it is ConvNeXt in names of Hugging Face's"),
        (["features.0.0.weight", "features.1.0.block.0.weight"], None, "it is ConvNeXt in names of"),
        (["features.0.0.weight", "features.1.0.block.0.0.weight"], None, "it is an EfficientNet"),
        (["features.0.0.weight", "features.1.block.0.0.weight"], None, "it is an EfficientNet"),
        (["encoder.stages.0.layers.0.layer.0.convolution.weight"], None, ""),
        (["features.1.0.attn.cpb_mlp.0.weight"], None, "it is Swin V2"),
        (["norm_pre.weight", "blocks.0.norm1.weight"], None, "it is a ViT with a norm before its blocks, as CLIP"),
        (["norm_pre.weight", "attn_pool.latent"], None, "it is a ViT with timm's attention pooling, as SigLIP"),
        (["a.weight"], "no_such_network", "config.json says that it is a network of model_type no_such_network"),
        (["layer1.0.conv1.weight", "fc.weight"], None, ""),
    ],
)
def test_networks_that_are_not_read(names, model_type, words, tmp_path):
    text = described(names, {"config.json": {"model_type": model_type}} if model_type else {})
    assert text.startswith(words)
    assert bool(text) == bool(words)


def test_the_error_of_such_a_file(tmp_path):
    """It neither lists the formats nor hides the names that tell; a model_type speaks against names that fit."""
    torch.save(
        {f"vision_model.{k}": v for k, v in example_vit().items()} | {"logit_bias": torch.ones(1)},
        path := tmp_path / "a.pth",
    )
    with pytest.raises(UserError, match=r"no format knows these \d+ tensors \(.*patch_embed.*it is SigLIP") as error:
        open_checkpoint(path)
    assert "mocov2" not in str(error.value)


def test_a_model_type_speaks_against_names_that_fit(tmp_path):
    folder, _ = format_example("hf_vit", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "dpt"}))
    with pytest.raises(UserError, match="model_type dpt, which is not read here"):
        open_checkpoint(folder)


def test_a_named_architecture_that_is_not_built_is_named():
    words = "config.json: arch hiera_tiny_224: no network of that name and these tensors is built here"
    assert described(["a.weight"], {"config.json": {"architecture": "hiera_tiny_224"}}) == words


def test_telling_names():
    names = [f"model.blocks.{i}.{n}.weight" for i in range(12) for n in ("norm1", "attn.qkv", "mlp.fc1")]
    assert telling(names) == [f"model.blocks.0.{n}.weight" for n in ("norm1", "attn.qkv", "mlp.fc1")]
    assert telling(["a.b", "c.d", "e.f", "e.g"]) == ["a.b", "c.d", "e.f"]
    assert telling(["x"]) == ["x"]
