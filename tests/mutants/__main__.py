"""python -m tests.mutants: put the defences of docs/security.rst out, one by one, and run the tests of their rows."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from . import MUTANTS
from .run import HEADING, Suite


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="mutants that are tried at a time (%(default)d)")
    parser.add_argument("--only", default="", metavar="WORDS", help="those whose row or defence holds these words")
    arguments = parser.parse_args()
    mutants = [one for one in MUTANTS if arguments.only in f"{one.row} {one.defence}"]
    suite = Suite(mutants)
    if (failed := suite.fails_without_any()) is not None:
        sys.exit(f"{failed} fails although nothing was put out")
    print(HEADING)
    survived = 0
    with ThreadPoolExecutor(arguments.workers) as workers:
        for result in workers.map(suite.try_on, mutants):
            survived += result.caught_by is None
            print(result, flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants were caught")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
