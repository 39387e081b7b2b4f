"""The frames of one HTTP/2 connection, by h2: bytes to events and back."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RequestReceived, StreamReset
from h2.exceptions import DenialOfServiceError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from runed.server.stream import BODY_LIMIT

MAX_HEADERS = 64 * 1024
"""Bytes that the headers of one request may have, names and values together."""

UNPARSED_LIMIT = MAX_HEADERS + 64 * 1024
"""Bytes that may come without completing a frame or a header block. More are an attack on the memory."""

MAX_TABLE = 4 * 1024
"""Bytes of the headers that responses can refer to, which is the size that RFC 7541 begins with. A client may allow 4 GiB. But
each header is searched in all of them."""


class Framing(H2Connection):
    """A connection of h2, changed so that a fault of one stream, or a GOAWAY of the client, does not end other streams."""

    # h2 remembers how streams ended, to answer late frames. Late frames come soon, and h2's default of 65,536 streams costs
    # megabytes for each connection.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, max_streams: int) -> None:
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                # A check that fails inside a header block would leave both sides with different compression tables.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
                SettingCodes.INITIAL_WINDOW_SIZE: BODY_LIMIT,
            },
        )
        self._frames = 0
        self._unparsed = 0
        self.initiate_connection()
        # The sum of the windows of all streams, so that a body that nobody reads uses up only its own window.
        self.increment_flow_control_window(max_streams * BODY_LIMIT)

    @property
    def open_inbound_streams(self) -> int:
        """Always 0: `Http2Connection` itself refuses one stream too many, for which h2 would end the connection."""
        super().open_inbound_streams  # noqa: B018 # forgets the streams that are closed
        return 0

    @property
    def is_amid(self) -> bool:
        """Whether bytes came that completed no frame and no header block."""
        return self._unparsed > 0

    @property
    def has_output(self) -> bool:
        """Whether framed bytes wait to be written."""
        return bool(self._data_to_send)

    def send_goaway(self) -> None:
        """Tell the client which request is the last. Open requests go on, unlike after `close_connection`."""
        self._prepare_for_sending([GoAwayFrame(last_stream_id=self.highest_inbound_stream_id)])

    def read(self, data: bytes) -> list[Event]:
        """Read bytes of the client. A request that is reset in them gives no event, so that it costs no call of the app.

        Raises:
            ProtocolError: This is no HTTP/2, or an attack on the memory. The reason is framed as a GOAWAY.
        """
        frames = self._frames
        events = self.receive_data(data)
        self._unparsed = 0 if self._frames > frames else self._unparsed + len(data)
        if self._unparsed > UNPARSED_LIMIT:
            self.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            raise DenialOfServiceError
        given_up = {event.stream_id for event in events if isinstance(event, StreamReset)}
        return [event for event in events if not (isinstance(event, RequestReceived) and event.stream_id in given_up)]

    def _receive_frame(self, frame: Frame) -> list[Event]:
        """Count complete frames. Not every frame gives an event: a body after the reset of its stream gives none."""
        self._frames += 1
        return super()._receive_frame(frame)

    def _acknowledge_settings(self) -> list[Frame]:
        """Take the settings of the client, but no larger table of headers, and no endless list of its sizes."""
        frames = super()._acknowledge_settings()
        encoder = self.encoder
        encoder.header_table_size = min(encoder.header_table_size, MAX_TABLE)
        if sizes := encoder.table_size_changes:
            # The next response tells all sizes since the last one. RFC 7541 section 4.2 wants no more than these two.
            encoder.table_size_changes = [min(sizes), sizes[-1]]
            encoder.header_table.resized = True  # hpack forgets to tell them if the last one came twice
        return frames

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:  # noqa: ARG002 # h2's signature
        """Let open streams go on, as RFC 9113 section 6.8 demands. h2 would drop the rest of their responses."""
        return [], [ConnectionTerminated()]
