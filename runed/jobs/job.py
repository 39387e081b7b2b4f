"""One run of `runed embed`: from the texts of a source to the rows of an output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import runed
from runed.cli.boundary import complain
from runed.errors import RunedError
from runed.jobs.formats import Encoder, Row, Space
from runed.jobs.inputs import Source
from runed.jobs.ordering import OF_THE_TEXT, InOrder, Survey
from runed.jobs.outputs import Output

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions
    from runed.client.types import Embedding

HOLD_ROWS = 256
HOLD_SECONDS = 0.1
"""How many rows are written at once, and for how long they are held for that."""

SHOWN_FAILURES = 10
"""How many texts that have no vector are named to the user; the output names all of them."""

_PROBE = "runed"
"""A text that tells the space of vectors where the input's own first text has none."""


class Job:
    """Embeds the texts that an output lacks.

    Args:
        client: Embeds.
        output: Where to.
        encoder_type: The format.
        surveyed: What the first reading of the input told.
        chosen: What the user chose that the output depends on, as for `Output.check`.
        keep_going: Whether a text that cannot be embedded is recorded, instead of ending the job.
    """

    def __init__(
        self,
        client: runed.Client,
        output: Output,
        encoder_type: type[Encoder],
        surveyed: Survey,
        *,
        chosen: Mapping[str, str],
        keep_going: bool,
    ) -> None:
        self._client = client
        self._output = output
        self._encoder_type = encoder_type
        self._surveyed = surveyed
        self._chosen = chosen
        self._keep_going = keep_going
        self._encoder: Encoder | None = None
        self._fingerprint = ""
        self._done = output.mark.done
        self._failed = output.mark.failed
        self._written = 0.0

    def run(self, source: Source, options: EmbedOptions, show: Callable[[int], None]) -> int:
        """Do the work.

        Args:
            source: The input.
            options: How the texts are to be embedded.
            show: Called with the number of texts that are done, now and then.

        Returns:
            The number of texts that have no vector.

        Raises:
            RunedError: The first text that cannot be embedded, or what keeps all of them from it. What comes before is written.
        """
        show(self._done)
        held: list[Row] = []
        in_order = InOrder(self._client, source, self._surveyed, done=self._done)
        try:
            with closing(in_order.rows(**options)) as rows:
                for row in rows:
                    self._check(row)
                    if self._encoder is None:
                        show(self._done)
                        self._begin(self._space(row.outcome, options))
                    held.append(row)
                    if len(held) == HOLD_ROWS or time.monotonic() - self._written > HOLD_SECONDS:
                        held, ready = [], held
                        self._write(ready)
                        show(self._done)
        finally:
            # Whatever ended the job, these rows are good.
            if held:
                self._write(held)
        if self._encoder is None and self._output.space:
            self._begin(self._output.space)
        self._output.finish()
        return self._failed

    def _check(self, row: Row) -> None:
        outcome = row.outcome
        if isinstance(outcome, RunedError):
            if not (self._keep_going and isinstance(outcome, OF_THE_TEXT)):
                raise outcome
            self._failed += 1
            if self._failed <= SHOWN_FAILURES:
                complain(outcome.message)
        elif self._encoder and outcome.fingerprint != self._fingerprint:
            raise RunedError(
                f'the model changed while embedding: the fingerprint was "{self._fingerprint}" and is "{outcome.fingerprint}"; '
                "start again"
            )

    def _space(self, outcome: Embedding | RunedError, options: EmbedOptions) -> Space:
        """Find out what holds for all vectors; the first comes when the model is there, and only then there is one to name."""
        if isinstance(outcome, RunedError):
            (outcome,) = self._client.embed_items([_PROBE], **options)
            if isinstance(outcome, RunedError):
                raise outcome
        identity = self._output.space.model_identity if self._output.space else self._client.info().model_identity
        return Space(outcome.fingerprint, identity, len(outcome.vector))

    def _begin(self, space: Space) -> None:
        encoder = self._encoder_type(space, self._surveyed.count)
        self._output.begin(encoder, space, self._chosen)
        self._encoder, self._fingerprint = encoder, space.fingerprint

    def _write(self, rows: list[Row]) -> None:
        assert self._encoder is not None
        last = rows[-1]
        self._output.append(self._encoder.rows(rows), done=last.index + 1, failed=self._failed, inputs=last.inputs.hex())
        self._done = last.index + 1
        self._written = time.monotonic()
