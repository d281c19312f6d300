"""`python -m selfpatch_bench.benchmarks` is `selfpatch`."""

from .cli import main

main()
