"""Runs one job: it checks the input, connects, embeds, writes the output, and counts the texts without a vector."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import runed
from runed.errors import EmptyBatchError, SettingsError
from runed.jobs import parquet
from runed.jobs.formats import ENCODERS, ParquetEncoder
from runed.jobs.inputs import Source
from runed.jobs.job import Job, JobResult
from runed.jobs.ordering import survey
from runed.jobs.outputs import choose_format, open_output
from runed.jobs.row import JobSpace

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions, Lane, Role, Truncate

INTERACTIVE_TEXTS = 8
"""Texts of the largest job that is interactive by default. The daemon has the same limit for a batch."""


def check_keeping(output_format: str, *, wanted: bool) -> None:
    """Refuse to keep columns of the input in a format that has no columns.

    Raises:
        SettingsError: Columns are wanted, and the format has none.
    """
    if wanted and output_format != "parquet":
        raise SettingsError("--keep needs Parquet output, since other formats have no columns: add `--format parquet`")


def run_job(
    source: Source,
    output: str | os.PathLike[str],
    *,
    connect: Callable[[], AbstractContextManager[runed.Client]] | None = None,
    output_format: str | None = None,
    role: Role | None = None,
    instruction: str = "",
    dimensions: int | None = None,
    truncate: Truncate = "none",
    lane: Lane | None = None,
    model: str | None = None,
    keep_going: bool = False,
    keep: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    kept: parquet.Kept | None = None,
    on_space: Callable[[JobSpace], None] = lambda _space: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    on_complaint: Callable[[str], None] = lambda _message: None,
) -> JobResult:
    """Embed all texts of a source and write their vectors to an output.

    Messages name these parameters as `runed embed` does: `resume=True` here is "--resume" in a message.

    Args:
        source: The input, from `runed.jobs.inputs`, or any callable that yields the same items at each call.
        output: A path, or "-" for standard output. A file gets its name only when it is complete.
        connect: Returns a client. Called when the input is checked; None means `runed.connect`. The client is closed at the
            end.
        output_format: A key of `runed.jobs.formats.ENCODERS`; None chooses by the extension of the output, else "json".
        role: As in `runed.EmbedOptions`, like the next three.
        instruction: The task of a query.
        dimensions: The number of values of each vector.
        truncate: The treatment of a text that is too long.
        lane: The queue. None means "interactive" for at most 8 texts, and the choice of the daemon for more.
        model: The name of the model; None means the daemon's default model.
        keep_going: Whether a text that cannot be embedded is recorded in the output; otherwise it ends the job.
        keep: Whether an interrupted job leaves a part of the output, so that it can be resumed.
        resume: Whether to go on with the part of an earlier run. Without a part, the job begins at the start.
        overwrite: Whether to delete the part of an earlier run.
        kept: Columns of the input that Parquet output keeps; see `runed.jobs.keeping`.
        on_space: Called when the space of the vectors is known, before any is written. An error of it ends the job.
        on_progress: Called now and then with the number of texts that are done and of all texts. The latter is 0 during the
            first reading of the input, which counts them.
        on_complaint: Called with a sentence for the user: a text without a vector, a part that is kept, a job that is done.

    Returns:
        The number of texts, of those without a vector, and facts about the run.

    Raises:
        SettingsError: The input cannot be read, the output cannot be written or resumed, or pyarrow is missing.
        EmptyBatchError: The input holds no text.
        RunedError: A text cannot be embedded, the daemon failed, or the part to resume is of another job.
    """
    output = os.fspath(output)
    output_format = choose_format(output_format, output)
    if output_format == "parquet":
        parquet.pyarrow()  # so that a missing pyarrow is an error before any work
    check_keeping(output_format, wanted=kept is not None)
    options: EmbedOptions = {"role": role, "instruction": instruction, "dimensions": dimensions, "truncate": truncate}
    chosen = {name: str(value or "") for name, value in options.items()} | {"format": output_format}
    if model:
        options["model"] = model  # not in `chosen`: the fingerprint tells whether it is the same model, whatever its name was
    with open_output(output, keep=keep, resume=resume, overwrite=overwrite, on_complaint=on_complaint) as opened:
        if opened.complete:
            on_complaint(f"{output} is complete already, so there is nothing to do; --overwrite makes it anew")
            assert opened.space is not None
            on_space(opened.space)
            return JobResult(count=opened.mark.done, failed=opened.mark.failed, before=opened.mark.done)
        surveyed = survey(source, done=opened.mark.done, keep_going=keep_going, on_progress=on_progress)
        if not surveyed.count:
            raise EmptyBatchError(
                'the input holds no text; give at least one, as in: runed embed "hello world", or runed embed -f FILE'
            )
        opened.check(chosen, surveyed.inputs_done.hex())
        options["lane"] = "interactive" if lane is None and surveyed.count <= INTERACTIVE_TEXTS else lane
        with (connect or runed.connect)() as client:
            job = Job(
                client=client,
                output=opened,
                encoder_type=partial(ParquetEncoder, kept=kept) if kept else ENCODERS[output_format],
                surveyed=surveyed,
                chosen=chosen,
                keep_going=keep_going,
                on_space=on_space,
                on_progress=on_progress,
                on_complaint=on_complaint,
            )
            return job.run(source, options)
