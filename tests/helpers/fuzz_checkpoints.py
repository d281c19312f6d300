"""Damaged and hostile checkpoint files through the whole loader, in a worker process that is restarted on a crash.

    python tests/helpers/fuzz_checkpoints.py [--count 10000] [--seed 0] [--formats dino,mae] [--timeout 20]

The example file of every format is damaged (mutations.py): bytes flipped, cut, removed, opcodes inserted; its tree,
saved again: keys swapped, renamed, lost or doubled, shapes and types changed, a block, a family of tensors or of biases
lost, two blocks of one network exchanged, odd values in what it says of itself, absurd sizes in its card, odd types in
a config beside it. Each file must end in a refusal of one line or in a correct load: exactly the tensors of the
network, and, where only the wrapping was damaged, the very same; a smaller network is said to be unusual. The worker
watches for what must never happen: a program started, code compiled, a file written, a network call, or a module
imported because a file names it.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from mutations import damaged

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "ctypes.dlopen")
WRITING = ("w", "a", "x", "+")
SLOW = 20.0  # seconds of a processor that no file may take


# -- the worker


def worker() -> None:
    """One line of JSON in, {path, format, card}; one out, {"refused": text} or {"loaded": ..., "names": ...}."""
    import torch

    from selfpatch_bench.benchmarks.hub.open import open_checkpoint
    from selfpatch_bench.pretrain.common.errors import UserError

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
        request = json.loads(line)
        watching.set()
        began = time.process_time()
        try:
            checkpoint = open_checkpoint(request["path"], format=request["format"], card=request["card"])
            weights = checkpoint.reading.weights
            answer = {"loaded": checkpoint.fingerprint, "names": sorted(weights), "format": checkpoint.reading.format}
            answer |= {"warnings": checkpoint.warnings}
        except UserError as error:
            answer = {"refused": str(error)}
        except BaseException as error:
            answer = {"raised": f"{type(error).__name__}: {error!s:.300}"}
        finally:
            watching.clear()
        answer |= {"seen": seen, "seconds": time.process_time() - began}
        print(json.dumps(answer), file=replies, flush=True)
        seen.clear()


class Worker:
    """A worker process in an empty folder, started again when it has died or did not answer in time."""

    def __init__(self, folder: Path, timeout: float):
        self.folder, self.timeout, self.process = folder, timeout, None

    def ask(self, request: dict) -> dict:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=self.folder
            )
        late = threading.Timer(self.timeout, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
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


# -- the files


def examples(folder: Path, only: list[str] | None) -> dict[str, tuple[Path, dict]]:
    """format -> (its example file, card overrides); of a folder of Hugging Face's, the file in it."""
    from format_examples import format_example
    from selfpatch_bench.benchmarks.checkpoints import FORMATS
    from selfpatch_bench.benchmarks.checkpoints.folders import locate

    found = {}
    for name in FORMATS.scan():
        if only and name not in only:
            continue
        (folder / name).mkdir(parents=True)
        path, card = format_example(name, folder / name)
        file = locate(path) if path.is_dir() else path
        found[name] = file, {k: str(v) for k, v in card.items()}
    return found


# -- the judgement


def judge(answer: dict, original: dict, damage: str) -> str | None:
    """What is wrong with the outcome, or None."""
    for what in ("crashed", "hung", "raised"):
        if what in answer:
            return f"{what}: {answer[what]}"
    if answer["seen"]:
        return f"did {answer['seen'][0]}"
    if answer.get("seconds", 0) > SLOW:
        return f"took {answer['seconds']:.0f} s of a processor"
    if "refused" in answer:
        text = answer["refused"]
        return (
            None if text.isprintable() and len(text) < 2000 else f"a refusal of more than one clear line: {text!r:.200}"
        )
    # A network without registers is a network too; nothing in a state dict tells that it once had some.
    there, all_of_it = set(answer["names"]), set(original["names"])
    said = set(answer["warnings"]) - set(original["warnings"])
    if all_of_it - there <= {"reg_token"} and there < all_of_it:
        return None
    if there != all_of_it and not said:
        return f"a partial load in silence: other tensors than the whole network's ({damage}, as {answer['format']})"
    names_only = damage in ("lose", "add", "nest", "rename", "said", "config", "card")
    if names_only and not said and answer["loaded"] != original["loaded"]:
        return f"the weights changed, although only names did ({damage})"
    return None


def fuzz(
    count: int, seed: int, folder: Path, only: list[str] | None = None, timeout: float = 30.0
) -> tuple[Counter, list]:
    """Counts by outcome, and the failures as (format, damage, number, what); their files stay in folder/failed."""
    rng = random.Random(seed)
    files = examples(folder / "good", only)
    box = folder / "box"
    box.mkdir()
    runner, counts, failures, slowest = Worker(box, timeout), Counter(), [], 0.0
    try:
        requests = {n: {"format": n, "card": card} for n, (_, card) in files.items()}
        originals = {n: runner.ask(requests[n] | {"path": str(path)}) for n, (path, _) in files.items()}
        for name, answer in originals.items():
            if "loaded" not in answer:
                failures.append((name, "undamaged", -1, str(answer)))
        names = sorted(n for n, a in originals.items() if "loaded" in a)
        for number in range(count):
            name = names[number % len(names)]
            path, _ = files[name]
            data, damage, config = damaged(path, rng)
            bad = folder / f"bad{path.suffix}"
            bad.write_bytes(data)
            beside = bad.with_suffix(".config.json")
            beside.unlink(missing_ok=True)
            if config is None and path.with_name("config.json").exists():
                config = path.with_name("config.json").read_text()
            if config is not None:
                beside.write_text(config)
            request = requests[name] | {"path": str(bad), "format": name if rng.random() < 0.7 else None}
            answer = runner.ask(request)
            outcome = "loaded" if "loaded" in answer else "refused" if "refused" in answer else "failed"
            counts[outcome] += 1
            counts[f"{damage}: {outcome}"] += 1
            slowest = max(slowest, answer.get("seconds", 0.0))
            problem = judge(answer, originals[name], damage)
            if problem is None and list(box.iterdir()):
                problem = f"files were written: {[p.name for p in box.iterdir()]}"
            if problem:
                (folder / "failed").mkdir(exist_ok=True)
                (folder / "failed" / f"{number}-{name}-{damage}{path.suffix}").write_bytes(data)
                if config is not None:
                    (folder / "failed" / f"{number}-{name}-{damage}.config.json").write_text(config)
                failures.append((name, damage, number, problem))
    finally:
        runner.stop()
    counts["ms for the slowest"] = round(1000 * slowest)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", help="only these, separated by commas")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds of wall time for a file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    counts, failures = fuzz(args.count, args.seed, folder, args.formats and args.formats.split(","), args.timeout)
    print(f"{args.count} files: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if ":" not in what))
    print("; ".join(f"{what} {n}" for what, n in sorted(counts.items()) if ":" in what))
    for name, damage, number, what in failures:
        print(f"{name}, file {number} ({damage}): {what}")
    if failures:
        print(f"the files lie in {folder / 'failed'}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
