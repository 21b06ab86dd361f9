"""Feed every loader damaged, hostile and random content for as long as it is told.

    bash scripts/fuzz.sh --minutes 10

The properties are those of `tests/test_fuzz.py`: a loader ends well or in the errors that it documents, never in another one,
in a crash of the process, or by taking memory that the content has no right to. Each target has its own process and an
equal share of the time. Printed are the number of examples and the findings; the exit status is 0 if there is none.
"""

import argparse
import contextlib
import gc
import io
import multiprocessing
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kdpl  # noqa: F401  first: it makes `dassl` importable

import torch  # isort: skip
from hypothesis import seed  # isort: skip
from support.fuzzing import TARGETS, property_of  # isort: skip

AT_ONCE = 300  # examples of a target between two looks at the clock
MEMORY = 2**30  # bytes that no content here has a right to


def attack(target: str, seconds: float, first_seed: int, pipe: multiprocessing.connection.Connection) -> None:
    """Run a target's property again and again; send the number of examples after each round, and findings as they come."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    until, count, findings = time.monotonic() + seconds, 0, set()

    def seen() -> None:
        nonlocal count
        count += 1
        if count % 20 == 0:
            gc.collect()  # models are cycles: what is only not collected yet is no finding
        if time.monotonic() > until + 60:
            raise TimeoutError("one example takes minutes")

    gc.freeze()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < until:
        first_seed += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                seed(first_seed)(property_of(target, seen, max_examples=AT_ONCE))()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            if found not in findings:
                findings.add(found)
                notes = " ".join(getattr(error, "__notes__", []))
                pipe.send(("finding", f"{found}: {str(error)[:300]} {notes[:1500]}"))
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > MEMORY and "memory" not in findings:
            findings.add("memory")
            pipe.send(("finding", f"{grown / 2**30:.1f} GiB of memory were taken (seed {first_seed})"))
        pipe.send(("examples", count))
    pipe.send(("end", None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument("--seed", type=int, help="of the content (default: another one each time)")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET")
    args = parser.parse_args()
    first_seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    print(f"Seed {first_seed}, {len(args.targets)} targets, {args.minutes:g} minutes", flush=True)
    context = multiprocessing.get_context("fork")  # PyTorch is imported once
    total, problems = 0, 0
    for target in args.targets:
        ours, theirs = context.Pipe(duplex=False)
        seconds = 60 * args.minutes / len(args.targets)
        process = context.Process(target=attack, args=(target, seconds, first_seed, theirs))
        process.start()
        theirs.close()
        count, findings, ended = 0, [], False
        with contextlib.suppress(EOFError):
            while not ended:
                what, value = ours.recv()
                count = value if what == "examples" else count
                ended = what == "end"
                findings += [value] if what == "finding" else []
        process.join()
        if not ended:
            findings.append(f"the process died with exit status {process.exitcode}")
        total, problems = total + count, problems + len(findings)
        print(f"{target}: {count:,} examples, {len(findings) or 'no'} findings", flush=True)
        for finding in findings:
            print(f"  {finding}", flush=True)
    print(f"{total:,} examples, {problems} findings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
