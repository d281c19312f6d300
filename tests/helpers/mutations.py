"""Ways to damage a checkpoint file, for `fuzz_checkpoints.py`: its bytes, its tensors, what it says of itself."""

import io
import json
import random
import re
from pathlib import Path

ODD = (  # values that a config or a card is not meant to have
    *(None, True, False, 0, -1, 1, 2, 3, 24, 10**9, 10**30, 1e308, -0.5, "", "gelu", "x" * 3000, "learned 9999x9999"),
    *([], [1], [1000] * 16, [[1, 2], 3], {}, {"a": {"b": []}}, ["gelu"], {"depth": 7}, "rotary", "class_attention"),
)
CONFIG = (
    *("hidden_act", "layer_norm_eps", "num_attention_heads", "num_heads", "hidden_size", "num_hidden_layers"),
    *("qkv_bias", "num_register_tokens", "image_size", "rope_theta", "use_gated_mlp", "mean", "std", "image_mean"),
    *("image_std", "pretrained_cfg", "model_args", "architecture", "arch", "model"),
)
SAID = ("args", "arch", "meta", "config", "epoch", "author", "__metadata__", "__author__", "num_heads", "model_args")
ABSURD = {  # a card of any size, which costs nothing to write
    "vit": {"depth": 1000, "dim": 65536, "mlp_ratio": 64, "registers": 1024, "heads": 65536, "patch": 1024},
    "swin": {"depths": [1000] * 16, "heads": [1] * 16, "dim": 65536, "window": 32, "patch": 1024},
    "resnet": {"blocks": [4000] * 4, "widths": [65536] * 4, "stem_channels": 65536, "groups": 65536},
}
OPCODES = [*(b".", b"(", b"R", b"\x81", b"b", b"0", b"Q", b"\x8f", b"u", b"e", b"2", b"\x94"), b"\xff" * 8]
OPCODES += [b"cos\nsystem\n", b"cpwned\nrun\n", b"\x8c\x05pwned\x8c\x03run\x93", b"\x95" + b"\xff" * 7 + b"\0"]
OPCODES += [b"\x96" + b"\xff" * 5 + b"\0\0\0", b"X\xff\xff\xff\x7f", b"\x97", b"\x82\x01"]
BLOCK = re.compile(r"^(.*?(?:blocks|layers?|layer\d|res\d)\.)(\d+)(\..+)$")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    out, damage = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(out))
    if damage == 0:
        return bytes(out[:at])
    if damage == 1:  # an opcode or a name
        at = rng.randrange(min(len(out), 2000)) if rng.random() < 0.5 else at
        out[at:at] = rng.choice(OPCODES)
    elif damage == 2:
        del out[at : at + rng.randrange(1, 30)]
    else:
        for _ in range(rng.choice([1, 1, 4, 20])):
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def holders(node, found=None) -> list[dict]:
    """All dicts of a tree that hold tensors directly."""
    import torch

    found = [] if found is None else found
    if isinstance(node, dict):
        if any(isinstance(v, torch.Tensor) for v in node.values()):
            found.append(node)
        for value in node.values():
            holders(value, found)
    elif isinstance(node, (list, tuple)):
        for value in node:
            holders(value, found)
    return found


def mutate_tensor(table: dict, damage: str, rng: random.Random) -> None:
    """Change one tensor of a table, or two."""
    import torch

    names = [k for k, v in table.items() if isinstance(v, torch.Tensor)]
    name, other = rng.choice(names), rng.choice(names)
    tensor = table[name]
    if damage == "swap":
        table[name], table[other] = table[other], tensor
    elif damage == "rename":
        table[rng.choice([f"{name}x", f"module.{name}", name[1:], name.replace("0", "7"), ""])] = table.pop(name)
    elif damage == "lose":
        del table[name]
    elif damage == "add":
        table[f"{name}.more"] = tensor.clone()
    elif damage == "shape":
        less = tensor[..., :-1] if tensor.ndim else tensor.new_zeros(2)
        table[name] = rng.choice([less, tensor[None], tensor.reshape(-1), tensor.new_zeros(0)])
    elif damage == "type":
        casts = [tensor.half(), tensor.bfloat16(), tensor.int(), tensor.bool(), tensor.to(torch.float8_e4m3fn)]
        table[name] = rng.choice([*casts, tensor.tolist(), "text"])
    elif damage == "nest":
        table[name] = {"value": tensor}
    elif damage == "transpose":
        table[name] = tensor.transpose(0, -1) if tensor.ndim else tensor
    elif damage == "expand":
        table[name] = tensor.reshape(-1)[0].clone().expand(tensor.shape) if tensor.numel() else tensor


