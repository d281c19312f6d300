"""What the backbones share: card, strict loading inside the mm process, gradient checkpointing."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ....pretrain.common.card import Card
from ....pretrain.common.errors import UserError
from ....pretrain.common.shapes import shapes_of
from ....pretrain.common.weights import check_fit, load_weights
from .. import ops

ops.install()  # before the first import of mmcv

from mmcv.cnn import build_norm_layer  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

__all__ = ["MODELS", "Backbone", "build_norm_layer"]


class Backbone(nn.Module):
    """images [B, 3, H, W], normalised -> four maps [B, C, h, w], fine to coarse.

    card: of the family that the subclass names, else UserError. accounting: `147/147 tensors loaded`, once they are.
    mm's own loaders only log what does not fit, so the weights are loaded here, strictly, when the backbone is built.
    It is no mmengine BaseModule: that would let timm's parts initialise themselves again when a run starts.
    """

    family: str

    def __init__(self, card: Card | Mapping, with_cp: bool):
        super().__init__()
        self.card = card if isinstance(card, Card) else Card.from_dict(card)  # a config holds no classes
        if self.card.family != self.family:
            raise UserError(f"{type(self).__name__} takes a card of family {self.family}, not {self.card.family}")
        self.with_cp = with_cp
        self.accounting = "no weights given: random"

    def load(self, module: nn.Module, path: str, unused: Sequence[str] = (), prefix: str = "") -> None:
        """Every tensor of `module` from the export at `path`, and no other than those whose names begin as `unused`.

        prefix: of `module`'s names, which the export goes without. Raises UserError that names what does not fit.
        """
        weights, _ = load_weights(path)
        kept = {k: v for k, v in weights.items() if not k.startswith(tuple(unused))}
        # batch norm's counter is not among the weights of a card, and torch does without it
        state = {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
        full = {k.removeprefix(prefix): k for k in state}
        own = {k: state[name] for k, name in full.items()}
        check_fit(shapes_of(kept), own, path, "the backbone of the card given")
        module.load_state_dict({full[k]: v for k, v in kept.items()}, strict=True)
        left = len(weights) - len(kept)
        self.accounting = f"{len(kept)}/{len(own)} tensors loaded"
        self.accounting += f", {left} of the file not used by the maps" if left else ""

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
        """The output of every block, one after the other; with `with_cp` what is inside them is computed twice."""
        again, out = self.with_cp and self.training and torch.is_grad_enabled(), []
        for block in blocks:
            both = partial(_first_and_second, block)
            x = checkpoint(block, x, use_reentrant=False, context_fn=both) if again else block(x)
            out.append(x)
        return out


def _first_and_second(block: nn.Module) -> tuple:
    """What `checkpoint` puts around its first computation, and around the second one in the backward pass."""
    return contextlib.nullcontext(), _keep_statistics(block)


@contextlib.contextmanager
def _keep_statistics(block: nn.Module):
    """A second computation of the same batch must not move batch norm's running statistics a second time."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
