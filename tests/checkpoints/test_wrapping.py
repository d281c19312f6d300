"""What lies around a checkpoint: dicts, prefixes, shards, folders, old files, half precision, names of the hub."""

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import warm
from format_examples import example_vit
from selfpatch_bench.benchmarks import UserError, load
from selfpatch_bench.benchmarks.checkpoints.open import build, default_name
from selfpatch_bench.benchmarks.checkpoints.state import read_file
from selfpatch_bench.benchmarks.hub import remote
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.benchmarks.run.opened import describe
from selfpatch_bench.benchmarks.run.plan import Options

FACTS = {"heads": 2, "mean": 0.5, "std": 0.5}


@pytest.fixture(scope="module")
def vit() -> dict:
    torch.manual_seed(0)
    return example_vit()


@pytest.fixture(scope="module")
def mark(vit, tmp_path_factory) -> str:
    """Fingerprint of these weights, read from a bare file."""
    path = tmp_path_factory.mktemp("bare") / "bare.pth"
    torch.save(vit, path)
    return open_checkpoint(path, format="dino").fingerprint


def put(vit: dict, prefix: str) -> dict:
    return {prefix + k: v for k, v in vit.items()}


TREES = {  # how trainers of the field wrap one and the same network
    "nested dicts": lambda v: {"checkpoint": {"net": {"weights": v}}},
    "backbone": lambda v: {"state_dict": put(v, "backbone.")},
    "ddp over backbone": lambda v: {"model": put(v, "module.backbone.")},
    "encoder_q": lambda v: {"state_dict": put(v, "module.encoder_q.")},
    "compile": lambda v: put(v, "_orig_mod."),
    "ddp over compile": lambda v: {"model": put(v, "module._orig_mod.")},
    "fsdp in the middle": lambda v: {
        k.replace("blocks.", "_fsdp_wrapped_module.blocks.").replace("attn.", "_checkpoint_wrapped_module.attn."): t
        for k, t in v.items()
    },
    "dino below a name": lambda v: {"run": {"teacher": put(v, "backbone."), "student": put(v, "module.backbone.")}},
    "beside an optimizer": lambda v: {
        "model": {"inner": v},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": torch.ones(1)},
        "epoch": 7,
    },
    "lightning": lambda v: {
        "state_dict": put(v, "model.backbone."),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "lr_schedulers": [{"last_epoch": 3}],
        "pytorch-lightning_version": "2.1",
    },
}


@pytest.mark.parametrize("name", TREES)
def test_wrapping_is_peeled_off(name, vit, mark, tmp_path):
    torch.save(TREES[name](vit), tmp_path / "x.pth")
    found = open_checkpoint(tmp_path / "x.pth", format="dino")
    assert found.fingerprint == mark
    assert found.accounting.startswith("30/30 tensors")
    tied = {found.reading.format, *(r.format for r in open_checkpoint(tmp_path / "x.pth", card=FACTS).rivals)}
    assert "dino" in tied  # without --format it is the same network, or a tie


BARE = {  # networks whose names alone do not say who wrote them
    "vit": lambda v: v,
    "resnet": lambda _: timm.create_model("resnet18", num_classes=0).state_dict(),
    "swin": lambda _: timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=8, num_heads=(1, 1, 2, 2)
    ).state_dict(),
}
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "backbone", "net.encoder", "state_dict.backbone")


@pytest.mark.parametrize("layout", BARE)
def test_a_wrapper_is_no_evidence(layout, vit, tmp_path):
    """Bare names give the same readings below any prefix, alone or beside a classifier and an optimizer."""
    weights = BARE[layout](vit)

    def found(tree) -> set:
        torch.save(tree, tmp_path / "x.pth")
        one = open_checkpoint(tmp_path / "x.pth", card={"heads": 2} if layout == "vit" else {})
        return {str(r.card) for r in (one.reading, *one.rivals)}

    bare = found(weights)
    assert len(bare) == (2 if layout == "vit" else 1)  # positions are resized by DINO's rule, or by timm's
    for wrapper in WRAPPERS:
        tree = put(weights, f"{wrapper}.")
        assert found(tree) == bare, wrapper
        training = {"optimizer_states": {"0": torch.ones(2)}, "lr_schedulers": [{"last_epoch": torch.ones(1)}]}
        around = wrapper.rpartition(".")[0]
        beside = {f"{around}.classifier.weight" if around else "classifier.weight": torch.ones(3, 24)}
        assert found(tree | training | beside) == bare, wrapper


