"""A port with the page, whose daemon is a `FakeHost`, for programs in other languages. The test arranges it by lines of JSON.

    python -m tests.fakes.page_port FOLDER [--no-token]

Each line on standard input is an object, and gets a line with an object in return: the first has the URL of the port.
`{"link": true}` returns a new link. `{"pass": SECONDS}` lets time pass for links and sessions. Any other member is set on the
host, as in `{"status": "DEGRADED", "message": "why"}`. A false `hour` forgets the hour. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runed.api.app import build_port_app
from runed.api.page.access import Access
from runed.api.token_guard import token_gate
from runed.domain.history import SLOTS, Failure, LastHour, Slot, Work
from runed.domain.model_status import ModelRoom, ModelStatus
from runed.domain.status import ConnectedClient, LoadingPhase, Status
from runed.lifecycle.loopback import Loopback
from runed.server import Server
from tests.fakes.fake_host import LOAD, FakeHost


def busy_hour() -> LastHour:
    """Return an hour of made-up work: a bulk job in its first half, and queries all the time."""
    slots = []
    for number in range(1, SLOTS):
        wave = 1 + math.sin(number / 15)
        bulk = 2400 if 60 < number < 190 else 0
        texts = int(bulk * (1 + wave / 9) + 30 * wave)
        fast, slow = (0.180, 0.650) if bulk else (0.012, 0.045)
        slots.append(
            Slot(
                number=number,
                texts=texts,
                tokens=texts * 60,
                calls=int(8 * wave),
                errors=int(number % 97 == 0),
                p50_seconds=fast * (1 + wave / 4),
                p99_seconds=slow * (1 + wave / 3),
                queued=int(bulk * wave / 2),
                engine_bytes=640_000_000 if number > 55 else 320_000_000,
            )
        )
    now = time.time()
    return LastHour(
        born=now - 7200,
        now=SLOTS,
        slots=slots,
        works=[
            Work("stream", "unix:41", time.monotonic() - 812, 190_400, "qwen3-embedding-0.6b.q8_0"),
            Work("batch", "tcp:7", time.monotonic() - 0.3, 32, "bge-m3.q8_0"),
        ],
        failures=[Failure("QUEUE_FULL", 3, now - 95), Failure("TEXT_TOO_LONG", 41, now - 1810)],
    )


@dataclass
class _Host(FakeHost):
    """A fake that has been up for two hours.

    Attributes:
        names: Names that it tells for its models, which no real model could have.
    """

    names: Sequence[str] = ()

    async def models(self) -> list[ModelStatus]:
        known = await super().models()
        now = int(time.time())
        return [
            replace(known[0], name=name, vector_dim=1024, memory_bytes=320_000_000, last_used_at=now) for name in self.names
        ] or known

    def room(self) -> ModelRoom:
        return ModelRoom(memory_limit=8_000_000_000, memory_bytes=640_000_000)

    def health(self, model: str = "", *, detailed: bool = False) -> Any:  # noqa: ANN401 # that of the base
        return replace(super().health(model), uptime_seconds=7200, pid=os.getpid(), total_requests=41_204, in_flight_requests=2)


def _arrange(host: FakeHost, access: Access, clock: list[float], wanted: dict[str, Any]) -> dict[str, object]:
    for name, value in wanted.items():
        match name:
            case "link":
                return {"link": access.link()}
            case "pass":
                clock[0] += value
            case "status":
                host.status = Status[value]
            case "phase":
                host.phase = LoadingPhase[value] if value else None
            case "hour":
                host.hour = busy_hour() if value else LastHour()
            case "clients":
                host.clients = [ConnectedClient(*row) for row in value]
            case "failures":
                host.hour = replace(host.hour, failures=[Failure(reason, 1, time.time()) for reason in value])
            case _:
                setattr(host, name, value)
    return {}


async def _main(folder: Path, *, needs_token: bool) -> None:
    host, clock = _Host(load=LOAD, hour=busy_hour()), [0.0]
    with Loopback.open(("127.0.0.1", 0), folder / "http.token" if needs_token else None) as http:
        access = Access(http.url, http.port, needs_link=needs_token, clock=lambda: clock[0])
        gate = token_gate(token=http.token, port=http.port, page=access)
        server = Server(build_port_app(host, access=access), http.sock, gate=gate)
        await server.start()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        answer: dict[str, object] = {"url": http.url}
        while True:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if not (line := await reader.readline()):
                break
            answer = _arrange(host, access, clock, json.loads(line))
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), needs_token="--no-token" not in sys.argv))
