"""Everything in capitals: a format of a user's own, as README.md tells him to write one."""

from selfpatch_bench.benchmarks.card import vit_card


def claims(shapes, meta):
    return 3 if "POS_EMBED" in shapes else 0


def convert(state, meta):
    weights = {k.lower(): state[k] for k in state if not k.startswith("QUEUE")}
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes), {k: "queue" for k in state if k.startswith("QUEUE")}
