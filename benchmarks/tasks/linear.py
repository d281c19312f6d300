"""Linear classification on frozen features with augmented training images, as DINO evaluates.

Source: facebookresearch/dino 7c446df, eval_linear.py. Any data set of class folders, train/ and val/. For many learning
rates at once on features that are computed only once: task linear_sweep.
"""

from dataclasses import dataclass
from pathlib import Path

from ...pretrain.common.card import Card
from ...pretrain.common.ranges import bounded, one_of
from . import Metric, TaskConfig
from ._classes import ClassTask, scores


@dataclass
class Frozen:
    """What both linear tasks share.

    blocks: how many of the last blocks' class tokens, after the final norm, are joined; avgpool: join the mean of the
    last block's patch tokens as well. Null: 4 (or all there are) and no below a width of 768, else 1 and yes. Without a
    class token the image vector is used, and the protocol is `linear-image`. batch: images a step. resize, crop: for
    validation; crop: also the side of the training views. precision: of the network.
    """

    blocks: int | None = bounded(None, at_least=1)
    avgpool: bool | None = None
    epochs: int = bounded(100, at_least=1)
    batch: int = bounded(1024, at_least=1)
    resize: int = 256
    crop: int = bounded(224, at_least=1, at_most=8192)
    precision: str = one_of("float32", "bf16")


@dataclass
class Protocol(Frozen):
    """The protocol's values; lr: for 256 images a step."""

    lr: float = bounded(0.001, above=0)


class LinearTask(ClassTask):
    def check_card(self, values: Frozen, card: dict) -> None:
        """Blocks that the network has."""
        from ._joined import joined

        super().check_card(values, card)
        joined(Card.from_dict(card), values)


class Linear(LinearTask):
    def run(self, encoder, cfg: TaskConfig, out: Path) -> dict:
        """Train one classifier on views of the training images, and test it on the centres of the validation images."""
        from ._augmented import augmented
        from ._features import features
        from ._joined import joined
        from ._probe import fit

        p, data, what = cfg.protocol, cfg.data.content, joined(encoder.card, cfg.protocol)
        trained = p.epochs * len(data.train)  # images
        total = trained + len(data.val)

        def progress(epochs: float, text: str) -> None:
            cfg.progress(epochs * len(data.train), total, text)

        def seen(done: int) -> None:
            cfg.progress(trained + done, total, f"val {done}/{len(data.val)}")

        with augmented(encoder, what, cfg) as stream:
            probe = fit(cfg, what, what.width(encoder, p.crop), (p.lr,), stream, out, progress)
        val = features(encoder, data.val, what, what.name, cfg, seen)
        metrics, parts = scores({"": probe.top(val.to(cfg.device)).cpu()[0]}, data)
        own = {} if what.blocks else {"id": self.protocol_id.replace("-dino-", "-image-")}
        return {"metrics": metrics, "parts": parts, "protocol": what.in_force(encoder, p.crop) | own}


TASK = Linear(
    version=1,
    protocol_id="linear-dino-v1",
    protocol=Protocol,
    # The script prints the best of all epochs, which looks at the validation set; top1 here is the last epoch's.
    metrics=(Metric("top1", noise=0.1), Metric("top5", noise=0.1)),
    dataset="imagenet",
    kind="classification",
    published=(("imagenet_linear", "linear_100ep_frozen"), ("imagenet_linear", "linear_dino_protocol")),
    needs=("image", "blocks"),
)
