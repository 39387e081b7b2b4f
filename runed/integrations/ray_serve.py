"""runed as an application of Ray Serve: the daemons of all nodes behind one address; needs the extra `runed[ray]`.

    serve run runed.integrations.ray_serve:app

Each replica answers by the daemon of its node, which it starts if none runs. A node has one replica at most. Serve routes,
scales and drains. The application answers the OpenAI API, and the methods of `runed.v1.RunedService` that change nothing, by
the Connect protocol. docs/scale.md has a configuration.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import runed
from runed.errors import RunedError
from runed.extras import needed
from runed.jobs.nodes import Node
from runed.jobs.ray_nodes import Shape, ask

serve = needed("ray.serve", "ray")

_METHODS = ("Embed", "EmbedBatch", "CountTokens", "Rerank", "Info", "Health", "ListModels", "WarmUp")
_PATHS = ("/v1/embeddings", "/v1/rerank", *(f"/runed.v1.RunedService/{method}" for method in _METHODS))
"""Paths that are answered, beside `/v1/models` and those below. A stranger who finds the address can shut down nothing."""

_NOT_SENT = {"host", "connection", "transfer-encoding", "content-length", "accept-encoding", "authorization", "cookie"}
"""Headers that are not handed on: those of the one connection, and those that are for whoever guards the address."""

_HEALTH_SECONDS = 20.0
"""Most seconds for the answer that tells that a daemon lives."""

_DRAIN_SECONDS = 600.0
"""Most seconds in which a replica that goes answers what it has. Serve's own 20 would cut off large batches."""


class _Replica:
    """Answers requests by the daemon of the node. The daemon waits, refuses and batches; nothing is queued here.

    Args:
        home: The directory of the daemon on each node; None means `RUNED_HOME` or `~/.runed` there.
        model: The model that a replica must have before it gets requests; None means the default model.
        fingerprint: The fingerprint of the vectors of that model, which all replicas must have; None for no check. With that of
            `runed.ray.fingerprint`, daemons that are started have the engine of the node that was asked.

    Raises:
        RunedError: The daemon cannot be started, or cannot get its engine or model; or it has another fingerprint.
    """

    def __init__(self, home: str | None = None, model: str | None = None, fingerprint: str | None = None) -> None:
        self._node = Node(home=home, model=model, expected=fingerprint)
        self._node.prepare()
        self._http = runed.http_client_async(home=home)

    async def __call__(self, request: Request) -> Response:
        """Hand a request on, and its answer back. If the client goes, Serve cancels this, and the daemon drops the work."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        if path not in _PATHS and path != "/v1/models" and not path.startswith("/v1/models/"):
            message = f"this address serves {', '.join(_PATHS)} and /v1/models"
            return JSONResponse({"code": "not_found", "message": message}, 404)
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_SENT]
        query = f"?{request.url.query}" if request.url.query else ""
        body = await request.body()
        try:
            answer = await self._http.execute(request.method, f"http://runed{path}{query}", headers, body)
        except (RunedError, OSError):  # the daemon has ended, and its work with it; the next call starts another one
            message = "the daemon of this node has ended; try again"
            return JSONResponse({"code": "unavailable", "message": message}, 503, {"retry-after": "1"})
        return Response(
            bytes(answer.content),
            answer.status,
            {name: value for name, value in answer.headers.items() if name not in _NOT_SENT},
        )

    async def check_health(self) -> None:
        """Fail if the daemon does not answer and cannot be started, so that Serve makes another replica."""
        async with runed.connect_async(home=self._node.home) as client:
            await client.health(timeout=_HEALTH_SECONDS)


Daemon: Any = serve.deployment(
    _Replica,
    name="Daemon",
    max_replicas_per_node=1,
    max_ongoing_requests=256,
    graceful_shutdown_timeout_s=_DRAIN_SECONDS,
    ray_actor_options={"num_cpus": 1},
)
"""The deployment. `Daemon.options(...)` changes what Serve does with it."""


def build(arguments: dict[str, Any]) -> Any:  # noqa: ANN401 # an application of Ray Serve
    """Make the application with `home` and `model`, as `args` of Serve's configuration names them.

    The first node is asked for its fingerprint, which starts its daemon. All replicas then have the same engine and model. With
    GPUs, replicas that ask Ray for none would find none: nodes are not asked then, and `fingerprint` may name the space.
    """
    shape = Shape.of_cluster()
    if "fingerprint" not in arguments and not shape.gpus:
        arguments = arguments | {"fingerprint": ask(shape, Node(**arguments))}
    return Daemon.bind(**arguments)


app = Daemon.bind()
"""The application with the home and the default model of each node."""
