"""`timm:NAME` and `hf:REPO`: checkpoints that the user asks for by name, from timm's or the Hugging Face cache.

What the cache lacks is downloaded, because the user named it; but for `selfpatch zoo fetch`, nothing else in this
package touches the network.
"""

import logging
import os
import re
from pathlib import Path

from ...pretrain.common.errors import UserError

KINDS = ("timm:", "hf:")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIGS = ("config.json", "preprocessor_config.json")
TIMEOUT = 10  # seconds that the server may be silent


def find(path: Path) -> tuple[Path, dict]:
    """(file or folder to read, what is told of its network) of a path, `timm:NAME` or `hf:REPO`. Raises UserError."""
    return fetch(str(path)) if is_remote(path) else (path, {})


def is_remote(path: Path) -> bool:
    """Is it `timm:NAME` or `hf:REPO`, and no file or folder of that name?"""
    return str(path).startswith(KINDS) and not path.exists()


def fetch(name: str) -> tuple[Path, dict]:
    """(file or folder to read, what timm says of the network) of `timm:NAME` or `hf:REPO`. Raises UserError."""
    kind, _, rest = name.partition(":")
    if kind == "hf":
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
            raise UserError(f"{name}: hf:REPO is a repository of the hub, like hf:facebook/dino-vits16")
        file = _hub(rest, name)
        return file, _known_to_timm(file.parent / "config.json")
    return _timm(rest, name)


def _hub(repo: str, name: str, only: str | None = None) -> Path:
    """The weights of a repository (`only`: this file of it), with configs beside them, from the cache or downloaded.

    The cache comes first and entirely: it is asked about every file before the network is asked about any.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def get(file: str, local: bool) -> Path | None:
        try:
            if not local:  # without a network this fails at once, where the download tries again for half a minute
                get_hf_file_metadata(hf_hub_url(repo, file), timeout=TIMEOUT)
            found = hf_hub_download(repo, file, local_files_only=local, etag_timeout=TIMEOUT)
        except LocalEntryNotFoundError as error:
            if local:
                return None
            raise _absent(name, constants.HF_HUB_CACHE, error) from None
        except EntryNotFoundError:
            return None
        except Exception as error:  # whatever the client raises: no such repository, no network, a full disk
            raise _absent(name, constants.HF_HUB_CACHE, error) from None
        return Path(found)

    def shards(index: Path, local: bool) -> bool:
        """Get what an index of shards names. Is all of it there?"""
        import json

        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return True  # reading it will say what is wrong
        return all(get(file, local) for file in sorted(names) if isinstance(file, str))

    for local in (True, False):
        for file in [only] if only else WEIGHTS:
            weights = get(file, local)
            if weights and (not file.endswith(".index.json") or shards(weights, local)):
                for config in CONFIGS:
                    get(config, local)
                return weights
    raise UserError(f"{name}: the repository has none of {', '.join(WEIGHTS)}")


def _absent(name: str, cache, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 200 else reason[:200] + "..."
    return UserError(
        f"{name}: not in the cache ({cache}), and it cannot be downloaded ({type(error).__name__}: {reason}); "
        "run once with a network, or give a file"
    )


def _timm(tag: str, name: str) -> tuple[Path, dict]:
    """A pretrained tag of timm: its weights and what timm knows of the network (heads, mean, std)."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(tag) if timm.is_model(tag.partition(".")[0]) else None
    except RuntimeError:  # the architecture has other tags
        cfg = None
    if cfg is None:
        near = timm.list_models(f"*{tag.partition('.')[0][:12]}*", pretrained=True)[:4] if tag else []
        raise UserError(f"{name}: timm has no such pretrained model" + (f"; near: {', '.join(near)}" if near else ""))
    if not (cfg.hf_hub_id or cfg.url or cfg.file):
        tags = ", ".join(timm.list_pretrained(f"{tag.partition('.')[0]}.*")[:6])
        raise UserError(f"{name}: timm has no weights for it" + (f"; there are {tags}" if tags else ""))
    told = network_facts(tag) | {"mean": list(cfg.mean), "std": list(cfg.std), "architecture": tag}
    if cfg.file:
        return Path(cfg.file), {"timm": told}
    if cfg.hf_hub_id:
        return _hub(cfg.hf_hub_id, name, cfg.hf_hub_filename), {"timm": told}
    from timm.models._hub import download_cached_file, get_cache_dir

    try:
        return Path(download_cached_file(cfg.url, progress=False)), {"timm": told}
    except Exception as error:
        raise _absent(name, os.fspath(get_cache_dir()), error) from None


def network_facts(tag: str) -> dict:
    """What timm's network of that name is, beyond what weights show: num_heads, norm_eps and act, where it is a ViT."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(tag, pretrained=False)
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(blocks[0], "attn") or not hasattr(blocks[0], "mlp"):
        return {}
    block = blocks[0]
    facts = {"num_heads": int(block.attn.num_heads), "norm_eps": float(getattr(block.norm1, "eps", 1e-6))}
    act = getattr(block.mlp, "act", None)
    name = type(act).__name__  # timm has a GELU of its own beside torch's
    name = "GELUTanh" if getattr(act, "approximate", "none") != "none" else name
    facts["act"] = {"GELU": "gelu (erf)", "GELUTanh": "gelu (tanh)", "SiLU": "swiglu"}.get(name, name)
    return facts


def _known_to_timm(config: Path) -> dict:
    """The same for a repository of timm's, whose config.json names the architecture; {} for others."""
    import json

    try:
        tag = json.loads(config.read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    import timm

    return {"timm": network_facts(tag)} if isinstance(tag, str) and timm.is_model(tag) else {}
