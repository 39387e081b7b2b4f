"""Feeds inputs to the readers of files, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from runed.log import configure_logging
from tests.fuzz.corpus import MOST_BYTES, load_corpus, shrink
from tests.fuzz.files import FILE_TARGETS, describe_crash, read_in_empty_folder
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import Finding, Outcome, Plan

CPU_SECONDS = 3.0
"""Processor time that a reader of a file of 64 KiB may take at most, in seconds."""

MEMORY = 3 * 2**30
"""Address space of the process that reads files, in bytes: far more than it needs. A bomb is an error then, and no swapping."""

HUNG_SECONDS = 120.0
"""Seconds without a sign of the process that reads files, after which it counts as hung."""


def fuzz_files(plan: Plan, outcome: Outcome) -> None:
    """Let another process read the inputs. It is started anew after an input that ends it."""
    left = {target: (0, plan.inputs.get(target, 0)) for target in FILE_TARGETS}
    context = multiprocessing.get_context("spawn")
    while any(start < end for start, end in left.values()):
        ours, theirs = context.Pipe()
        process = context.Process(target=_read_files, args=(plan, left, theirs), daemon=True)
        process.start()
        theirs.close()
        target, number = _listen(ours, process.pid or 0, left, outcome)
        process.join()
        ours.close()
        if target:
            data = _input_of_file(plan, target, number)
            outcome.add(Finding(target, f"the process ended with code {process.exitcode}", data))
            left[target] = (number + 1, left[target][1])


def _listen(pipe: Connection, pid: int, left: dict[str, tuple[int, int]], outcome: Outcome) -> tuple[str, int]:
    """Take what the process tells, until it ends. Return the input that ended it; "" if it ended by itself."""
    target, number = "", 0
    with suppress(EOFError):
        while True:
            if not pipe.poll(HUNG_SECONDS):
                os.kill(pid, signal.SIGKILL)
            match pipe.recv():
                case (str(name), int(at)):
                    target, number = name, at
                    outcome.inputs[target] += 1
                case Finding() as finding:
                    outcome.add(finding)
                case (str(name), list(new)):
                    outcome.new[name] = [*outcome.new.get(name, []), *new]
                    left[name] = (left[name][1], left[name][1])
                    target = ""
    return target, number


def _read_files(plan: Plan, left: Mapping[str, tuple[int, int]], pipe: Connection) -> None:
    configure_logging(Path(os.devnull))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for target, (start, end) in left.items():
        if start == end:
            continue
        mutator = _mutator_of_file(plan, target)
        seen = {_behaviour(target, data, None) for data in mutator.corpus} if start == 0 else set[str]()
        new: list[bytes] = []
        for number in range(start, end):
            random = plan.random(target, number)
            changed = mutator.make(random)
            data = FILE_TARGETS[target].wrap(changed, random)
            pipe.send((target, number))
            word = _behaviour(target, data, pipe)
            if word not in seen and len(changed) <= MOST_BYTES:
                seen.add(word)
                new.append(changed)
        pipe.send((target, new))


class _TooLongError(BaseException):
    """Not an `Exception`, so that no reader takes it for one of its own."""


def _raise_too_long(*_: object) -> None:
    raise _TooLongError(f"it takes more than {CPU_SECONDS:g} s of processor time")


def _behaviour(target: str, data: bytes, pipe: Connection | None) -> str:
    """Read an input, and return a word for what happened. Tell a finding, made small."""
    what = crash_of(target, data)
    if what.startswith("!") and pipe is not None:
        small = shrink(data, lambda smaller: crash_of(target, smaller) == what) if "takes more" not in what else data
        pipe.send(Finding(target, what[1:], small))
    return what


def crash_of(target: str, data: bytes) -> str:
    """Read an input. Return a word for what happened; it begins with "!" if that broke a promise."""
    signal.signal(signal.SIGPROF, _raise_too_long)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return read_in_empty_folder(FILE_TARGETS[target], data)
    except (Exception, _TooLongError) as error:  # noqa: BLE001 # which it is, is the finding
        return f"!{error}" if isinstance(error, _TooLongError | AssertionError) else f"!{describe_crash(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _mutator_of_file(plan: Plan, target: str) -> Mutator:
    it = FILE_TARGETS[target]
    return Mutator(load_corpus(target, it.seeds(), plan.grown), it.words)


def _input_of_file(plan: Plan, target: str, number: int) -> bytes:
    random = plan.random(target, number)
    return FILE_TARGETS[target].wrap(_mutator_of_file(plan, target).make(random), random)
