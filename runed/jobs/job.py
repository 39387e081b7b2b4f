"""The work of a job: from the texts of a source to the rows of an output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import runed
from runed.errors import RunedError
from runed.jobs.formats import Encoder
from runed.jobs.inputs import Source
from runed.jobs.ordering import OF_THE_TEXT, InOrder, Survey
from runed.jobs.outputs import Output
from runed.jobs.row import JobSpace, Row

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions
    from runed.client.types import Embedding

HOLD_ROWS = 256
"""Rows of one write."""

HOLD_SECONDS = 0.1
"""Seconds after which fewer rows are written."""

SHOWN_FAILURES = 10
"""Most texts without a vector that are reported to the user. The output names all of them."""

_PROBE = "runed"
"""Text that is embedded to learn the space of the vectors, if the first text of the input has no vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of a job. The facts about the run, from `before` on, do not count in a comparison.

    Attributes:
        count: The number of texts.
        failed: The number of texts that have no vector.
        before: The number of texts that earlier runs had done.
        tokens: The number of tokens that the model read for the texts of this run.
        cached: The number of texts of this run whose vector was there already.
        seconds: The time of the work, without the first reading of the input.
    """

    count: int
    failed: int
    before: int = field(default=0, compare=False)
    tokens: int = field(default=0, compare=False)
    cached: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(kw_only=True)
class Job:
    """Embeds the texts that an output lacks.

    Attributes:
        client: The client that embeds.
        output: The output.
        encoder_type: Makes the encoder of the output, of the space and the number of all texts.
        surveyed: The result of the first reading of the input.
        chosen: The options that change the output, as for `Output.check`.
        keep_going: Whether a text that cannot be embedded is recorded; otherwise it ends the job.
        on_space: Called when the space of the vectors is known, before any is written.
        on_progress: Called now and then with the number of texts that are done and of all texts.
        on_complaint: Called with a sentence for each of the first texts that have no vector.
    """

    client: runed.Client
    output: Output
    encoder_type: Callable[[JobSpace, int], Encoder]
    surveyed: Survey
    chosen: Mapping[str, str]
    keep_going: bool
    on_space: Callable[[JobSpace], None]
    on_progress: Callable[[int, int], None]
    on_complaint: Callable[[str], None]

    def __post_init__(self) -> None:
        self._encoder: Encoder | None = None
        self._fingerprint = ""
        self._done = self.output.mark.done
        self._failed = self.output.mark.failed
        self._written = 0.0
        self._tokens = self._cached = 0

    def run(self, source: Source, options: EmbedOptions) -> JobResult:
        """Embed the texts and finish the output.

        Args:
            source: The input.
            options: The options of all texts.

        Raises:
            RunedError: A text cannot be embedded, or none can. All rows before it are written.
        """
        self._show()
        began, before = time.monotonic(), self._done
        held: list[Row] = []
        in_order = InOrder(self.client, source, self.surveyed, done=self._done)
        try:
            with closing(in_order.rows(**options)) as rows:
                for row in rows:
                    self._check(row)
                    if self._encoder is None:
                        self._show()
                        self._begin(self._space(row.outcome, options))
                    held.append(row)
                    if len(held) == HOLD_ROWS or time.monotonic() - self._written > HOLD_SECONDS:
                        held, ready = [], held
                        self._write(ready)
                        self._show()
        finally:
            # The rows before an error are good.
            if held:
                self._write(held)
        if self._encoder is None and self.output.space:
            self._begin(self.output.space)
        self._show()
        self.output.finish()
        return JobResult(
            count=self.surveyed.count,
            failed=self._failed,
            before=before,
            tokens=self._tokens,
            cached=self._cached,
            seconds=time.monotonic() - began,
        )

    def _show(self) -> None:
        self.on_progress(self._done, self.surveyed.count)

    def _check(self, row: Row) -> None:
        outcome = row.outcome
        if isinstance(outcome, RunedError):
            if not (self.keep_going and isinstance(outcome, OF_THE_TEXT)):
                raise outcome
            self._failed += 1
            if self._failed <= SHOWN_FAILURES:
                self.on_complaint(outcome.message)
            return
        if self._encoder and outcome.fingerprint != self._fingerprint:
            raise RunedError(
                "the model or the engine changed while embedding: the fingerprint was "
                f'"{self._fingerprint}" and is "{outcome.fingerprint}"; start again'
            )
        self._tokens += outcome.token_count
        self._cached += outcome.cached

    def _space(self, outcome: Embedding | RunedError, options: EmbedOptions) -> JobSpace:
        """Find the space of the vectors. It is known only from an answer, since the model may have to be installed first."""
        if isinstance(outcome, RunedError):
            (outcome,) = self.client.embed_items([_PROBE], **options)
            if isinstance(outcome, RunedError):
                raise outcome
        identity = (
            self.output.space.model_identity
            if self.output.space
            else self.client.info(model=options.get("model")).model_identity
        )
        return JobSpace(outcome.fingerprint, identity, len(outcome.vector))

    def _begin(self, space: JobSpace) -> None:
        self.on_space(space)
        encoder = self.encoder_type(space, self.surveyed.count)
        self.output.begin(encoder, space, self.chosen)
        self._encoder, self._fingerprint = encoder, space.fingerprint

    def _write(self, rows: list[Row]) -> None:
        assert self._encoder is not None
        last = rows[-1]
        self.output.append(self._encoder.rows(rows), done=last.index + 1, failed=self._failed, inputs=last.inputs.hex())
        self._done = last.index + 1
        self._written = time.monotonic()
