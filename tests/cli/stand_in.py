"""The real command `runed` with a stand-in for daemon and client, for jobs that are too large and faults too rare for an
engine.

    stand_in.py OPTIONS embed ...

OPTIONS is a JSON object, see `Options`. The vector of a text depends on the text alone. Results come in another order. Each
requested text is appended to a file. Texts with effects: "fail:REASON", "stray", "hang".
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Self

import msgspec
import numpy as np

from runed.cli import embed, main
from runed.client.types import Embedding
from runed.errors import BackendUnavailableError, RunedError, error_for_reason

DIM = 16


class Options(msgspec.Struct):
    """The behaviour of the stand-in.

    Attributes:
        log: The file that every requested text is appended to.
        fingerprint: The fingerprint of all vectors.
        in_flight: The number of texts that are taken before the first answer.
        pause: Seconds that every fiftieth text takes.
        lost_after: The number of answers after which the daemon is gone; 0 means it stays.
        changed_after: The number of answers after which it has another model; 0 means it keeps its own.
        die_at_sync: The number of the `fsync` at which the process dies; 0 means never.
        peak: The file that gets the peak of resident memory in KiB, at the end.
    """

    log: str = ""
    fingerprint: str = "space-1"
    in_flight: int = 512
    pause: float = 0.0
    lost_after: int = 0
    changed_after: int = 0
    die_at_sync: int = 0
    peak: str = ""


class StandIn:
    """The part of `runed.Client` that `runed embed` needs."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._random = random.Random(options.log)
        self._answered = 0
        self._log = open(options.log, "a", buffering=1) if options.log else None  # noqa: PTH123, SIM115 # open to the end

    def info(self, *, model: str | None = None) -> SimpleNamespace:  # the signature of `Client.info`
        return SimpleNamespace(model_identity="sha256:0123456789abcdef")

    def embed_items(self, texts: Sequence[str], **options: object) -> list[Embedding | RunedError]:
        return [self._outcome(text, options) for text in texts]

    def embed_stream(self, items: Iterable[tuple[int, str]], **options: object) -> Iterator[tuple[int, Embedding | RunedError]]:
        waiting: list[tuple[int, str]] = []
        source = iter(items)
        while True:
            while len(waiting) < self._options.in_flight and (item := next(source, None)):
                waiting.append(item)
            if not waiting:
                return
            name, text = waiting.pop(self._random.randrange(min(len(waiting), 64)))
            if text == "hang" and waiting:
                waiting.append((name, text))
                continue
            yield name, self._outcome(text, options)
            if text == "stray":
                yield name, self._outcome(text, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._log:
            self._log.close()

    def _outcome(self, text: str, options: dict[str, object]) -> Embedding | RunedError:
        if self._log:
            self._log.write(f"{text}\n")
        self._answered += 1
        if self._options.pause and self._answered % 50 == 0:
            time.sleep(self._options.pause)
        if self._answered == self._options.lost_after:
            raise BackendUnavailableError("stand-in: gone")
        kind, _, reason = text.partition(":")
        if kind == "fail":
            return error_for_reason(reason)("the text is bad")
        seed = f"{text}|{options['role']}|{options['instruction']}".encode()
        values = np.frombuffer(hashlib.blake2b(seed, digest_size=DIM * 4).digest(), dtype="<u4").astype(np.float32)
        dimensions = options["dimensions"] or DIM
        assert isinstance(dimensions, int)
        vector = values[:dimensions] - np.float32(2**31)
        changed = 0 < self._options.changed_after < self._answered
        return Embedding(
            vector=vector / np.linalg.norm(vector),
            token_count=len(text) if options["truncate"] == "none" else min(len(text), 10),
            total_token_count=len(text),
            truncated=options["truncate"] != "none" and len(text) > 10,
            fingerprint=self._options.fingerprint + "-changed" * changed,
            prompt="",
            cached=False,
        )


def die_at_sync(number: int) -> None:
    """End the process without any cleanup in the middle of its n-th `fsync`."""
    real, calls = os.fsync, itertools.count(1)

    def fsync(descriptor: int) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    vars(os)["fsync"] = fsync


if __name__ == "__main__":
    options = msgspec.json.decode(sys.argv[1], type=Options)
    vars(embed)["connect"] = lambda _display, _model: StandIn(options)
    if options.die_at_sync:
        die_at_sync(options.die_at_sync)
    code = main.main(sys.argv[2:])
    if options.peak:
        # Not `getrusage`, which begins with what the parent had when it forked.
        status = Path("/proc/self/status").read_text()
        Path(options.peak).write_text(status.partition("VmHWM:")[2].split()[0])
    sys.exit(code)
