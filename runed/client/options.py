"""The options of an embedding; they are checked before anything is sent."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

from runed_proto.runed.v1.runed_pb2 import (
    LANE_BULK,
    LANE_INTERACTIVE,
    LANE_UNSPECIFIED,
    ROLE_DOCUMENT,
    ROLE_QUERY,
    ROLE_UNSPECIFIED,
    TRUNCATE_END,
    TRUNCATE_START,
    TRUNCATE_UNSPECIFIED,
    CountTokensRequest,
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    EmbedStreamRequest,
    EmbedStreamResponse,
    RerankRequest,
)
from runed_proto.runed.v1.runed_pb2 import Lane as LaneValue
from runed_proto.runed.v1.runed_pb2 import Role as RoleValue
from runed_proto.runed.v1.runed_pb2 import Truncate as TruncateValue

from runed.errors import (
    BadDimensionsError,
    BadInstructionError,
    InvalidRequestError,
    UnimplementedError,
    UnknownModelError,
    quoted,
)

Role: TypeAlias = Literal["query", "document"]
Truncate: TypeAlias = Literal["none", "end", "start"]
Lane: TypeAlias = Literal["interactive", "bulk"]

_ROLES: dict[str | None, RoleValue] = {None: ROLE_UNSPECIFIED, "query": ROLE_QUERY, "document": ROLE_DOCUMENT}
_TRUNCATES: dict[str | None, TruncateValue] = {"none": TRUNCATE_UNSPECIFIED, "end": TRUNCATE_END, "start": TRUNCATE_START}
_LANES: dict[str | None, LaneValue] = {None: LANE_UNSPECIFIED, "interactive": LANE_INTERACTIVE, "bulk": LANE_BULK}

_MAX_DIMENSIONS = 2**32 - 1
"""The largest number that the field of the request holds; the daemon knows the model's own limits."""


class EmbedOptions(TypedDict, total=False):
    """The options of all methods that embed, for programs that keep them in a dictionary.

        options: runed.EmbedOptions = {"role": "query", "truncate": "end"}
        vector = client.embed("how do I brew tea?", **options)

    Attributes:
        role: The use of the text: "query", "document", or None for the text as it is. The daemon puts the model's own prompt in
            front; never write one yourself.
        instruction: The task of a query, in one English sentence; only with role "query". Empty: the model's default.
        dimensions: The number of values of a vector, from `Info.min_dimensions` on; None means all, `Info.vector_dim`.
        truncate: The treatment of a text that is longer than the model reads: "none", the default, refuses it, "end" and
            "start" cut off that side of it.
        lane: The queue to wait in: "interactive" is served first, "bulk" is for long jobs. None lets the daemon choose by the
            size of the request.
        model: The model: its name or an alias, in letters of any case. None means the daemon's default model. A name that the
            daemon does not know is refused.
    """

    role: Role | None
    instruction: str
    dimensions: int | None
    truncate: Truncate
    lane: Lane | None
    model: str | None


class QueueOptions(TypedDict):
    """The options that a rerank shares with an embedding; see `EmbedOptions`."""

    truncate: Truncate
    lane: Lane | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`EmbedOptions`, checked, and with defaults.

    Raises:
        InvalidRequestError: A value is not one of the accepted ones; the message names them.
        BadDimensionsError: No vector can have this number of values.
        BadInstructionError: An instruction was given without the role of a query, or it is not valid Unicode.
        UnknownModelError: No model can have this name.
    """

    role: Role | None = None
    instruction: str = ""
    dimensions: int | None = None
    truncate: Truncate = "none"
    lane: Lane | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        _check_choice("role", self.role, _ROLES)
        _check_choice("truncate", self.truncate, _TRUNCATES)
        _check_choice("lane", self.lane, _LANES)
        if self.dimensions is not None and not hasattr(self.dimensions, "__index__"):  # NumPy's integers have `__index__`, too
            raise TypeError(f"dimensions is a {type(self.dimensions).__name__}, but must be an int")
        if self.dimensions is not None and not 1 <= operator.index(self.dimensions) <= _MAX_DIMENSIONS:
            raise BadDimensionsError(
                f"dimensions is {self.dimensions}; give a number from Info.min_dimensions to Info.vector_dim, or None for all",
                metadata={"dimensions": str(self.dimensions)},
            )
        check_model(self.model)
        if not isinstance(self.instruction, str):
            raise TypeError(f"instruction is a {type(self.instruction).__name__}, but must be a str")
        if self.instruction and self.role != "query":
            raise BadInstructionError('an instruction is for queries; give role="query" too, or no instruction')
        try:
            self.instruction.encode()
        except UnicodeEncodeError:
            raise BadInstructionError("instruction is not valid Unicode: it has half of a surrogate pair") from None

    def set_on(self, request: EmbedRequest | EmbedBatchRequest | EmbedStreamRequest) -> None:
        """Write the options into a request. A default takes no room there."""
        self.set_prompt_on(request)
        request.dimensions = self.dimensions or 0
        self.set_queue_on(request)

    def set_prompt_on(self, request: EmbedRequest | EmbedBatchRequest | EmbedStreamRequest | CountTokensRequest) -> None:
        """Write the options that choose the model and the prompt into a request."""
        request.model = self.model or ""
        request.role = _ROLES[self.role]
        request.instruction = self.instruction

    def set_queue_on(self, request: EmbedRequest | EmbedBatchRequest | EmbedStreamRequest | RerankRequest) -> None:
        """Write the options that choose the queue and the treatment of a long text into a request."""
        request.truncate = _TRUNCATES[self.truncate]
        request.lane = _LANES[self.lane]

    def check_known(self, answer: EmbedResponse | EmbedBatchResponse | EmbedStreamResponse) -> None:
        """Check that the daemon knew the options of the call that it has answered.

        A daemon of a version without options ignores them, and answers a wrong vector. Its answers have no fingerprint. Those
        of a version with one model name no model.

        Args:
            answer: The answer.

        Raises:
            UnimplementedError: The answer must not be used.
        """
        asked = [
            name
            for name, is_set in (
                ("role", self.role is not None),
                ("instruction", bool(self.instruction)),
                ("dimensions", self.dimensions is not None),
                ("truncate", self.truncate != "none"),
            )
            if is_set
        ]
        if asked and not answer.fingerprint:
            raise too_old(f"does not know {' and '.join(asked)}")
        check_named(self.model, answer.model)


def check_model(name: str | None) -> None:
    """Check the name of a model before it is sent.

    Raises:
        UnknownModelError: No model can have this name.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"model is a {type(name).__name__}, but must be a str")
    try:
        (name or "").encode()
    except UnicodeEncodeError:
        raise UnknownModelError("model is not valid Unicode: it has half of a surrogate pair") from None


def check_named(asked: str | None, answering: str) -> None:
    """Check that the daemon knew the name of the model. One of a version with one model ignores it.

    Args:
        asked: The name that the caller gave.
        answering: The name that the answer tells.

    Raises:
        UnimplementedError: The answer is of another model.
    """
    if asked and not answering:
        raise too_old("has one model and knows no names")


def too_old(lack: str) -> UnimplementedError:
    """Return the error about a feature that an older daemon lacks."""
    return UnimplementedError(f"the daemon is too old: it {lack}; stop it with `runed stop`, so that a newer one is started")


def _check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    # A list, or another value that cannot be a key, would raise a TypeError that does not help.
    if not isinstance(value, (str, type(None))) or value not in choices:
        accepted = ", ".join("None" if choice is None else f'"{choice}"' for choice in choices)
        raise InvalidRequestError(f"{name} is {quoted(value)}, but must be one of {accepted}")
