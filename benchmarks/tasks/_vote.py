"""The vote of k nearest neighbours, as facebookresearch/dino 7c446df, eval_knn.py, counts it."""

import torch
from torch import Tensor


@torch.inference_mode()
def vote(
    train: Tensor, labels: Tensor, val: Tensor, classes: int, ks: list[int], temperature: float, step: int = 256
) -> dict[int, Tensor]:
    """For every k the best classes of every validation image, best first: {k: int64 [n, min(5, k)]}.

    As official, top 5 is counted over no more classes than neighbours. train [m, D], val [n, D]: L2-normalised; labels
    [m]. A k above m is m. `step` validation images are done at a time.
    """
    ks = {k: min(k, len(train)) for k in ks}
    ranked: dict[int, list[Tensor]] = {k: [] for k in ks}
    for some in val.split(step):
        cosine, nearest = (some @ train.T).topk(max(ks.values()), dim=1)
        # The nearest gets weight 1, as only ratios count: at a low temperature exp(cosine / T) is beyond float32. Far
        # ones keep some weight, in float64: a class with a vote comes before those without.
        weights = ((cosine.double() - cosine[:, :1]) / temperature).exp().clamp_min(torch.finfo(torch.float64).tiny)
        votes = labels[nearest]
        for k, used in ks.items():
            scores = weights.new_zeros(len(some), classes).scatter_add_(1, votes[:, :used], weights[:, :used])
            # The official sort, unstable: it decides which classes without a vote fill up the five.
            ranked[k].append(scores.sort(1, descending=True).indices[:, : min(5, used)].cpu())
    return {k: torch.cat(parts) for k, parts in ranked.items()}
