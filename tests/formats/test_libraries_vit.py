"""ViTs as other libraries save them: which network is taken, its features by that library's own forward, what is asked."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from layouts import PARITY, relative
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.checkpoints.open import ready
from selfpatch_bench.benchmarks.hub.open import open_checkpoint

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
GIVEN = {"heads": 2, "mean": 0.5, "std": 0.5}


def perturbed(network):
    """The network with every parameter moved, so that each shows in the features."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network.eval()


def put(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


def same(path, image_vector, maps, sizes=((32, 32), (40, 64)), **facts):
    """The file's features are these functions' of an image, at every size."""
    encoder = load(path, **facts)
    for size in sizes:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            found, image, tokens = encoder(images), image_vector(images), maps(images)
        assert relative(found.image, image) < PARITY
        assert relative(found.patches[0].flatten(2).transpose(1, 2), tokens) < PARITY
    return encoder


@pytest.fixture(scope="module")
def classifier():
    return VisionTransformer(**TINY, num_classes=5).state_dict()


@pytest.mark.parametrize("wrapper", ["model_state_dict", "model", "net", "state_dict", "state_dict.model", "teacher"])
def test_a_classifier_below_a_prefix_is_nobodys(wrapper, classifier, tmp_path):
    """Any trainer puts a head into a ViT that it took from DINO or timm; a flat file with one is timm's."""
    path = tmp_path / "x.pth"
    torch.save(
        {**put(classifier, f"{wrapper}."), "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}}, path
    )
    with pytest.raises(UserError, match="could be dino or timm"):
        ready(open_checkpoint(path, card=GIVEN))
    for format in ("dino", "timm"):
        assert open_checkpoint(path, card=GIVEN, format=format).reading.card.pos_resize == format
    torch.save(classifier, path)
    assert (open_checkpoint(path, card=GIVEN).reading.format, open_checkpoint(path, card=GIVEN).rivals) == ("timm", [])


def test_deit_with_a_distillation_token(tmp_path):
    """timm's and Facebook's names: both tokens make the image vector, as both heads' mean is what is evaluated."""
    network = perturbed(VisionTransformerDistilled(**TINY, num_classes=5))
    torch.save({"model": network.state_dict()}, tmp_path / "deit.pth")

    def both(images):
        return network.forward_head(network.forward_features(images), pre_logits=True)

    encoder = same(tmp_path / "deit.pth", both, lambda x: network.forward_features(x)[:, 2:], **GIVEN)
    assert (encoder.card.registers, encoder.card.readout) == (1, "token_pair")
