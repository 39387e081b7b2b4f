"""One bidirectional stream of the Connect protocol over HTTP/2, as pure computation: bytes in, bytes out, no socket.

A connection carries one stream and ends with it. Messages go in envelopes: a byte of flags, four of length, the message. The
last envelope of the daemon holds no message but JSON, with the error of the stream if there is one.
"""

from __future__ import annotations

import json
import struct
from collections import deque

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from runed.client.wire.unary import HTTP_OK, SERVICE, Answer, error_of
from runed.errors import DaemonUnavailableError, RunedError

RECEIVE_WINDOW = 1024 * 1024
"""Bytes of answers that the daemon may send ahead of us."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes that a message of the daemon may have; more is not one of runed."""

_ENVELOPE = struct.Struct(">BI")
_END_OF_STREAM = 0x02

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
        """Let the open stream go on, as RFC 9113 section 6.8 wants; h2 would drop what the daemon has yet to answer."""
        return [], [ConnectionTerminated()]


class StreamExchange:
    """The state of one stream.

    Attributes:
        draining: Whether the daemon is about to end and wants no more messages, only to answer those that it has.
        ended: Whether the daemon has said its last, and will answer nothing more.
        failure: Why the stream is over before its time, or None.

    Args:
        method: The method's name, as in "EmbedStream".
    """

    def __init__(self, method: str) -> None:
        self.draining = False
        self.ended = False
        self.failure: RunedError | None = None
        self._h2 = _Protocol()
        self._stream_id = self._h2.get_next_available_stream_id()
        self._unsent: deque[memoryview] = deque()
        self._end_wanted = self._end_sent = False
        self._greeted = False
        self._status = 0
        self._buffer = bytearray()
        self._h2.send_headers(
            self._stream_id,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "runed"),
                (":path", f"/{SERVICE}/{method}"),
                ("content-type", "application/connect+proto"),
                ("connect-protocol-version", "1"),
                # As in `wire`.
                ("connect-accept-encoding", "identity"),
            ],
        )

    @property
    def blocked(self) -> bool:
        """Whether messages wait because the daemon has no room for them now."""
        return bool(self._unsent)

    @property
    def half_closed(self) -> bool:
        """Whether `end` was called."""
        return self._end_wanted

    def send(self, message: bytes) -> None:
        """Take a message to be sent; `output` gives it as the daemon has room."""
        self._unsent.append(memoryview(_ENVELOPE.pack(0, len(message)) + message))
        self._frame()

    def end(self) -> None:
        """Say that no more messages come."""
        self._end_wanted = True
        self._frame()

    def reset(self) -> None:
        """Give the stream up; `output` gives what tells the daemon."""
        self._unsent.clear()
        if not self.ended:
            try:
                self._h2.reset_stream(self._stream_id, ErrorCodes.CANCEL)
            except ProtocolError:
                return  # the daemon was quicker

    def output(self) -> bytes:
        """Give what is to be written next."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> list[bytes]:
        """Take what was received, and give the messages that are complete.

        Args:
            data: The next bytes; none at all mean that the other side closed the connection.
        """
        messages: list[bytes] = []
        try:
            self._receive(data, messages)
        except RunedError as error:
            # Not raised: the messages before it count.
            self.failure = error
        return messages

    def _receive(self, data: bytes, messages: list[bytes]) -> None:
        if not data and not self.ended:
            raise DaemonUnavailableError("the connection broke in the middle of a stream; the daemon ended or is overloaded")
        for event in self._parse(data):
            match event:
                case ResponseReceived():
                    self._status = int(dict(event.headers)[b":status"])
                case DataReceived():
                    self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream_id)
                    self._buffer += event.data
                    if self._status == HTTP_OK:
                        self._unpack(messages)
                case StreamEnded() if self._status != HTTP_OK:
                    Answer(self._status, bytes(self._buffer)).message()
                case StreamEnded() | StreamReset() if not self.ended:
                    raise DaemonUnavailableError("the daemon broke the stream off; it is overloaded or waited for too long")
                case ConnectionTerminated():
                    self.draining = True
                case _:
                    pass
        # A window may have opened.
        self._frame()

    def _parse(self, data: bytes) -> list[Event]:
        # h2 would wait for the megabytes that "HTTP" is the length of.
        foreign = not self._greeted and data[3:4] not in (b"", _SETTINGS)
        self._greeted = True
        try:
            if not foreign:
                return self._h2.receive_data(data)
        except ProtocolError:
            pass
        raise RunedError("what answers is not HTTP/2; is it another program's socket?")

    def _frame(self) -> None:
        """Frame what waits, as far as the daemon's windows allow."""
        if self.ended or self._end_sent:
            return
        try:
            while self._unsent:
                window = self._h2.local_flow_control_window(self._stream_id)
                part = self._unsent[0][: min(window, self._h2.max_outbound_frame_size)]
                if not part:
                    return
                self._h2.send_data(self._stream_id, part)
                self._unsent[0] = self._unsent[0][len(part) :]
                if not self._unsent[0]:
                    self._unsent.popleft()
            if self._end_wanted:
                self._h2.end_stream(self._stream_id)
                self._end_sent = True
        except ProtocolError:
            # The daemon has closed the stream; what it said about it comes next, or came just now.
            self._unsent.clear()

    def _unpack(self, messages: list[bytes]) -> None:
        while len(self._buffer) >= _ENVELOPE.size and not self.ended:
            flags, length = _ENVELOPE.unpack_from(self._buffer)
            if flags & ~_END_OF_STREAM or length > MAX_MESSAGE:
                raise not_of_runed()
            if len(self._buffer) < (end := _ENVELOPE.size + length):
                return
            message = bytes(self._buffer[_ENVELOPE.size : end])
            del self._buffer[:end]
            if flags:
                self._finish(message)
            else:
                messages.append(message)

    def _finish(self, message: bytes) -> None:
        self.ended = True
        try:
            document = json.loads(message)
            if error := document.get("error"):
                raise error_of(error)
        except (ValueError, AttributeError):
            raise not_of_runed() from None


def not_of_runed() -> RunedError:
    """Describe an answer that nobody of us would give."""
    return RunedError("what was answered is no message of runed; is it another program's socket?")
