"""Parts that all measurements of one model share: a daemon, raw servers, a process that makes load, and unused texts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

import runed
from benchmarks.load import LoadProcess, Target, closed_loop
from benchmarks.models import Effort, Model
from benchmarks.raw import RawServer
from runed.processes import resident_bytes
from tests.support import RunningDaemon, short_home
from tools.engine import programs_folder

CLIENTS = 16
"""Concurrent clients of a busy machine."""

_LOOP_TEXTS = 1_000_000
"""Texts reserved for one closed loop. No loop sends that many."""


class Daemon:
    """A daemon of the benchmark's own, ready to embed; a context manager.

    Args:
        model: The model that it serves.
        others: Further models, by their names, as entries of config.json.
        **settings: Further settings, as in `RUNED_CACHE_SIZE="0"`.
    """

    def __init__(self, model: Model, *, others: Mapping[str, Mapping[str, str]] | None = None, **settings: str) -> None:
        self._home = short_home()
        if others:
            (self._home / "config.json").write_text(json.dumps({"version": 1, "models": others}))
        environment = {
            "RUNED_LLAMA_SERVER": str(programs_folder() / "llama-server"),
            "RUNED_MODEL": str(model.file),
            "RUNED_ENGINE": model.engine,
            "RUNED_IDLE_TIMEOUT": "0",
        }
        self._environment = environment | settings
        self.running = RunningDaemon(self._home, self._environment)

    @property
    def target(self) -> Target:
        """The daemon as a target of load."""
        return Target("runed", self.running.socket, raw=False)

    @property
    def engine_pid(self) -> int:
        """The process id of its engine."""
        return int(self.running.wait_for("STATUS_OK", timeout=120)["enginePid"])

    @property
    def argv(self) -> list[str]:
        """The command line of its engine."""
        return _argv(self.engine_pid)

    @property
    def resident_bytes(self) -> int:
        """The resident memory of the daemon and its engine together, in bytes."""
        return resident_bytes(self.running.process.pid) + resident_bytes(self.engine_pid)

    def connect(self) -> runed.Client:
        """Return a new client, which the caller closes."""
        return runed.connect(socket_path=self.running.socket)

    @contextmanager
    def as_home(self) -> Iterator[None]:
        """Let this process and its children use the home and the settings of this daemon for a block, as a user would."""
        changes = {
            "RUNED_HOME": str(self._home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        } | self._environment
        before = {name: os.environ.get(name) for name in changes}
        os.environ |= changes
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def texts_taken(self) -> int:
        """Return the number of texts that the engine was sent so far."""
        with self.connect() as client:
            health = client.health()
        return health.interactive.total_texts + health.bulk.total_texts

    def argv_of(self, name: str) -> list[str]:
        """Start the engine of a model, and return its command line."""
        with self.connect() as client:
            client.warm_up(model=name)
            return _argv(client.health(model=name).engine_pid)

    def engine_starts(self) -> int:
        """Return how often an engine was started so far."""
        return int(self._samples({})["runed_engine_starts_total"])

    def bulk_batches(self) -> tuple[float, float]:
        """Return the seconds that the engine has spent on micro-batches of bulk texts so far, and the number of these."""
        samples = self._samples({"lane": "bulk"})
        return samples["runed_batch_seconds_sum"], samples["runed_batch_seconds_count"]

    def _samples(self, labels: Mapping[str, str]) -> dict[str, float]:
        """Return the metrics with these labels."""
        with self.running.http() as http:
            families = text_string_to_metric_families(http.get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples if sample.labels == labels}

    def __enter__(self) -> Self:
        try:
            self.running.wait_for("STATUS_OK", timeout=120)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.running.stop()
        finally:
            self.running.remove_home()


def _argv(pid: int) -> list[str]:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


class Lab:
    """The parts that the measurements of one model share.

    Args:
        model: The model.
        effort: The amount of work: the model's own, or less.
        daemon: A daemon with default settings that serves the model.
        raw_argv: The command line of a daemon's `llama-server` for the model.
        load: The process that makes load.
        folder: The folder for sockets.

    Attributes:
        peers: A Python with the libraries that runed is measured against, or None.
    """

    def __init__(
        self, model: Model, effort: Effort, daemon: Daemon, *, raw_argv: Sequence[str], load: LoadProcess, folder: Path
    ) -> None:
        self.model = model
        self.effort = effort
        self.daemon = daemon
        self.load = load
        self._folder = folder
        self.peers: Path | None = None
        self._argv = daemon.argv
        self._raw_argv = raw_argv
        self._next = 0
        self._best_slots: int | None = None

    @property
    def argv(self) -> Sequence[str]:
        """The command line of the daemon's engine."""
        return self._argv

    @property
    def raw_argv(self) -> Sequence[str]:
        """The command line of a daemon's `llama-server` for the model."""
        return self._raw_argv

    def fresh(self, texts: int = _LOOP_TEXTS) -> int:
        """Reserve `texts` unused texts, and return the number of the first one."""
        first = self._next
        self._next += texts
        return first

    def fresh_texts(self, texts: int) -> list[str]:
        """Return `texts` unused texts."""
        first = self.fresh(texts)
        return [self.model.text(number) for number in range(first, first + texts)]

    def raw_reranker(self, argv: Sequence[str]) -> RawServer:
        """Return a raw server of a reranker that is not started yet, with the command line of the daemon's one."""
        return RawServer(argv, self._folder / "rerank.sock")

    def raw_server(self, slots: int | None = None, pass_tokens: int | None = None) -> RawServer:
        """Return a raw server that is not started yet; by default with the slots and passes of a daemon's `llama-server`."""
        return RawServer(self._raw_argv, self._folder / f"raw{slots or ''}.sock", slots=slots, pass_tokens=pass_tokens)

    @contextmanager
    def raw(self, slots: int, pass_tokens: int | None = None) -> Iterator[Target]:
        """Run a raw server with `slots` slots, and passes of `pass_tokens` tokens."""
        with self.raw_server(slots, pass_tokens) as server:
            yield Target(f"raw, {slots} slot{'s' * (slots > 1)}", server.socket, raw=True)

    def best_slots(self) -> int:
        """Return the slot count with which a raw server is fastest for `CLIENTS` clients of single texts; tried once."""
        if self._best_slots is None:
            rates: dict[int, float] = {}
            for slots in self.effort.slot_counts:
                with self.raw(slots) as target:
                    seconds = self.effort.trial_seconds
                    sample = self.load.run(closed_loop, target, self.model, self.fresh(), clients=CLIENTS, seconds=seconds)
                say(f"  trial: {target.name}: {sample.rate:.1f} texts/s")
                rates[slots] = sample.rate
            self._best_slots = max(rates, key=rates.__getitem__)
        return self._best_slots


@contextmanager
def lab(model: Model, effort: Effort) -> Iterator[Lab]:
    """Set up a lab for one model."""
    folder = short_home()
    try:
        with LoadProcess() as load, Daemon(model) as daemon:
            yield Lab(model, effort, daemon, raw_argv=_raw_argv(model, daemon), load=load, folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _raw_argv(model: Model, daemon: Daemon) -> list[str]:
    """Return the command line of a daemon's `llama-server` for a model."""
    if model.engine == "cpu":
        return daemon.argv
    with Daemon(replace(model, engine="cpu")) as other:
        return other.argv


def say(line: str) -> None:
    """Tell the user on the terminal which step is running."""
    print(line, flush=True)
