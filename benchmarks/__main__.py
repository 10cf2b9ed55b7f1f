"""Measure, print a line per comparison, and write them as JSON with a plot beside.

python -m benchmarks                     the short version: ten minutes on two cores
python -m benchmarks --full              batches of 2 and 8, and peers that compile for minutes
python -m benchmarks --case lif-forward  one case: results/lif-forward.json
python -m benchmarks --case scaling      cost against T, tokens and depth
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import scaling
from benchmarks.cases import JOBS, Job, run, variables
from benchmarks.measure import fresh
from benchmarks.plots import plot
from benchmarks.results import Row, write

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    out = options.out or RESULTS / f"{options.case or 'latest'}.json"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser().error(f"--out {out} cannot be written: {error}")
    if options.case == "scaling":
        curves = fresh(scaling.measure, **variables("raised-thresholds", options.threads))
        print(*curves, sep="\n")
        scaling.write(curves, out)
        return 0
    chosen = [job for job in JOBS if options.case in (None, job.case)]
    rows, failures = compare(
        [job for job in chosen if job.is_short or options.full], options.threads
    )
    if rows:
        write(rows, out)
        plot(rows, out.with_suffix(".png"))
        print(f"wrote {out}")
    return min(failures, 1)


def compare(jobs: Sequence[Job], threads: int) -> tuple[list[Row], int]:
    """Return the rows of all measurements, and how many failed: those have no rows."""
    rows: list[Row] = []
    failures = 0
    for job in jobs:
        try:
            for row in run(job, threads):
                print(row, flush=True)
                rows.append(row)
        # Whatever goes wrong in one measurement, the others are worth having.
        except Exception as error:
            print(f"no {job.case} against {job.peer}, {job.subject}: {error!r}", file=sys.stderr)
            failures += 1
    return rows, failures


def at_least_one(text: str) -> int:
    """Read a number of threads."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", dest="full", action="store_false", help="the default")
    size.add_argument(
        "--full",
        action="store_true",
        help="also batches of 2 and 8, and peers that compile for minutes",
    )
    cases = sorted({job.case for job in JOBS})
    parser.add_argument("--case", choices=[*cases, "scaling"], help="default: all but scaling")
    parser.add_argument(
        "--threads", type=at_least_one, default=torch.get_num_threads(), metavar="N"
    )
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/CASE.json, or latest.json"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
