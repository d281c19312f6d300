"""One file = one task. The module's name is the task's name.

A task defines

    TASK = Task(version=..., protocol_id=..., protocol=Protocol, metrics=(...), dataset=..., published=(...))
        see benchmarks/task.py; `Protocol` is a dataclass whose fields are the protocol's values with their defaults.
        `seeded=False` says that `run` draws nothing by cfg.seed: a list of seeds then costs one run.
    check(cfg) -> Data
        everything that can be wrong with the data is found here, before any long work, in one line each.
    run(encoder, cfg, out) -> {"metrics": {...}, "parts": {...}, "protocol": {...}}
        metrics by the published vocabulary; parts: whatever they are averages of; protocol: values that only the
        encoder decides (mean, std ...). `out` is a folder of the task's own that survives an interruption: a second
        call with the same folder goes on where the first one stopped.

and may define `example(folder) -> Path` (a tiny data set), `pictures(encoder, cfg, out)`, and

    check_data(root) -> Data
        the data alone, for `selfpatch doctor`; without it, that is `check` with the protocol's own values.
"""
