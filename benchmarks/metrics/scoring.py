"""J and F in processes of their own, beside whatever makes the masks; the same numbers bit for bit.

Neither this module nor `jf` imports torch, so that the processes start fast.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import context
from .jf import BOUND, frame_scores


class ScorePool:
    """Processes that score frames while the parent computes; use it in a `with` statement.

    They are spawned on demand, never forked (a parent with torch's threads must not fork), know nothing of the caller's
    main module, ignore Ctrl-C, which is the parent's to handle, and end with the parent even if that is killed.
    `workers`: their number; None: one per available core, at most 8; 0: none, `submit` itself scores.
    """

    def __init__(self, workers: int | None = None):
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        self.workers = min(8, len(cores)) if workers is None else workers
        self._executor = ProcessPoolExecutor(self.workers, context(), _start_worker) if self.workers else None

    def submit(self, read: Callable, prediction, truth, objects: int, bound: float = BOUND) -> Future:
        """A future of `frame_scores(*read(prediction, truth), objects, bound)`.

        `read` turns the two (paths, arrays) into label maps where they are scored: a function of an importable module,
        best of one that does not import torch. `result()` raises what scoring raised, and a UserError where a process
        died.
        """
        answer: Future = Future()
        try:
            if self._executor is None:
                answer.set_result(_read_and_score(read, prediction, truth, objects, bound))
                return answer
            if getattr(read, "__module__", None) == "__main__":
                raise ValueError("read is a function of the main module, which scoring processes do not import")
            # Sent later by a thread: the caller may use its arrays again by then.
            pair = [part.copy() if isinstance(part, np.ndarray) else part for part in (prediction, truth)]
            done = self._executor.submit(_read_and_score, read, *pair, objects, bound)
            done.add_done_callback(lambda done: _pass_on(done, answer))
        except Exception as error:
            answer.set_exception(_clear(error))
        return answer

    def close(self, cancel: bool = False) -> None:
        """Wait for what is submitted, or with `cancel` only for what is being scored, and end the processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=cancel)

    def __enter__(self) -> "ScorePool":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(cancel=kind is not None)


def _pass_on(done: Future, answer: Future) -> None:
    if done.cancelled():
        answer.cancel()
    elif error := done.exception():
        answer.set_exception(_clear(error))
    else:
        answer.set_result(done.result())


def _clear(error: BaseException) -> BaseException:
    if not isinstance(error, BrokenProcessPool):
        return error
    return UserError(
        "a scoring process died (out of memory, or killed): run again, with fewer or with 0 scoring processes"
    )


def _start_worker() -> None:
    cv2.setNumThreads(1)

    def follow_parent():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _read_and_score(read, prediction, truth, objects, bound):
    return frame_scores(*read(prediction, truth), objects, bound)