def test_a_part_of_a_file(vit, mark, tmp_path):
    """What lies outside is counted, and recorded; a prefix that is not there names those that are."""
    two = put(vit, "model.backbone.") | {k: v + 1 for k, v in put(vit, "model.momentum.").items()}
    torch.save({"state_dict": two, "ema": put(vit, ""), "n_averaged": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"it holds 3 networks: state_dict.model.backbone. \(dino.*\(the same\)"):
        open_checkpoint(tmp_path / "x.pth", card=FACTS)
    for part in ("state_dict.model.backbone", "state_dict.model.backbone."):
        found = open_checkpoint(tmp_path / "x.pth", card=FACTS, part=part, format="dino")
        assert found.fingerprint == mark
        assert "61 outside the part (given)" in found.accounting
        assert found.facts["part"] == f"{part} (given)"
    assert open_checkpoint(tmp_path / "x.pth", card=FACTS, weights="ema", format="dino").fingerprint == mark
    for tree in ({"model": vit, "ema": vit}, {"state_dict": put(vit, "model.") | put(vit, "ema_model.module.")}):
        torch.save(tree, tmp_path / "y.pth")  # a wrapper, as it is around the network that it is the average of
        assert open_checkpoint(tmp_path / "y.pth", card=FACTS, weights="ema").rivals
    with pytest.raises(UserError, match=r"--part nothing: .*there are: state_dict.model.backbone., "):
        open_checkpoint(tmp_path / "x.pth", part="nothing")
    torch.save({"net": vit}, tmp_path / "y.pth")
    with pytest.raises(UserError, match="--weights ema: it holds none"):
        open_checkpoint(tmp_path / "y.pth", weights="ema")


def test_what_lies_beside_the_network_is_never_ignored(vit, tmp_path):
    """Only training state is set aside; a stray tensor keeps the wrapping from being peeled, and is named."""
    tree = {"a": {"b": vit}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
    torch.save(tree, tmp_path / "x.pth")
    assert "1 dropped (1 optimizer)" in open_checkpoint(tmp_path / "x.pth", format="dino").accounting
    torch.save(tree | {"something": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no format knows these 32 tensors \(a.b.*, optimizer.*, something\)"):
        open_checkpoint(tmp_path / "x.pth")
    tree["a"]["b"] = vit | {"something": torch.ones(2)}
    torch.save(tree, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no format knows"):
        open_checkpoint(tmp_path / "x.pth")


def test_old_files_and_storages_of_a_gpu(vit, mark, tmp_path, monkeypatch):
    """Files of torch before 1.6, and weights saved on `cuda:0`, on a machine without one."""
    torch.save({"teacher": vit}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "old.pth").fingerprint == mark
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    for new in (True, False):
        torch.save({"teacher": vit}, tmp_path / "gpu.pth", _use_new_zipfile_serialization=new)
        assert b"cuda:0" in (tmp_path / "gpu.pth").read_bytes()
        assert open_checkpoint(tmp_path / "gpu.pth").fingerprint == mark


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_half_precision(dtype, kind, vit, tmp_path):
    """Every weight is exactly the stored one, in float32."""
    half = {k: v.to(dtype) for k, v in vit.items()}
    path = tmp_path / f"h.{kind}"
    save_file(half, path) if kind == "safetensors" else torch.save(half, path)
    weights = load(path, format="dino", heads=2).vit.state_dict()
    assert all(torch.equal(weights[k], v.float()) and weights[k].dtype == torch.float32 for k, v in half.items())


def shards(folder: Path, vit: dict, ending: str, count: int = 3) -> Path:
    """The weights in several files with an index, as Hugging Face's `save_pretrained` writes them."""
    folder.mkdir(parents=True)
    stem, places = ("model" if ending == "safetensors" else "pytorch_model"), {}
    for i in range(count):
        part = dict(list(vit.items())[i::count])
        name = f"{stem}-{i + 1:05d}-of-{count:05d}.{ending}"
        save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(ending, vit, mark, tmp_path):
    """The folder or its index; every disagreement between index and files is refused, with the name."""
    index = shards(tmp_path / "a", vit, ending)
    (tmp_path / "a" / "config.json").write_text(json.dumps({"num_heads": 3}))
    for path in (tmp_path / "a", index):
        checkpoint = open_checkpoint(path, format="dino")
        assert (checkpoint.fingerprint, checkpoint.card.heads) == (mark, 3)
    table = json.loads(index.read_text())
    first, place = next(iter(table["weight_map"].items()))
    for change, words in (
        ({"weight_map": {k: v for k, v in table["weight_map"].items() if k != first}}, f"disagree on {first}"),
        ({"weight_map": table["weight_map"] | {"extra.weight": place}}, "disagree on extra.weight"),
        ({"weight_map": table["weight_map"] | {first: "../other.bin"}}, "not a file beside it"),
        ({"weight_map": table["weight_map"] | {first: "nowhere.bin"}}, "nowhere.bin is missing"),
        ({"weight_map": {}}, "no index of shards"),
        ([], "no index of shards"),
    ):
        index.write_text(json.dumps(change))
        with pytest.raises(UserError, match=words) as error:
            open_checkpoint(tmp_path / "a", format="dino")
        assert str(index) in str(error.value)
    index.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_checkpoint(index, format="dino")


NO_NAMES = {
    "long": "a" * 5000,
    "256 bytes": "a" * 256,
    "400 bytes": "é" * 200,
    "folder": "a/b.bin",
    "other": "a\\b.bin",
}
NO_NAMES |= {"zero": "a\0b.bin", "parent": "..", "surrogates": "\ud800" * 100}


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
def test_an_index_names_files_beside_it(name, vit, tmp_path):
    """Whatever its text: one line that names index and shard."""
    index = shards(tmp_path / "a", vit, "bin")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(vit, name)}))
    with pytest.raises(UserError, match=r"names the shard .*, which is not a file beside it") as error:
        open_checkpoint(tmp_path / "a")
    assert str(index) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 900


def test_names_that_no_file_can_have(vit, mark, tmp_path):
    """In `last_checkpoint`, which then says nothing; on the command line; a long one beside which no config can lie."""
    torch.save({"teacher": vit}, tmp_path / "checkpoint0001.pth")
    (tmp_path / "last_checkpoint").write_text("a" * 4000)
    assert open_checkpoint(tmp_path).fingerprint == mark
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "checkpoint0001.pth").rename(tmp_path / f"{'a' * 250}.pth")
    assert open_checkpoint(tmp_path / f"{'a' * 250}.pth").fingerprint == mark
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("a" * 5000))
    for command in (["inspect"], ["run", "--task", "knn"], ["convert", "o.safetensors"]):
        done = warm.run(command[0], "a" * 5000, *command[1:], cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "too long" in done.stderr


def test_folders_with_one_checkpoint(vit, mark, tmp_path):
    """A single file; mmengine's `last_checkpoint`; DINO's checkpoint.pth beside numbered ones; else all are named."""
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"run: a folder with no checkpoint"):
        open_checkpoint(run)
    (run / "log.txt").write_text("{}")
    torch.save({"teacher": vit}, run / "checkpoint0020.pth")
    assert open_checkpoint(run).fingerprint == mark
    torch.save({"teacher": {k: 2 * v for k, v in vit.items()}}, run / "checkpoint0040.pth")
    with pytest.raises(UserError, match=r"several checkpoints \(checkpoint0020.pth, checkpoint0040.pth\): name one"):
        open_checkpoint(run)
    torch.save({"teacher": {k: 3 * v for k, v in vit.items()}}, run / "checkpoint.pth")
    assert torch.equal(open_checkpoint(run).reading.weights["cls_token"], 3 * vit["cls_token"])
    (run / "last_checkpoint").write_text("/elsewhere/run/checkpoint0020.pth")
    assert open_checkpoint(run).fingerprint == mark


