"""Connects to the engine's UNIX socket, and sends nothing to a process of another user that listens there."""

from __future__ import annotations

import asyncio
import errno
import socket

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.tracing import Trace

from runed.log import get_logger
from runed.peers import peer_of

_QUEUE_PAUSE = 0.1
"""Seconds between two tries to connect to an engine whose queue of connections is full. Its watch ends the waiting: an engine
that takes no connection hangs, and is replaced."""

_log = get_logger(__name__)


class EngineConnector(aiohttp.UnixConnector):
    """Looks at each listener that it has connected to. To the caller, a foreign one is as none at all."""

    _told = False

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 # aiohttp calls it so
    ) -> ResponseHandler:
        while True:
            handler = await super()._create_connection(req, traces, timeout)
            assert handler.transport is not None
            connection: socket.socket = handler.transport.get_extra_info("socket")
            if _is_connected(connection):
                break
            handler.close()
            await asyncio.sleep(_QUEUE_PAUSE)
        try:
            peer = peer_of(connection)
        except ConnectionResetError:
            return handler  # gone already, which the request finds out
        if peer.is_ours:
            return handler
        handler.close()
        if not self._told:  # once for each start of the engine, which is looked for many times a second
            self._told = True
            _log.error("another user's process listens on the engine's socket", socket=self.path, uid=peer.uid)
        error = ConnectionRefusedError(errno.ECONNREFUSED, f"a process of user id {peer.uid} listens there")
        raise UnixClientConnectorError(self.path, req.connection_key, error)


def _is_connected(connection: socket.socket) -> bool:
    """Return whether a socket is connected. asyncio takes EAGAIN, the answer of a full queue, for a connection."""
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
