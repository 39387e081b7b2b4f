"""One request over HTTP/2 on its own connection, as pure computation: bytes in, bytes out, no socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from runed.errors import DaemonUnavailableError, RunedError

RECEIVE_WINDOW = 1024 * 1024
"""Bytes of the response that the daemon may send before they are read."""

_SETTINGS = b"\x04"
"""The type of the first frame of a connection, its fourth byte."""


class _Protocol(H2Connection):
    def __init__(self) -> None:
        super().__init__(H2Configuration(client_side=True, header_encoding=None))
        self.local_settings = Settings(
            client=True,
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW},
        )
        self.initiate_connection()
        self.increment_flow_control_window(RECEIVE_WINDOW)

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:  # noqa: ARG002 # h2's signature
        """Let the open stream go on, as RFC 9113 section 6.8 demands. h2 would drop the rest of the answer."""
        return [], [ConnectionTerminated()]


class Http2Request:
    """The state of one request and its response.

    Attributes:
        status: The status of the response; 0 before it has come.
        headers: The headers of the response.
        trailers: The trailers of the response.
        draining: Whether the daemon is about to end and takes no other request.
        ended: Whether the response is complete.
        reset_code: The code with which the daemon reset the request, or None.
        failure: The reason why the response is cut off, or None.

    Args:
        path: The path, with its query.
        headers: The headers of the request.
        method: The HTTP method.
        authority: The name of the host.
    """

    def __init__(
        self, path: str, headers: Iterable[tuple[str, str]], *, method: str = "POST", authority: str = "runed"
    ) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.draining = False
        self.ended = False
        self.reset_code: int | None = None
        self.failure: RunedError | None = None
        self._h2 = _Protocol()
        self._stream_id = self._h2.get_next_available_stream_id()
        self._unsent: deque[memoryview] = deque()
        self._end_wanted = self._end_sent = False
        self._greeted = False
        pseudo = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
        self._h2.send_headers(self._stream_id, [*pseudo, *headers])

    @property
    def blocked(self) -> bool:
        """Whether data waits for room in the daemon."""
        return bool(self._unsent)

    @property
    def half_closed(self) -> bool:
        """Whether `end` was called."""
        return self._end_wanted

    def send(self, data: bytes) -> None:
        """Take data of the request. `output` returns it as the daemon has room."""
        self._unsent.append(memoryview(data))
        self._frame()

    def end(self) -> None:
        """End the data of the request."""
        self._end_wanted = True
        self._frame()

    def reset(self) -> None:
        """Abandon the request. `output` returns the frame that tells the daemon."""
        self._unsent.clear()
        if not self.ended:
            try:
                self._h2.reset_stream(self._stream_id, ErrorCodes.CANCEL)
            except ProtocolError:
                return  # the daemon has closed the stream before

    def output(self) -> bytes:
        """Return the next bytes to write."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> bytes:
        """Take received bytes, and return the data of the response in them. A failure does not hide the data before it.

        Args:
            data: The next bytes; b"" means that the other side closed the connection.
        """
        if not data and not self.ended:
            self.failure = DaemonUnavailableError(
                "the connection broke in the middle of a stream; the daemon ended or is overloaded"
            )
        body = bytearray()
        for event in self._parse(data):
            match event:
                case ResponseReceived():
                    self.headers = event.headers
                    self.status = int(dict(event.headers)[b":status"])
                case DataReceived():
                    self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream_id)
                    body += event.data
                case TrailersReceived():
                    self.trailers = event.headers
                case StreamEnded():
                    self.ended = True
                case StreamReset() if not self.ended:
                    self.reset_code = event.error_code
                    self.failure = broken_off()
                case ConnectionTerminated():
                    self.draining = True
                case _:
                    pass
        # A window may have opened.
        self._frame()
        return bytes(body)

    def _parse(self, data: bytes) -> list[Event]:
        # h2 would read "HTTP" as the length of a frame, and wait for megabytes.
        foreign = not self._greeted and data[3:4] not in (b"", _SETTINGS)
        self._greeted = True
        try:
            if not foreign:
                return self._h2.receive_data(data)
        except ProtocolError:
            pass
        self.failure = RunedError("the answer is not HTTP/2; is it another program's socket?")
        return []

    def _frame(self) -> None:
        """Frame the data that waits, as far as the daemon's windows allow."""
        if self.ended or self._end_sent:
            return
        try:
            while self._unsent:
                window = self._h2.local_flow_control_window(self._stream_id)
                part = self._unsent[0][: min(window, self._h2.max_outbound_frame_size)]
                if not part and self._unsent[0]:
                    return
                self._h2.send_data(self._stream_id, part)
                self._unsent[0] = self._unsent[0][len(part) :]
                if not self._unsent[0]:
                    self._unsent.popleft()
            if self._end_wanted:
                self._h2.end_stream(self._stream_id)
                self._end_sent = True
        except ProtocolError:
            # The daemon has closed the stream. Its reason comes next, or came just now.
            self._unsent.clear()


def broken_off() -> DaemonUnavailableError:
    """Return the error of a stream that ended before its last message."""
    return DaemonUnavailableError("the daemon broke the stream off; it is overloaded or waited for too long")
