"""`timm:NAME` and `hf:REPO`: checkpoints that the user asks for by name, from timm's or the Hugging Face cache.

What the cache lacks is downloaded, because the user named it; but for `selfpatch zoo fetch`, nothing else in this
package touches the network.
"""

import json
import logging
import os
import re
from pathlib import Path

from ...pretrain.common.errors import UserError, shorten
from ..checkpoints.named import build, facts_of

PREFIXES = ("timm:", "hf:")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIGS = ("config.json", "preprocessor_config.json")
TIMEOUT = 10  # seconds that the server may be silent


def is_remote(path: Path) -> bool:
    """Is it `timm:NAME` or `hf:REPO`, and no file or folder of that name?"""
    return str(path).startswith(PREFIXES) and not path.exists()


def resolve(path: Path) -> tuple[Path, dict]:
    """(file or folder to read, what timm says of its network) of a path, `timm:NAME` or `hf:REPO`. Raises UserError."""
    if not is_remote(path):
        return path, {}
    name = str(path)
    where, _, rest = name.partition(":")
    if where == "timm":
        return _timm(rest, name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
        raise UserError(f"{name}: hf:REPO is a repository of the hub, like hf:facebook/dino-vits16")
    file = _hub(rest, name)
    return file, _known_to_timm(file.parent / "config.json")


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
            return Path(hf_hub_download(repo, file, local_files_only=local, etag_timeout=TIMEOUT))
        except Exception as error:  # whatever the client raises: no such repository, no network, a full disk
            if isinstance(error, EntryNotFoundError) and (local or not isinstance(error, LocalEntryNotFoundError)):
                return None
            raise _absent(name, constants.HF_HUB_CACHE, error) from None

    def shards(index: Path, local: bool) -> bool:
        """Get what an index of shards names. Is all of it there?"""
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


def _absent(name: str, cache: str | os.PathLike, error: Exception) -> UserError:
    what = type(error).__name__
    reason = shorten(" ".join(str(error).split()) or what, 200)
    return UserError(
        f"{name}: not in the cache ({cache}), and it cannot be downloaded ({what}: {reason}); "
        "run once with a network, or give a file"
    )


def _timm(tag: str, name: str) -> tuple[Path, dict]:
    """A pretrained tag of timm: its weights and what timm knows of the network (heads, mean, std)."""
    import timm

    arch = tag.partition(".")[0]
    try:
        cfg = timm.get_pretrained_cfg(tag) if timm.is_model(arch) else None
    except RuntimeError:  # the architecture has other tags
        cfg = None
    if cfg is None:
        near = timm.list_models(f"*{arch[:12]}*", pretrained=True)[:4] if tag else []
        raise UserError(f"{name}: timm has no such pretrained model" + (f"; near: {', '.join(near)}" if near else ""))
    if not (cfg.hf_hub_id or cfg.url or cfg.file):
        tags = ", ".join(timm.list_pretrained(f"{arch}.*")[:6])
        raise UserError(f"{name}: timm has no weights for it" + (f"; there are {tags}" if tags else ""))
    about = {"timm": network_facts(tag) | {"mean": list(cfg.mean), "std": list(cfg.std), "architecture": tag}}
    if cfg.file:
        return Path(cfg.file), about
    if cfg.hf_hub_id:
        return _hub(cfg.hf_hub_id, name, cfg.hf_hub_filename), about
    from timm.models._hub import download_cached_file, get_cache_dir

    try:
        return Path(download_cached_file(cfg.url, progress=False)), about
    except Exception as error:
        raise _absent(name, get_cache_dir(), error) from None


def network_facts(tag: str) -> dict:
    """What timm's network of that name is, beyond what weights show: num_heads, norm_eps, act and global_pool, where it
    is a ViT."""
    network = build(tag)
    return {} if network is None else facts_of(network)


def _known_to_timm(config: Path) -> dict:
    """What timm says of the network of a repository of its own, whose config.json names it; {} for others."""
    try:
        tag = json.loads(config.read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    import timm

    return {"timm": network_facts(tag)} if isinstance(tag, str) and timm.is_model(tag) else {}
