"""Clusters of real parts on this machine: two nodes of Ray, two executors of Spark, and a server of S3.

These tests run in a lane of their own, `make test-cluster`, since they need Java and 1.1 GB of packages.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from tests.cli.support import Cli
from tests.support import LLAMA_SERVER_ALONE, clean_environment, short_home, wait_until

SECONDS = 600
"""Most seconds of a test. The first job of a cluster starts a dozen processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder on their lane. The packages have warnings of their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.timeout(SECONDS))


@dataclass(frozen=True)
class Home:
    """The home of a node, and what tests do to the processes in it."""

    path: Path

    def daemon(self) -> psutil.Process | None:
        """Return the daemon, if one runs."""
        record = DaemonRecord.read(Paths(self.path).daemon_record)
        with contextlib.suppress(psutil.NoSuchProcess):
            if record is not None and (process := psutil.Process(record.pid)).status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def awaited_daemon(self) -> psutil.Process:
        """Wait until a daemon runs, and return it."""
        daemon = wait_until(self.daemon, timeout=SECONDS, what="a daemon")
        assert daemon is not None
        return daemon

    def engine(self) -> psutil.Process | None:
        """Return the engine, if one runs."""
        daemon = self.daemon()
        return next(iter(daemon.children()), None) if daemon else None

    def daemons(self) -> list[int]:
        """Return the pids of all daemons that were ever started in this home and still run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "serve" in process.cmdline() and process.environ().get("RUNED_HOME") == str(self.path):
                    found.append(process.pid)
        return found


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def homes(count: int) -> Iterator[list[Home]]:
    """Make homes, and stop their daemons at the end."""
    made = [Home(short_home()) for _ in range(count)]
    try:
        yield made
    finally:
        for home in made:
            Cli(home.path).stop()
            shutil.rmtree(home.path)


@pytest.fixture(scope="session")
def settings(llama_server: Path, minilm: Path) -> dict[str, str]:
    """The settings of the daemons of most nodes."""
    own = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm), "RUNED_IDLE_TIMEOUT": "0"}
    return own | LLAMA_SERVER_ALONE


BOTH_NODES = 3
"""Actors of one processor, of which each of two nodes has some, however Ray places them."""

_TRIES = 5
"""Most tries to start a cluster of Ray on a busy machine."""


class RayCluster:
    """Ray with nodes of two processors, each with a home and settings of its own."""

    def __init__(self, homes_: list[Home], settings: Sequence[dict[str, str]]) -> None:
        self.homes = homes_
        self._settings = settings
        # A node ends itself if its agents do not tell their ports within 15 s, which Ray lets nobody change.
        for remaining in reversed(range(_TRIES)):
            self._cluster: Any = importlib.import_module("ray.cluster_utils").Cluster()
            try:
                self.nodes = [self.add(number) for number in range(len(homes_))]
                break
            except Exception:  # Ray raises this very class
                self._cluster.shutdown()
                if not remaining:
                    raise

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, number: int) -> Any:
        """Start a node with the home of that number."""
        environment = self._settings[number] | {"RUNED_HOME": str(self.homes[number].path)}
        node = self._cluster.add_node(
            wait=False,
            num_cpus=2,
            resources={f"home{number}": 1},
            env_vars=environment,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
        )
        self._cluster.wait_for_nodes(timeout=SECONDS)
        return node

    def kill(self, number: int) -> psutil.Process:
        """Kill a node, and all that ran on it. Return its daemon."""
        daemon = self.homes[number].awaited_daemon()
        own = [
            psutil.Process(info.process.pid) for infos in self.nodes[number].all_processes.values() for info in infos
        ]  # its raylet, and the agents
        # A worker that outlives its raylet ends in good order, and tells the driver an error that fails the job. On a host that
        # is gone, none does.
        _kill([*(child for process in own for child in process.children(recursive=True)), *own])
        self._cluster.remove_node(self.nodes[number], allow_graceful=False)
        _kill([*daemon.children(recursive=True), daemon])
        return daemon

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def shared_cluster(settings: dict[str, str]) -> Iterator[RayCluster]:
    """One cluster for the tests of a module, since a process is connected to one at a time."""
    with ray_cluster([settings, settings]) as cluster:
        yield cluster


@contextlib.contextmanager
def ray_cluster(settings: Sequence[dict[str, str]]) -> Iterator[RayCluster]:
    """Run Ray with a node for each of some settings, and connect this process to it."""
    ray: Any = importlib.import_module("ray")
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        del os.environ[name]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would send them to its makers
    # On a busy machine, workers of Ray's own niceness would hardly run.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 # Ray's spelling
    os.environ["RAY_agent_register_timeout_ms"] = str(1000 * SECONDS)  # noqa: SIM112 # as above
    with homes(len(settings)) as made:
        cluster = RayCluster(made, settings)
        try:
            ray.init(address=cluster.address, logging_level="ERROR")
            importlib.import_module("ray.data").DataContext.get_current().enable_progress_bars = False
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def ray_actors() -> list[psutil.Process]:
    """Return the processes of actors that embed."""
    return [process for process in psutil.process_iter(["cmdline"]) if "MapWorker(" in " ".join(process.info["cmdline"] or [])]


def read_dataset(dataset: Any) -> pa.Table:
    """Return a dataset as one table, ordered by "id"."""
    ray = importlib.import_module("ray")
    return pa.concat_tables(ray.get(dataset.to_arrow_refs())).sort_by("id")


def vectors_of(table: pa.Table, column: str = "embedding") -> np.ndarray[Any, Any]:
    """Return the vectors of a table, shape (rows, dim)."""
    vectors: np.ndarray[Any, Any] = np.stack(table[column].combine_chunks().to_numpy(zero_copy_only=False))
    return vectors


class SparkCluster:
    """Spark with a master and a worker for each of some settings, each with a home of its own, as on hosts of their own."""

    def __init__(self, homes_: list[Home], settings: Sequence[dict[str, str]], folder: Path) -> None:
        self.homes = homes_
        self.url = f"spark://127.0.0.1:{free_port()}"
        self._folder = folder
        host = ("--host", "127.0.0.1", "--webui-port", "0")
        self._master = self._start("master.Master", *host, "--port", self.url.rpartition(":")[2], RUNED_HOME="")
        wait_until(self._listens, timeout=SECONDS, what="Spark's master")
        options = ("--cores", "1", "--memory", "1g", "--work-dir", str(folder), self.url)
        self.workers = [
            self._start("worker.Worker", *host, *options, RUNED_HOME=str(home.path), **own)
            for home, own in zip(homes_, settings, strict=True)
        ]

    def kill(self, number: int) -> psutil.Process:
        """Kill a worker, its executors, and all that runs on that host. Return its daemon."""
        worker, daemon = self.workers[number], self.homes[number].awaited_daemon()
        _kill([worker, *worker.children(recursive=True), *daemon.children(recursive=True), daemon])
        return daemon

    def python_worker(self) -> psutil.Process | None:
        """Return a Python process of an executor of the first host."""
        found = [process for process in self.workers[0].children(recursive=True) if "pyspark.daemon" in command_of(process)]
        return found[-1] if found else None

    def shutdown(self) -> None:
        for process in [*self.workers, self._master]:
            with contextlib.suppress(psutil.NoSuchProcess):
                _kill([process, *process.children(recursive=True)])

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.url.rpartition(":")[2]))) == 0

    def _start(self, what: str, *arguments: str, **settings: str) -> psutil.Process:
        program = Path(importlib.import_module("pyspark").__path__[0]) / "bin" / "spark-class"
        own = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m", "PYSPARK_PYTHON": sys.executable}
        with (self._folder / f"{what}.log").open("ab") as log:
            return psutil.Popen(
                [program, f"org.apache.spark.deploy.{what}", *arguments],
                env=clean_environment(**own, **settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process; "" if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


@contextlib.contextmanager
def spark_cluster(settings: Sequence[dict[str, str]], folder: Path) -> Iterator[SparkCluster]:
    """Run Spark with a worker for each of some settings."""
    with homes(len(settings)) as made:
        cluster = SparkCluster(made, settings, folder)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def spark_session(master: str, **options: str) -> Iterator[Any]:
    """Connect this process to Spark. It must not be connected yet."""
    sql: Any = importlib.import_module("pyspark.sql")
    assert sql.SparkSession.getActiveSession() is None
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder = sql.SparkSession.builder.master(master).appName("runed tests")
    defaults = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "4",
        "spark.task.maxFailures": "1",
    }
    for name, value in {**defaults, **options}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
        # The next session would have the options of this one, which the JVM keeps as properties of the system.
        context: Any = importlib.import_module("pyspark").SparkContext
        context._gateway.shutdown()
        context._gateway.proc.stdin.close()
        context._gateway.proc.wait(60)
        context._gateway = context._jvm = None


@pytest.fixture(scope="module")
def spark(settings: dict[str, str]) -> Iterator[tuple[Any, Home]]:
    """Spark with two executors, each a process with one processor, which share a home as on one host; and that home."""
    with homes(1) as (home,):
        environment = {
            f"spark.executorEnv.{name}": value for name, value in (settings | {"RUNED_HOME": str(home.path)}).items()
        }
        with spark_session("local-cluster[2,1,1024]", **environment) as session:
            yield session, home


def agree(rows: list[Any], expected: np.ndarray[Any, Any]) -> bool:
    """Return whether the vectors of rows, in the order of their ids, are the expected ones."""
    vectors = np.array([row["embedding"] for row in sorted(rows, key=lambda row: int(row["id"]))], dtype=np.float32)
    return bool((np.sum(vectors * expected, axis=1) >= 0.9999).all())
