"""The daemon of a node, for the workers of a distributed runner. However many workers a node has, it has one daemon."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import runed
from runed.errors import DaemonUnavailableError, ForeignPathError, RunedError
from runed.lifecycle.marks import differences
from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from runed.settings import ENGINES, ONNX, ONNX_VERSIONS, load_settings

if TYPE_CHECKING:
    from runed.client.types import Health, Info

_log = logging.getLogger("runed.jobs")

_SAY_SECONDS = 10.0
"""Seconds between two lines about the same step of a long start."""

_START_SECONDS = 90.0
"""Most seconds for the command that starts a daemon."""

_NULL = subprocess.DEVNULL


_given: dict[str, str] = {}
"""Settings that this process has from a job, and not from its own environment."""


class Fingerprint(str):
    """The fingerprint of all vectors of a job, from the node that was asked first. It also tells how others reach the same one.

    Attributes:
        node: The name of that node.
        native: Its fingerprint of vectors with all their values; the string itself is that of the job's dimensions.
        engine: Its engine, as `RUNED_ENGINE` names it, or what else it computes with.
        version: The version of its engine.
        model: Its model.
        variant: The name of its default model in the manifest; "" for another model.
    """

    __slots__ = ("engine", "model", "native", "node", "variant", "version")

    node: str
    native: str
    engine: str
    version: str
    model: str
    variant: str

    def __new__(cls, value: str, **facts: str) -> Self:
        """Make a fingerprint with its attributes."""
        self = super().__new__(cls, value)
        for fact, text in facts.items():  # none while it is unpickled
            setattr(self, fact, text)
        return self

    @property
    def facts(self) -> dict[str, str]:
        """The attributes, by their names."""
        return {fact: getattr(self, fact) for fact in self.__slots__}

    @property
    def settings(self) -> dict[str, str]:
        """The settings by which other nodes choose the same engine and default model."""
        settings = {"RUNED_ENGINE": self.engine} if self.engine in ENGINES else {}
        return settings | ({"RUNED_MODEL_VARIANT": self.variant} if self.variant else {})

    def check(self, info: Info) -> None:
        """Check that the daemon of this node makes vectors of the same space.

        Raises:
            RunedError: It does not. The message names both nodes, what differs, and a remedy.
        """
        if info.fingerprint == self.native:
            return
        engine, version = _engine_of(info), info.engine_version
        if engine != self.engine:
            what, here, there = "engines", f"{engine} ({version})", f"{self.engine} ({self.version})"
            remedy = f"set RUNED_ENGINE={self.engine if self.engine in ENGINES else 'cpu'} on all nodes"
        elif version != self.version:
            what, here, there = "versions of the engine", version, self.version
            remedy = "install the same one on all nodes"
        else:
            what, here, there = "models or prompts", _model_of(info), self.model
            remedy = "give all nodes the same settings and manifest"
        raise RunedError(
            f"node {name()} and node {self.node}, which was asked first, have different {what}: {here} and {there}. Their "
            f"vectors cannot be compared; {remedy}, and end daemons that have others with `runed stop`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The daemon of the node on which a worker runs. The driver makes this object, and workers get copies.

    Attributes:
        home: The directory of the daemon; None means `RUNED_HOME` or `~/.runed` of the worker.
        model: The name of the model; None means the daemon's default model.
        timeout: Seconds that a start, and each call, may take; None means no limit.
        expected: The fingerprint of the job's vectors, if it is known; None for that of this node. With a `Fingerprint`, a
            daemon that is started here has the same engine and default model as the first node, if the settings of this node
            leave that open.
    """

    home: str | os.PathLike[str] | None = None
    model: str | None = None
    timeout: float | None = None
    expected: str | None = None

    def prepare(self) -> Info:
        """Make sure that the daemon runs and has its model, and describe it.

        The first worker of a node starts the daemon, which fetches engine and model. The others wait for it. A warning in the
        log tells what is waited for, since runners show the warnings of a worker to their user.

        Raises:
            RunedError: The daemon cannot be started, or it cannot get its engine or model, or it has another engine or model
                than the first node. The message names the node.
        """
        with _named_errors():
            settings = self._settings_to_give()
            self._start_apart(settings)
            with runed.connect(home=self.home, timeout=self.timeout, on_progress=_Announcer().hear) as client:
                try:
                    info = client.wait_until_ready(model=self.model)
                except RunedError as error:
                    raise self._with_origin(error, settings) from None
            self._keep(settings)
        if isinstance(self.expected, Fingerprint):
            self.expected.check(info)
        return info

    def connect(self) -> runed.Client:
        """Connect to the daemon. Start it if none runs."""
        with _named_errors():
            return runed.connect(home=self.home, timeout=self.timeout)

    def fingerprint(self, dimensions: int | None = None) -> Fingerprint:
        """Return the fingerprint of the vectors of this node, for all others.

        Args:
            dimensions: The number of values of the vectors; None means all.

        Raises:
            RunedError: As for `prepare`; or the model has no vectors with this number of values.
        """
        info = self.prepare()
        found = info.fingerprint
        if dimensions not in {None, info.vector_dim}:
            with self.connect() as client:  # a vector alone tells the name of its space
                (vector,) = client.embed_items(["fingerprint"], dimensions=dimensions, model=self.model)
            if isinstance(vector, RunedError):
                raise vector
            found = vector.fingerprint
        return Fingerprint(
            found,
            node=name(),
            native=info.fingerprint,
            engine=_engine_of(info),
            version=info.engine_version,
            model=_model_of(info),
            variant=info.model_variant if self.model is None else "",
        )

    def _settings_to_give(self) -> dict[str, str]:
        """Return the settings of the first node that those of this node leave open."""
        for variable in [variable for variable, value in _given.items() if os.environ.get(variable) == value]:
            del os.environ[variable]  # those of an earlier job; a worker of Spark serves many
        _given.clear()
        if not isinstance(self.expected, Fingerprint):
            return {}
        own, settings = load_settings(home=self.home), self.expected.settings
        if own.engine != "auto":
            settings.pop("RUNED_ENGINE", None)
        if own.model or own.backend or own.default_model or own.model_variant:
            settings.pop("RUNED_MODEL_VARIANT", None)
        return settings

    @staticmethod
    def _with_origin(error: RunedError, settings: Mapping[str, str]) -> RunedError:
        """Tell where a setting comes from that an error names, such as an engine that this node lacks."""
        named = [f"{variable}={value}" for variable, value in settings.items() if variable in error.message]
        origin = f"; the job sets {' and '.join(named)}, as on the node that was asked first" if named else ""
        return error.retold(error.message + origin)

    def _keep(self, settings: Mapping[str, str]) -> None:
        """Keep the settings that the daemon was started with for its next start, if a client of this process starts it again.

        A daemon that was started without them is left alone: it has the right engine, or `prepare` tells that it has not.
        """
        wanted = load_settings(home=self.home, environ=os.environ | settings)
        record = DaemonRecord.read(Paths(wanted.home).daemon_record)
        if record is not None and record.settings is not None and not differences(wanted, record.settings):
            os.environ.update(settings)
            _given.update(settings)

    def _start_apart(self, settings: Mapping[str, str]) -> None:
        """Start the daemon by a command if none runs.

        Ray kills the children of a worker that ends, and with it would kill the daemon that all workers of the node use. A
        daemon that a command has started is no child of the worker.
        """
        try:
            runed.connect(home=self.home, spawn=False).close()
        except DaemonUnavailableError:
            command = [sys.executable, "-P", "-m", "runed", "ensure"]
            environment = os.environ | settings | ({"RUNED_HOME": os.fspath(self.home)} if self.home else {})
            # If no daemon can be started, the connect that follows tells why.
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    command,
                    env=environment,
                    stdin=_NULL,
                    stdout=_NULL,
                    stderr=_NULL,
                    check=False,
                    timeout=_START_SECONDS,
                )


