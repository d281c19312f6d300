"""Damaged and hostile checkpoint files through the whole loader, in a worker process that is restarted on a crash.

    python tests/fuzz_checkpoints.py [--count 10000] [--seed 0] [--formats dino,mae] [--timeout 30]

Every format's `example()` file is mutated: bytes flipped, cut, removed, opcodes inserted; and its tree, saved again:
keys swapped, renamed, lost or doubled, shapes and types changed, tensors filled with others. Each file must end in a
refusal of one line or in a correct load: exactly the tensors of the network, and, where only the wrapping was damaged,
the very same. The worker watches for what must never happen: a program started, code compiled, a file written, a
network call, or a module imported because a file names it.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.dlopen")
WRITING = ("w", "a", "x", "+")


# -- the worker


def worker() -> None:
    """One line of JSON in, {path, format, card}; one out, {"refused": text} or {"loaded": ..., "names": ...}."""
    import torch

    from selfpatch_bench.benchmarks.errors import UserError
    from selfpatch_bench.benchmarks.loading import open_checkpoint

    torch.set_num_threads(1)
    seen: list[str] = []
    watching = threading.Event()

    def audit(event, arguments):
        if not watching.is_set():
            return
        if event.startswith(FORBIDDEN):
            seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[1], str) and any(c in arguments[1] for c in WRITING):
            seen.append(f"open for writing {arguments[0]!r:.200}")
        elif event == "import" and arguments[0] in ("pwned", "antigravity", "turtle"):
            seen.append(f"import {arguments[0]}")

    sys.addaudithook(audit)
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        job = json.loads(line)
        watching.set()
        try:
            checkpoint = open_checkpoint(job["path"], format=job["format"], card=job["card"])
            weights = checkpoint.reading.weights
            answer = {"loaded": checkpoint.fingerprint, "names": sorted(weights), "format": checkpoint.reading.format}
        except UserError as error:
            answer = {"refused": str(error)}
        except BaseException as error:
            answer = {"raised": f"{type(error).__name__}: {error!s:.300}"}
        finally:
            watching.clear()
        print(json.dumps(answer | {"seen": seen}), file=replies, flush=True)
        seen.clear()


class Worker:
    """A worker process in an empty folder, started again when it has died or did not answer in time."""

    def __init__(self, folder: Path, timeout: float):
        self.folder, self.timeout, self.process = folder, timeout, None

    def ask(self, job: dict) -> dict:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=self.folder
            )
        late = threading.Timer(self.timeout, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        hung = not late.is_alive()
        late.cancel()
        if line:
            return json.loads(line)
        self.process.wait()
        return {"hung" if hung else "crashed": f"exit status {self.process.returncode}", "seen": []}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()


# -- mutations


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    out, kind = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(out))
    if kind == 0:
        return bytes(out[:at])
    if kind == 1:  # an opcode or a name
        at = rng.randrange(min(len(out), 2000)) if rng.random() < 0.5 else at
        opcodes = [
            b".",
            b"(",
            b"R",
            b"\x81",
            b"b",
            b"0",
            b"Q",
            b"cos\nsystem\n",
            b"cpwned\nrun\n",
            b"\x8f",
            b"u",
            b"\xff" * 8,
        ]
        out[at:at] = rng.choice(opcodes)
    elif kind == 2:
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


def mutate_tree(tree, rng: random.Random) -> str:
    """Change a tree of tensors in place; -> what was done."""
    import torch

    table = rng.choice(holders(tree))
    names = [k for k, v in table.items() if isinstance(v, torch.Tensor)]
    name, other = rng.choice(names), rng.choice(names)
    tensor, kind = table[name], rng.choice(["swap", "rename", "lose", "add", "shape", "type", "nest", "transpose"])
    if kind == "swap":
        table[name], table[other] = table[other], tensor
    elif kind == "rename":
        table[rng.choice([f"{name}x", f"module.{name}", name[1:], name.replace("0", "7"), ""])] = table.pop(name)
    elif kind == "lose":
        del table[name]
    elif kind == "add":
        table[f"{name}.more"] = tensor.clone()
    elif kind == "shape":
        less = tensor[..., :-1] if tensor.ndim else tensor.new_zeros(2)
        table[name] = rng.choice([less, tensor[None], tensor.reshape(-1), tensor.new_zeros(0)])
    elif kind == "type":
        table[name] = rng.choice(
            [tensor.half(), tensor.bfloat16(), tensor.int(), tensor.bool(), tensor.tolist(), "text"]
        )
    elif kind == "nest":
        table[name] = {"value": tensor}
    else:
        table[name] = tensor.transpose(0, -1) if tensor.ndim else tensor
    return kind


def examples(folder: Path, only: list[str] | None) -> dict[str, tuple[Path, dict]]:
    """format -> (its example file, card overrides); folders and formats without an example are left out."""
    from selfpatch_bench.benchmarks import plugins

    found = {}
    for name, plugin in plugins.scan("formats").items():
        if (only and name not in only) or not hasattr(plugin.module, "example"):
            continue
        (folder / name).mkdir(parents=True)
        path, card = plugin.module.example(folder / name)
        if Path(path).is_file():
            found[name] = Path(path), {k: str(v) for k, v in card.items()}
    return found


def damaged(path: Path, rng: random.Random) -> tuple[bytes, str]:
    """A damaged copy of a file, as bytes, and how it was damaged."""
    import torch

    if rng.random() < 0.5 or path.suffix == ".pkl":  # which torch does not write
        return mutate_bytes(path.read_bytes(), rng), "bytes"
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file, save

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tree = load_file(path)
        kind = mutate_tree(tree, rng)
        flat = {k: v.contiguous().clone() for k, v in tree.items() if isinstance(v, torch.Tensor)}
        return save(flat, metadata), kind
    tree = torch.load(path, weights_only=False)
    kind = mutate_tree(tree, rng)
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue(), kind


# -- the judgement


def judge(answer: dict, original: dict, kind: str) -> str | None:
    """What is wrong with the outcome, or None."""
    for what in ("crashed", "hung", "raised"):
        if what in answer:
            return f"{what}: {answer[what]}"
    if answer["seen"]:
        return f"did {answer['seen'][0]}"
    if "refused" in answer:
        text = answer["refused"]
        return (
            None if text.isprintable() and len(text) < 2000 else f"a refusal of more than one clear line: {text!r:.200}"
        )
    # A network without registers is a network too; nothing in a state dict tells that it once had some.
    there, all_of_it = set(answer["names"]), set(original["names"])
    if all_of_it - there <= {"reg_token"} and there < all_of_it:
        return None
    if there != all_of_it and answer["format"] == original["format"]:
        return "a partial load: other tensors than the whole network's"
    if kind in ("lose", "add", "nest", "rename") and answer["loaded"] != original["loaded"]:
        return f"the weights changed, although only names did ({kind})"
    return None


def fuzz(
    count: int, seed: int, folder: Path, only: list[str] | None = None, timeout: float = 30.0
) -> tuple[Counter, list]:
    """Counts by outcome, and the failures as (format, kind, number, what). Files of failures stay in folder/failed."""
    rng = random.Random(seed)
    files = examples(folder / "good", only)
    box = folder / "box"
    box.mkdir()
    runner, counts, failures = Worker(box, timeout), Counter(), []
    try:
        jobs = {n: {"format": n, "card": card} for n, (_, card) in files.items()}
        originals = {n: runner.ask(jobs[n] | {"path": str(path)}) for n, (path, _) in files.items()}
        for name, answer in originals.items():
            if "loaded" not in answer:
                failures.append((name, "undamaged", -1, str(answer)))
        names = sorted(n for n, a in originals.items() if "loaded" in a)
        for number in range(count):
            name = names[number % len(names)]
            path, _ = files[name]
            data, kind = damaged(path, rng)
            bad = folder / f"bad{path.suffix}"
            bad.write_bytes(data)
            job = jobs[name] | {"path": str(bad), "format": name if rng.random() < 0.7 else None}
            answer = runner.ask(job)
            counts["loaded" if "loaded" in answer else "refused" if "refused" in answer else "failed"] += 1
            problem = judge(answer, originals[name], kind)
            if problem is None and list(box.iterdir()):
                problem = f"files were written: {[p.name for p in box.iterdir()]}"
            if problem:
                (folder / "failed").mkdir(exist_ok=True)
                (folder / "failed" / f"{number}-{name}-{kind}{path.suffix}").write_bytes(data)
                failures.append((name, kind, number, problem))
    finally:
        runner.stop()
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", help="only these, separated by commas")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for a file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    counts, failures = fuzz(args.count, args.seed, folder, args.formats and args.formats.split(","), args.timeout)
    print(f"{args.count} files: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    for name, kind, number, what in failures:
        print(f"{name}, file {number} ({kind}): {what}")
    if failures:
        print(f"the files lie in {folder / 'failed'}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
