"""The columns of a table of a distributed runner: a column of texts in, columns of vectors out.

Ray and Spark split a dataset into tables, and hand each of them to one of many workers. Each worker has a client of the daemon
of its node. This module has the part that does not depend on the runner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from runed.errors import InvalidRequestError, InvalidTextError, RunedError, quoted
from runed.jobs import parquet
from runed.jobs.ordering import OF_THE_TEXT

if TYPE_CHECKING:
    from runed.client.types import Embedding

OnError: TypeAlias = Literal["raise", "null", "column"]
"""The treatment of a text that cannot be embedded: end the job, leave its vector null, or tell the error in a column, too."""

_CHOICES = ("raise", "null", "column")

_SHOWN_COLUMNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of the columns that are read and added, and the treatment of bad texts.

    Attributes:
        text: The column of the texts.
        vector: The column of the vectors: lists of float32, null where the text is null.
        on_error: The treatment of a text that cannot be embedded.
        error: The column of the errors, each "REASON: message", if `on_error` is "column".
        token_count: The column of the numbers of tokens that the model read, int32; None for no such column.
        fingerprint: The column of the names of the vectors' space; None for no such column.

    Raises:
        InvalidRequestError: `on_error` is none of its values, or two of the columns have the same name.
    """

    text: str = "text"
    vector: str = "embedding"
    on_error: OnError = "raise"
    error: str = "error"
    token_count: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.on_error not in _CHOICES:
            accepted = ", ".join(f'"{choice}"' for choice in _CHOICES)
            raise InvalidRequestError(f"on_error is {quoted(self.on_error)}, but must be one of {accepted}")
        names = [self.text, *self.added]
        for name in names:
            if not isinstance(name, str) or not name:  # type: ignore[redundant-expr] # from a caller without mypy
                raise InvalidRequestError(f"{quoted(name)} is no name of a column; give a str that is not empty")
            if names.count(name) > 1:
                raise InvalidRequestError(f'two columns have the name "{name}"; give each another one')

    @property
    def added(self) -> list[str]:
        """The names of the columns that are added, in their order."""
        optional = (self.error if self.on_error == "column" else None, self.token_count, self.fingerprint)
        return [self.vector, *(name for name in optional if name is not None)]

    def check(self, names: Sequence[str]) -> None:
        """Check that a table has the column of texts, and none that is to be added.

        Args:
            names: The names of its columns.

        Raises:
            InvalidRequestError: It does not.
        """
        if names.count(self.text) != 1:
            shown = ", ".join(f'"{name}"' for name in names[:_SHOWN_COLUMNS]) or "none"
            lack = f'no column "{self.text}"' if self.text not in names else f'several columns "{self.text}"'
            raise InvalidRequestError(f"the dataset has {lack}; its columns are {shown}")
        if taken := [name for name in self.added if name in names]:
            raise InvalidRequestError(f'the dataset has a column "{taken[0]}" already; choose another name for the new one')


class Batch:
    """The texts of one table, and their outcomes as they come.

    Args:
        columns: The names of the columns.
        values: The column of the texts, an Arrow array.

    Attributes:
        texts: The texts to embed, by their row. Rows that are null are not among them.

    Raises:
        InvalidRequestError: The column holds no texts; or, if `on_error` is "raise", bytes that are not UTF-8.
    """

    def __init__(self, columns: Columns, values: Any) -> None:  # noqa: ANN401 # pyarrow has no type information
        self._columns = columns
        self._outcomes: list[Embedding | RunedError | None] = [None] * len(values)
        self.texts: dict[int, str] = {}
        if parquet.pyarrow().types.is_null(values.type):  # a table whose texts are all null may have lost their type
            return
        if not parquet.is_text(values.type):
            raise InvalidRequestError(
                f'the column "{columns.text}" holds {values.type} instead of strings; cast it, or name another column'
            )
        for row, data in enumerate(parquet.texts_of(values)):
            if data is None:
                continue
            try:
                self.texts[row] = data.decode()
            except UnicodeDecodeError as error:
                self._take(row, InvalidTextError(f"byte {error.start} is not valid UTF-8; decode the text by its own codec"))

    def take(self, outcomes: Iterable[tuple[int, Embedding | RunedError]]) -> None:
        """Take the outcomes of all texts, in any order, each with its row.

        Raises:
            RunedError: A text was answered twice or not at all; or the daemon failed; or a text cannot be embedded, and
                `on_error` is "raise".
        """
        waiting = set(self.texts)
        for row, outcome in outcomes:
            if row not in waiting:
                raise RunedError("the daemon answered a text twice, or one that it was not sent")
            waiting.remove(row)
            self._take(row, outcome)
        if waiting:
            raise RunedError(f"the daemon left {len(waiting)} texts unanswered; try again")

    def _take(self, row: int, outcome: Embedding | RunedError) -> None:
        if isinstance(outcome, RunedError):
            if not isinstance(outcome, OF_THE_TEXT):
                raise outcome
            if self._columns.on_error == "raise":
                remedy = 'on_error="null" or "column" goes on without such texts'
                place = f'row {row} of a batch of {len(self._outcomes)}, column "{self._columns.text}"'
                raise outcome.retold(f"{place}: {outcome.message}; {remedy}")
        self._outcomes[row] = outcome

    def arrays(self, dim: int) -> dict[str, Any]:
        """Return the columns to add, by their names in the order of `Columns.added`.

        Args:
            dim: The number of values of a vector.
        """
        arrow = parquet.pyarrow()
        good = [None if isinstance(outcome, RunedError) else outcome for outcome in self._outcomes]
        arrays = {self._columns.vector: parquet.vectors_array([row.vector if row else None for row in good], dim)}
        if self._columns.on_error == "column":
            errors = [f"{row.reason}: {row}" if isinstance(row, RunedError) else None for row in self._outcomes]
            arrays[self._columns.error] = arrow.array(errors, arrow.string())
        if self._columns.token_count is not None:
            counts = [row.token_count if row else None for row in good]
            arrays[self._columns.token_count] = arrow.array(counts, arrow.int32())
        if self._columns.fingerprint is not None:
            names = [row.fingerprint if row else None for row in good]
            arrays[self._columns.fingerprint] = arrow.array(names, arrow.string())
        return arrays

    @property
    def fingerprints(self) -> Collection[str]:
        """The spaces of the vectors of this table: one, or none without a vector."""
        return {outcome.fingerprint for outcome in self._outcomes if outcome and not isinstance(outcome, RunedError)}


class Space:
    """The space that all vectors of a dataset lie in, as one worker knows it.

    Args:
        expected: Its fingerprint; None for that of the first vector, which holds for this worker alone.
    """

    def __init__(self, expected: str | None) -> None:
        self._expected = expected

    def check(self, fingerprints: Iterable[str], node: str) -> None:
        """Check that vectors lie in the space.

        Args:
            fingerprints: Their fingerprints.
            node: The name of the node that made them.

        Raises:
            RunedError: They lie in another one.
        """
        for found in fingerprints:
            if self._expected is None:
                self._expected = found
            elif found != self._expected:
                raise RunedError(
                    f'the daemon of node {node} has another model or engine: its fingerprint is "{found}" instead of '
                    f'"{self._expected}", and vectors of both cannot be compared; give all nodes the same model and version, '
                    "and the same RUNED_ENGINE, such as cpu"
                )
