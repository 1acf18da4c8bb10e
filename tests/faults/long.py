"""Many kills of every stage, on one process and on two; half an hour.

python -m tests.faults.long            120 kills
python -m tests.faults.long 30 7       30 kills, sampled from seed 7

Prints a line for each trial and a total. Exit status 1 if any run ended elsewhere than the unbroken one.
"""

import itertools
import sys
import tempfile
from pathlib import Path

from tests.faults.killing import STAGES, Ground, Tally

PER_TRIAL = 6  # kills; more would find the run finished


def main(wanted: int = 120, seed: int = 0) -> int:
    total, by_processes = Tally(), {1: Tally(), 2: Tally()}
    # of three trials one is on two processes, which take twice as long; a tokenizer has one
    kinds = [(stage, 2 if number % 3 == 2 and stage != "tokenizer" else 1) for number in range(3) for stage in STAGES]
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        ground.make_parents()
        for number, (stage, processes) in enumerate(itertools.cycle(kinds)):
            if total.kills >= wanted:
                break
            one = ground.trial(stage, processes, min(PER_TRIAL, wanted - total.kills), seed * 10_000 + number)
            total += one
            by_processes[processes] += one
            end = "equal" if one.equal else "NOT EQUAL"
            print(f"{stage} x{processes}: {one.kills} kills, {one.resumed} resumed, {end}", *one.faults, flush=True)
        ground.nursery.close()
    for processes, tally in by_processes.items():
        print(
            f"{processes} process(es): {tally.kills} kills, {tally.resumed} resumed, "
            f"{tally.equal} of {tally.trials} runs bit-equal"
        )
    print(f"in all: {total.kills} kills, {total.resumed} resumed, {total.equal} of {total.trials} runs bit-equal")
    return 0 if total.equal == total.trials else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
