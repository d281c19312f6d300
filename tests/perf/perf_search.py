"""Exact search for nearest neighbours (tasks/_segmentation/search.py) beside the bare matrix product.

    python tests/perf/perf_search.py [--quick]

The product is made in the same blocks, and thrown away. Seconds of the clock, best of three, alternately; peak: memory
of the process above the keys and queries.
"""

import argparse
import resource
import time

import torch

from selfpatch_bench.benchmarks.tasks._segmentation.search import GROUP, ROWS, SCORES, nearest

K = 30


def product(queries: torch.Tensor, keys: torch.Tensor) -> None:
    step = SCORES // ROWS // GROUP * GROUP
    for some in queries.split(ROWS):
        for start in range(0, len(keys), step):
            some @ keys[start : start + step].T


def clock(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    noise = torch.Generator().manual_seed(0)
    print("| keys | width | product s | search s | share of the product's speed | peak MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for n, dim in ((100_000, 384),) if quick else ((100_000, 384), (1_000_000, 384), (1_000_000, 768)):
        queries, keys = (torch.randn(count, dim, generator=noise) for count in (1024, n))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [(clock(product, queries, keys), clock(nearest, queries, keys, K)) for _ in range(1 if quick else 3)]
        bare, found = (min(column) for column in zip(*times, strict=True))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"| {n:,} | {dim} | {bare:.2f} | {found:.2f} | {100 * bare / found:.0f} % | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