def mutate_network(table: dict, damage: str, rng: random.Random) -> None:
    """Take a block or a family of tensors out of a network, or exchange two blocks; blocks stay numbered from 0."""
    if damage in ("family lost", "biases lost"):  # of all blocks, or of the network's own where it has no number
        ends = (".bias",) if damage == "biases lost" else (".bias", ".weight", ".gamma")
        families = sorted({re.sub(r"\d+", "#", k) for k in table if str(k).endswith(ends)})
        gone = rng.choice(families) if families else None
        for key in [k for k in table if re.sub(r"\d+", "#", str(k)) == gone]:
            del table[key]
        return
    found = {k: m for k in table if isinstance(k, str) and (m := BLOCK.match(k))}
    stages = {}  # of one network -> numbers of its blocks
    for match in found.values():
        stages.setdefault(match[1], set()).add(int(match[2]))
    stages = {stage: sorted(numbers) for stage, numbers in stages.items() if len(numbers) > 1 or damage == "block lost"}
    if not stages:
        return
    stage = rng.choice(sorted(stages))
    inside = {k: m for k, m in found.items() if m[1] == stage}
    values = {k: table[k] for k in inside}
    if damage == "block lost":
        one = rng.choice(stages[stage])
        for key in inside:
            del table[key]
        for key, match in inside.items():
            number = int(match[2])
            if number != one:  # those behind it move up
                table[f"{stage}{number - (number > one)}{match[3]}"] = values[key]
        return
    one, two = rng.sample(stages[stage], 2)
    for key, match in inside.items():
        other = {one: two, two: one}.get(int(match[2]))
        if f"{stage}{other}{match[3]}" in values:
            table[key] = values[f"{stage}{other}{match[3]}"]


TENSOR = ("swap", "rename", "lose", "add", "shape", "type", "nest", "transpose", "expand")
NETWORK = ("block lost", "family lost", "biases lost", "blocks exchanged")


def mutate_tree(tree, rng: random.Random) -> str:
    """Change a tree of tensors in place; -> what was done."""
    damage = rng.choice([*TENSOR, *NETWORK, *NETWORK, "said"])
    if damage == "said" and isinstance(tree, dict):
        tree[rng.choice(SAID)] = rng.choice(ODD)
        return damage
    table = rng.choice(holders(tree))
    if damage in NETWORK:
        mutate_network(table, damage, rng)
    else:
        mutate_tensor(table, rng.choice(TENSOR) if damage == "said" else damage, rng)
    return damage


def mutate_card(metadata: dict, rng: random.Random) -> str:
    """Absurd sizes or odd values in the card of a file of ours, in place."""
    about = json.loads(metadata["selfpatch_bench"])
    card = about["card"]
    if rng.random() < 0.5:
        family = rng.choice(list(ABSURD))
        sizes = {k: v for k, v in ABSURD[family].items() if rng.random() < 0.7}
        more = {"resnet": {"block": "basic", "bn_eps": 1e-5, "blocks": [1] * 4, "widths": [4] * 4, "stem_channels": 64}}
        more |= {"swin": {"window": 7, "depths": [2, 2], "heads": [1, 2], "patch_norm": True, "absolute_pos": False}}
        card |= {"family": family, "sizes": "padded"} | more.get(family, {}) | sizes
    else:
        card[rng.choice([*card, "depths", "blocks", "family"])] = rng.choice(ODD)
    metadata["selfpatch_bench"] = json.dumps(about)
    return "card"


def damaged(path: Path, rng: random.Random) -> tuple[bytes, str, str | None]:
    """A damaged copy of a file, as bytes, how it was damaged, and the text of a config.json to lie beside it."""
    import torch

    if rng.random() < 0.1:
        config = {key: rng.choice(ODD) for key in rng.sample(CONFIG, rng.randrange(1, 4))}
        return path.read_bytes(), "config", json.dumps(config if rng.random() < 0.9 else rng.choice(ODD))
    if rng.random() < 0.3 or path.suffix == ".pkl":  # which torch does not write
        return mutate_bytes(path.read_bytes(), rng), "bytes", None
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file, save

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tree = load_file(path)
        ours = "selfpatch_bench" in (metadata or {})
        damage = mutate_card(metadata, rng) if ours and rng.random() < 0.6 else mutate_tree(tree, rng)
        flat = {k: v.contiguous().clone() for k, v in tree.items() if isinstance(v, torch.Tensor)}
        return save(flat, metadata), damage, None
    tree = torch.load(path, weights_only=False)
    damage = mutate_tree(tree, rng)
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue(), damage, None
