"""This process on its machine: where it may keep things, memory that it took, settings that make CPUs faster."""

import contextlib
import ctypes
import os
import re
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> bool:
    """Have glibc keep freed memory instead of giving it back and faulting it in again, page by page, in every step.

    A step frees and allocates hundreds of buffers of many megabytes: for those, page faults cost several times the work
    on their contents. Call it before the first large allocation; the process's memory then stays at its peak.
    -> whether it took effect (only with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def out_of_memory(error: BaseException) -> str | None:
    """The first line of an error that says that memory, this machine's or a GPU's, is used up; None of any other.

    torch has no type of its own for a CPU's memory, and CUDA's libraries report theirs as they like.
    """
    text = (str(error).splitlines() or ["out of memory"])[0]
    used_up = r"(can't|cannot) allocate memory|not enough memory|out of memory|_ALLOC_FAILED"
    found = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(used_up, str(error)))
    return text if found else None


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor has instructions for products of bf16 (AMX or AVX-512), as Linux says; emulated,
    they are slower than those of float32."""
    with contextlib.suppress(OSError):
        if match := re.search(r"^flags\s*:(.*)", cpuinfo.read_text(), re.MULTILINE):
            return not {"amx_bf16", "avx512_bf16"}.isdisjoint(match[1].split())
    return False


def cache_folder() -> Path:
    """Where results of checking files are kept: `SELFPATCH_CACHE`, else ~/.cache/selfpatch-bench."""
    return Path(os.environ.get("SELFPATCH_CACHE") or "~/.cache/selfpatch-bench").expanduser()


def process_peak() -> int:
    """Bytes: this process's largest resident size so far.

    Linux hands a parent's ru_maxrss on to the programs that it starts; VmHWM begins anew with each of them.
    """
    with contextlib.suppress(OSError):
        if match := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(match[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
