"""Settings of this process that make training on CPUs faster and change no number."""

import ctypes
import sys

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