def test_hugging_face_folder(vit, mark, tmp_path):
    """config.json gives heads, preprocessor_config.json mean and std; safetensors go before .bin, as there."""
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.save({k: 2 * v for k, v in vit.items()}, folder / "pytorch_model.bin")
    save_file(vit, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    checkpoint = open_checkpoint(folder, format="timm")
    assert (checkpoint.fingerprint, checkpoint.card.heads, checkpoint.card.std) == (mark, 3, (0.2,) * 3)
    (folder / "model.safetensors").unlink()
    assert torch.equal(open_checkpoint(folder, format="timm").reading.weights["norm.bias"], 2 * vit["norm.bias"])


# -- torch.distributed.checkpoint


def test_dcp_folder(vit, mark, tmp_path):
    """As one process saves it; values that are no tensors become the rest, so that args give the heads."""
    tree = {"model": {"teacher": put(vit, "backbone.")}, "epoch": 3, "args": {"num_heads": 3}}
    dcp.save(tree | {"optimizer": {"state": {"0": {"exp_avg": torch.ones(3)}}}}, checkpoint_id=tmp_path / "d")
    state, meta = read_file(tmp_path / "d")
    assert meta["epoch"] == 3
    assert state.shapes["model.teacher.backbone.cls_token"] == (1, 1, 24)
    checkpoint = open_checkpoint(tmp_path / "d")
    assert (checkpoint.fingerprint, checkpoint.card.heads) == (mark, 3)
    assert "1 optimizer" in checkpoint.accounting


SHARDED = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
vit = torch.load(f"{folder}/vit.pth")
tree = {k: distribute_tensor(v, mesh, [Shard(v.dim() - 1 if i % 2 else 0)]) for i, (k, v) in enumerate(vit.items())}
dcp.save({"backbone": tree}, checkpoint_id=f"{folder}/d")
dist.barrier()  # the one that is done first would take the store away from the other
dist.destroy_process_group()
"""


def test_dcp_folder_of_two_processes(vit, mark, tmp_path):
    """FSDP's way: each tensor in two pieces, along the first or the last axis (of length 1 too: one piece is empty)."""
    torch.save(vit, tmp_path / "vit.pth")
    jobs = [warm.Process(i, tmp_path, code=SHARDED) for i in (0, 1)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert len(list((tmp_path / "d").glob("*.distcp"))) == 2
    assert open_checkpoint(tmp_path / "d", format="dino").fingerprint == mark


def test_damaged_dcp_folders_are_refused(vit, tmp_path):
    folder = tmp_path / "d"
    dcp.save({"backbone": vit}, checkpoint_id=folder)
    data = next(folder.glob("*.distcp"))
    whole, index = data.read_bytes(), (folder / ".metadata").read_bytes()
    for changed, where, words in (
        (whole[: len(whole) // 2], data, "truncated"),
        (whole[:2000] + b"\0" * 3000 + whole[5000:], data, "piece of|damaged|not a torch file"),
        (index.replace(b"__0_0.distcp", b"/etc/a.distcp"), folder / ".metadata", "not one beside it|damaged"),
        (index.replace(b"_StorageInfo", b"_StorageEvil"), folder / ".metadata", "refuses to unpickle"),
        (index[:500], folder / ".metadata", "damaged|truncated"),
    ):
        data.write_bytes(whole)
        (folder / ".metadata").write_bytes(index)
        where.write_bytes(changed)
        with pytest.raises(UserError, match=words) as error:
            open_checkpoint(folder, format="dino")
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
    data.unlink()
    (folder / ".metadata").write_bytes(index)
    with pytest.raises(UserError, match=r"distcp: cannot be read"):
        open_checkpoint(folder, format="dino")


# -- timm:NAME and hf:REPO


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that a client needs to get files: HEAD and GET of REPO/resolve/main/FILE."""

    root: Path
    asked: list

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        type(self).asked.append(self.path)
        repo, _, file = self.path.partition("/resolve/main/")
        path = self.root / repo.strip("/") / file
        if not (file and path.is_file()):
            self.send_response(404)
            repo_there = (self.root / repo.strip("/")).is_dir()
            self.send_header("X-Error-Code", "EntryNotFound" if repo_there else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hash(data) & 0xFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in the hub's place, and an empty cache."""
    import huggingface_hub.constants as constants

    handler = type("Handler", (Hub,), {"root": tmp_path / "server", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield handler, server
    server.shutdown()
    server.server_close()


def test_hf_repository_is_downloaded_once_then_cached(hub, vit, mark):
    """Shards and configs included; with the server gone the cache is enough, and the network is not asked."""
    handler, server = hub
    repo = handler.root / "someone" / "vit-tiny"
    shards(repo, vit, "safetensors")
    (repo / "config.json").write_text(json.dumps({"num_heads": 2, "mean": [0.5] * 3, "std": [0.5] * 3}))
    name = "hf:someone/vit-tiny"
    first = open_checkpoint(name, format="timm")
    assert (first.fingerprint, first.card.heads, first.card.mean) == (mark, 2, (0.5,) * 3)
    assert default_name(Path(name)) == name
    handler.asked.clear()
    server.shutdown()
    server.server_close()
    again = describe(Path(name), Options(format="timm")).model
    assert (again.fingerprint, again.name) == (mark, name)
    assert handler.asked == []


def test_hf_repository_that_does_not_exist(hub):
    for name, words in (("hf:no/such", "cannot be downloaded"), ("hf:../x/y", "a repository of the hub")):
        with pytest.raises(UserError, match=words) as error:
            open_checkpoint(name)
        assert "\n" not in str(error.value)
    hub[0].root.joinpath("someone/empty").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has none of model\.safetensors"):
        open_checkpoint("hf:someone/empty")


def test_offline_with_nothing_cached_is_one_clear_line(hub):
    """No server listens: the line says what is not where, and what to do."""
    hub[1].shutdown()
    hub[1].server_close()
    tag = "test_vit.r160_in1k"
    for name in ("hf:someone/vit-tiny", f"timm:{tag}"):
        with pytest.raises(
            UserError, match=r"not in the cache .* cannot be downloaded .* run once with a network"
        ) as e:
            open_checkpoint(name)
        assert str(e.value).startswith(name)
        assert "\n" not in str(e.value)


def test_timm_model_by_its_name(hub):
    """timm's own small model, its weights on the server: heads, mean and std are what timm says, features its own."""
    torch.manual_seed(3)
    network = timm.create_model("test_vit", dynamic_img_size=True).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    cfg = timm.get_pretrained_cfg("test_vit")
    repo = hub[0].root / cfg.hf_hub_id
    repo.mkdir(parents=True)
    save_file(network.state_dict(), repo / "model.safetensors")
    checkpoint = open_checkpoint(f"timm:test_vit.{cfg.tag}")
    assert checkpoint.reading.format == "timm"
    assert not checkpoint.rivals
    encoder = build(checkpoint)
    assert (encoder.card.heads, encoder.card.mean) == (network.blocks[0].attn.num_heads, tuple(cfg.mean))
    assert encoder.name == f"timm:test_vit.{cfg.tag}"
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        wanted = network.forward_features(images)
    found = encoder(images)
    tokens = found.patches[0].flatten(2).transpose(1, 2)
    assert (tokens - wanted[:, -tokens.shape[1] :]).abs().max() / wanted.abs().max() < 3e-6


def test_timm_says_what_weights_do_not_show():
    """Heads, norm eps and activation of its networks; some of SigLIP's have another GELU, which no name shows."""
    assert remote.network_facts("vit_tiny_patch16_224") == {
        **{"num_heads": 3, "norm_eps": 1e-6},
        **{"act": "gelu (erf)", "global_pool": "token"},
    }
    assert remote.network_facts("vit_base_patch32_siglip_256")["act"] == "gelu (tanh)"
    assert remote.network_facts("vit_giant_patch14_dinov2")["act"] == "swiglu"
    assert remote.network_facts("resnet18") == {}


def test_unknown_timm_names_are_refused_without_the_network():
    with pytest.raises(UserError, match="timm has no such pretrained model; near: vit_small_patch"):
        open_checkpoint("timm:vit_small_patch16_224.nosuchtag")
    with pytest.raises(UserError, match="no such pretrained model"):
        open_checkpoint("timm:")


def test_a_file_of_that_name_is_the_file(vit, tmp_path, monkeypatch):
    """Whatever exists as a path is a checkpoint."""
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": vit}, "timm:x.pth")
    assert not remote.is_remote(Path("timm:x.pth"))
    assert load("timm:x.pth", heads=2, format="dino").card.dim == 24


def test_nothing_but_the_two_names_imports_a_client(tmp_path, vit):
    """Reading a file leaves the hub's client alone."""
    torch.save({"teacher": vit}, tmp_path / "x.pth")
    code = (
        "import sys, socket\n"
        "def no(*a, **k): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = no\n"
        "from selfpatch_bench.benchmarks.commands.inspect import report\n"
        "from pathlib import Path\n"
        f"print(report(Path({str(tmp_path / 'x.pth')!r}), None, {{}})[:40])\n"
    )
    done = warm.run(code=code, env=os.environ | {"HF_HOME": "/nowhere"})
    assert done.returncode == 0, done.stderr
