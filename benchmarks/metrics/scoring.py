"""J and F in processes of their own, beside whatever makes the masks; the same numbers bit for bit.

Neither this module nor `jf` imports torch, so that the processes start fast.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import numpy as np

from ...pretrain.common.errors import UserError
from ...pretrain.common.processes import context
from .jf import BOUND, frame_scores, prepare, score_prepared, summarize


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

    def submit(self, prediction, truth, objects: int, bound: float = BOUND, read=None) -> Future:
        """A future of `frame_scores(...)`, or with `read` of `frame_scores(*read(prediction, truth), ...)`.

        Its `result()` raises what scoring raised, and a UserError where a process died.
        """
        answer: Future = Future()
        try:
            if read is None:
                task = (score_prepared, *prepare(prediction, truth, objects, bound))
            else:
                if self._executor is not None and getattr(read, "__module__", None) == "__main__":
                    raise ValueError("read is a function of the main module, which scoring processes do not import")
                task = (_read_and_score, read, prediction, truth, objects, bound)
            if self._executor is None:
                answer.set_result(task[0](*task[1:]))
                return answer
            # Sent later by a thread: the caller may use its arrays again by then.
            task = [part.copy() if isinstance(part, np.ndarray) else part for part in task]
            self._executor.submit(*task).add_done_callback(lambda done: _pass_on(done, answer))
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


def sequence_scores(
    frames: Sequence[tuple[Any, Any]],
    objects: int,
    bound: float = BOUND,
    read: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]] | None = None,
    pool: ScorePool | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores of one sequence.

    Args:
        frames: (prediction, truth) of ALL frames in order; the first and the last are not scored and not read.
            Label arrays as for `jf.frame_scores`, or with `read` whatever that takes (paths).
        read: turns one pair into two label arrays. With a pool it runs in the scoring process, so it must be a
            function of an importable module, best of one that does not import torch.
        pool: score in its processes; the result is the same bit for bit.
    Returns:
        as `jf.summarize`.
    Raises:
        UserError: as `jf.frame_scores`, with the path or the index of the frame; fewer than three frames.
    """
    pool = pool or ScorePool(0)
    scored = frames[1:-1]
    futures = [pool.submit(p, t, objects, bound, read) for p, t in scored]
    scores = []
    for i, ((prediction, _), future) in enumerate(zip(scored, futures, strict=True), 1):
        try:
            scores.append(future.result())
        except UserError as error:
            where = prediction if isinstance(prediction, str | os.PathLike) else f"frame {i}"
            raise UserError(f"{where}: {error}", error.status) from error
    return summarize(scores)


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