def _engine_of(info: Info) -> str:
    """Return the engine of a daemon, as `RUNED_ENGINE` names it, or what else it computes with."""
    return ONNX if info.engine_version.startswith(ONNX_VERSIONS) else info.accelerator


def _model_of(info: Info) -> str:
    return f"{info.model or info.model_name} ({info.model_identity})"


def name() -> str:
    """Return the name of this node."""
    return socket.gethostname()


@contextmanager
def _named_errors() -> Iterator[None]:
    """Name the node in an error, since a cluster has many, and tell what a worker may lack."""
    try:
        yield
    except RunedError as error:
        message = f"node {name()}: {error.message}"
        if isinstance(error, ForeignPathError):
            message += "; if workers have no home, set RUNED_HOME for them, or give `home`: a folder on a disk of the node"
        raise error.retold(message) from None


class _Announcer:
    """Logs what a start waits for, at each new step and now and then."""

    def __init__(self) -> None:
        self._step: object = None
        self._said = float("-inf")

    def hear(self, health: Health) -> None:
        step = (health.status, health.phase)
        if step == self._step and time.monotonic() - self._said < _SAY_SECONDS:
            return
        self._step, self._said = step, time.monotonic()
        amount = f" ({health.bytes_done / 1e6:,.0f} of {health.bytes_total / 1e6:,.0f} MB)" if health.bytes_total else ""
        _log.warning("runed on node %s: %s%s", name(), health.message or "waiting for the model", amount)
