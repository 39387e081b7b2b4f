"""The steps of flows. A step describes an action and does not perform it.

A flow is a generator. It yields steps, is sent their results or thrown their errors, and returns the result of a call.
`runed.client.calls.drive` drives it; a transport performs its steps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from runed.client.types import Embedding
from runed.errors import RunedError

if TYPE_CHECKING:
    from runed.client.wire.stream import StreamExchange  # only streams need HTTP/2, which takes 70 ms to import

K = TypeVar("K")
T = TypeVar("T")
Outcome: TypeAlias = Embedding | RunedError


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. The result is the response.

    Attributes:
        method: The method's name, as in "Embed".
        request: The request.
        response_type: The class of the response.
        timeout: Seconds that it may take; None means no limit.
    """

    method: str
    request: Message
    response_type: type[Message]
    timeout: float | None

    def decode(self, data: bytes) -> Message:
        """Decode the response.

        Raises:
            RunedError: The data is not a response.
        """
        try:
            return self.response_type.FromString(data)
        except DecodeError:
            raise RunedError(f"the answer to {self.method} is no message of runed; is it another program's socket?") from None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let time pass. There is no result.

    Attributes:
        seconds: The time.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Ensure:
    """Make sure that a daemon listens. There is no result.

    Attributes:
        timeout: Seconds that it may take; None means the default of `ensure_daemon`.
    """

    timeout: float | None


class StreamConnection(Protocol):
    """A connection that carries one stream.

    Attributes:
        exchange: Its state.
    """

    exchange: StreamExchange

    def close(self) -> None:
        """Reset the stream if it is not complete, and close the connection. A second close does nothing."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection for a stream. The result is a `StreamConnection`.

    Attributes:
        exchange: The initial state of the stream.
        timeout: Seconds that it may take; None means no limit.
    """

    exchange: StreamExchange
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Turn:
    """Let both sides of a stream go on, until bytes of the daemon or texts of the caller have come.

    The output of the exchange is written. Texts are taken from the caller while there is room for them. The result is the
    bytes, b"" at the end of the connection, or None without any.

    Attributes:
        connection: The connection; None means that only texts are taken.
        timeout: Seconds after which the turn ends in any case; None means no limit.
    """

    connection: StreamConnection | None
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Give(Generic[K]):
    """Hand outcomes to the caller. There is no result.

    Attributes:
        results: The caller's ids of the texts with their outcomes; at least one.
    """

    results: list[tuple[K, Outcome]]


Flow: TypeAlias = Generator[Send | Sleep | Ensure, Any, T]
UploadFlow: TypeAlias = Generator[Send | Sleep | Ensure | Connect | Turn, Any, T]
StreamFlow: TypeAlias = Generator[Send | Sleep | Ensure | Connect | Turn | Give[K], Any, list[tuple[K, Outcome]]]
