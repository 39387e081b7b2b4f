"""`grpc.health.v1.Health`, which tells gRPC's tools whether embeddings are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from connectrpc.request import RequestContext
from runed_proto.grpc.health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from runed.api.error_codes import TooManyWatchesError, UnknownServiceError
from runed.api.host import Host
from runed.domain.status import Health, Status

POLL_INTERVAL = 0.25
"""Seconds between two checks of the daemon's state by a Watch. A Watch delays a drain by at most this time."""

MAX_WATCHES = 256
"""Most concurrent Watch calls. The client decides how long each lasts."""

_Served = HealthCheckResponse.ServingStatus


class HealthServicer:
    """Implements the generated `Health`. A call neither starts the engine nor keeps it awake.

    Args:
        host: The daemon.
        services: The full names of all services. They and "", the whole server, share one state.
    """

    def __init__(self, host: Host, services: Iterable[str]) -> None:
        self._host = host
        self._names = ("", *services)
        self._watches = 0

    async def check(self, request: HealthCheckRequest, ctx: RequestContext[Any, Any], /) -> HealthCheckResponse:
        """Answer with the state of a service.

        Raises:
            UnknownServiceError: There is no service of that name.
        """
        if request.service not in self._names:
            known = ", ".join(filter(None, self._names))
            raise UnknownServiceError(f"there is no such service; ask for {known}, or leave the name empty for all of them")
        return HealthCheckResponse(status=serving_status(self._host.health()))

    async def list(self, request: HealthListRequest, ctx: RequestContext[Any, Any], /) -> HealthListResponse:
        """Answer with the state of every service."""
        status = serving_status(self._host.health())
        return HealthListResponse(statuses={name: HealthCheckResponse(status=status) for name in self._names})

    async def watch(self, request: HealthCheckRequest, ctx: RequestContext[Any, Any], /) -> AsyncIterator[HealthCheckResponse]:
        """Yield the state of a service now and at each change, until the client leaves or the daemon drains.

        Raises:
            TooManyWatchesError: `MAX_WATCHES` clients watch already.
        """
        if self._watches >= MAX_WATCHES:
            raise TooManyWatchesError(
                f"{MAX_WATCHES} Watch calls are open, which is the limit; end one of them, or ask Check now and then",
                metadata={"limit": str(MAX_WATCHES)},
            )
        self._watches += 1
        try:
            told: int | None = None
            while True:
                health = self._host.health()
                status = serving_status(health) if request.service in self._names else _Served.SERVICE_UNKNOWN
                if status != told:
                    told = status
                    yield HealthCheckResponse(status=status)
                if health.status is Status.SHUTTING_DOWN:  # the drain waits for this call
                    return
                await asyncio.sleep(POLL_INTERVAL)
        finally:
            self._watches -= 1


def serving_status(health: Health) -> _Served:
    """Return whether an embedding that comes now will be answered.

    NOT_SERVING would make some clients drop a connection on which other calls are about to be answered.
    """
    return _Served.SERVING if health.serves else _Served.NOT_SERVING
