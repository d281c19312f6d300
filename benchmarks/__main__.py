"""`python -m selfpatch_bench.benchmarks` is `selfpatch`."""

from .cli.app import main

main()
