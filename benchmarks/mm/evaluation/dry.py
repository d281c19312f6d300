"""The evaluation tried before the first training step, so that what breaks it costs seconds and not the training."""

import contextlib
import random
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ....pretrain.common.errors import UserError
from ..training import LAST


@HOOKS.register_module()
class DryEvaluation(Hook):
    """Evaluates one picture by the untrained network (see `rehearse`), in every process, before each start of a
    training. Raises UserError where that fails."""

    def before_train(self, runner) -> None:
        if runner.iter < runner.max_iters:  # else only the evaluation itself is left
            try:
                rehearse(runner.model, runner.test_loop)
            except Exception as error:
                raise failed("tried before the first training step, the evaluation fails", error) from None


def evaluate_trained(runner) -> dict:
    """Runner.test after the training. Raises UserError that says how the trained weights are evaluated all the same."""
    try:
        return runner.test()
    except Exception as error:
        last = Path(runner.work_dir) / LAST
        raise failed(
            "the training is complete, its evaluation failed; the same run started again only evaluates, and one that "
            f"needs other values (another model.test_cfg ...) does so with --eval-only {last}; the reason",
            error,
        ) from None


def failed(what: str, error: Exception) -> UserError:
    """The error in one line; its traceback goes to the log."""
    traceback.print_exception(error, file=sys.stderr)
    line = (str(error).strip().splitlines() or [""])[0]
    return UserError(
        f"{what}: {line}" if isinstance(error, UserError) else f"{what}: {type(error).__name__}: {line}", 1
    )


def rehearse(model: torch.nn.Module, loop) -> None:
    """The first picture of a TestLoop through its pipeline, `test_step` and the metrics, and these over the whole set.

    Our metrics add by `rest` what they need for that: annotations without predictions. Of others, `process` alone is
    tried. What training depends on is the same afterwards: random numbers, modes, buffers, results.
    """
    model = model.module if is_model_wrapper(model) else model
    metrics, modes = loop.evaluator.metrics, [(module, module.training) for module in model.modules()]
    try:
        with same_random_numbers():
            model.eval()
            detected = [one.pred_instances for one in _first_picture(model, loop) if "pred_instances" in one]
            if detected and not any(map(len, detected)):  # nms and masks have not run
                with every_detection(model):
                    _first_picture(model, loop)
            for metric in metrics:
                if hasattr(metric, "rest"):
                    metric.compute_metrics([*metric.results, *metric.rest(loop.dataloader.dataset)])
    finally:
        for module, mode in modes:
            module.training = mode
        for metric in metrics:
            metric.results.clear()


@torch.no_grad()
def _first_picture(model: torch.nn.Module, loop) -> list:
    """The outputs for the first picture; what the metrics make of them becomes their results."""
    for metric in loop.evaluator.metrics:
        metric.results.clear()
    batch = loop.dataloader.collate_fn([loop.dataloader.dataset[0]])
    outputs = model.test_step(batch)
    loop.evaluator.process(data_samples=outputs, data_batch=batch)
    return outputs


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """After the block random numbers go on as if it had not been there: torch's, of the GPU too, NumPy's, Python's."""
    numpy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)


@contextlib.contextmanager
def every_detection(model: torch.nn.Module) -> Iterator[None]:
    """In the block no detection is too unlikely; an untrained detector of many classes is sure of nothing."""
    configs = [config for module in model.modules() if isinstance(config := getattr(module, "test_cfg", None), dict)]
    parts = {id(part): part for config in configs for part in (config, *config.values()) if isinstance(part, dict)}
    kept = [(part, part["score_thr"]) for part in parts.values() if "score_thr" in part]
    try:
        for part, _ in kept:
            part["score_thr"] = 0.0
        yield
    finally:
        for part, threshold in kept:
            part["score_thr"] = threshold
