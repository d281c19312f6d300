"""Global vectors of pictures of any size, and searching with them, as facebookresearch/dino 7c446df does."""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1, 2**-0.5, 0.5)  # of the picture's sides, in utils.py's `multi_scale`


class TokenAndGem:
    """Image vector and generalised mean of the patch tokens, joined: [B, 2 D]; without a class token the mean alone:
    [B, D] (eval_copy_detection.py, extract_features)."""

    def __init__(self, power: float, floor: float, token: bool):
        self.power, self.floor, self.token = power, floor, token

    @property
    def name(self) -> str:
        return f"{'image vector and ' * self.token}GeM {self.power:g} above {self.floor:g}"

    def __call__(self, encoder, images: Tensor) -> Tensor:
        found = encoder(images)
        patches = found.patches[0].flatten(2).float()
        mean = patches.clamp(min=self.floor).pow(self.power).mean(2).pow(1 / self.power)
        return torch.cat([found.image.float(), mean], 1) if self.token else mean


def multi_scale(encoder, images: Tensor) -> Tensor:
    """Mean of the image vectors at SCALES, made unit vectors: [B, D].

    The normalised picture is made smaller, bilinearly and without smoothing. The official norm is over the whole batch,
    which there is one picture.
    """
    total = 0
    for scale in SCALES:
        some = images
        if scale != 1:
            some = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        total = total + encoder(some).image.float()
    return F.normalize(total / len(SCALES), dim=1)


class Whitening:
    """Turns directions of a set of vectors [n, D] so that all vary by as much (eval_copy_detection.py, utils.PCA).

    Vectors are moved by the set's mean; the directions, as there, are those of its second moments about zero, or, where
    `centred`, about the mean. floor: of an eigenvalue, part of the largest.
    """

    def __init__(self, vectors: Tensor, floor: float, centred: bool):
        self.mean = vectors.mean(0)
        about = vectors - self.mean if centred else vectors
        values, directions = torch.linalg.eigh(about.T @ about / len(about))
        self.turn = directions / values.clamp(min=floor * float(values[-1])).sqrt()

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) @ self.turn
