"""Clusters of real parts on this machine: two nodes of Ray, two executors of Spark, and a server of S3.

These tests run in a lane of their own, `make test-cluster`, since they need Java and 1.1 GB of packages.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from runed.lifecycle.record import DaemonRecord
from runed.paths import Paths
from tests.cli.support import Cli
from tests.support import LLAMA_SERVER_ALONE, short_home

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
    """The settings of the daemons of all nodes."""
    own = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm), "RUNED_IDLE_TIMEOUT": "0"}
    # Each node would measure for itself whether ONNX Runtime is faster. Both could choose otherwise, and a job would fail.
    return own | LLAMA_SERVER_ALONE


class RayCluster:
    """Ray with two nodes of two processors, each with a home of its own."""

    def __init__(self, homes_: list[Home], settings: dict[str, str]) -> None:
        self.homes = homes_
        self._settings = settings
        self._cluster: Any = importlib.import_module("ray.cluster_utils").Cluster()
        self.nodes = [self.add(number) for number in range(len(homes_))]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, number: int) -> Any:
        """Start a node with the home of that number."""
        environment = self._settings | {"RUNED_HOME": str(self.homes[number].path)}
        return self._cluster.add_node(
            num_cpus=2,
            resources={f"home{number}": 1},
            env_vars=environment,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
        )

    def kill(self, number: int) -> None:
        """Kill a node, and all that ran on it."""
        self._cluster.remove_node(self.nodes[number], allow_graceful=False)
        if daemon := self.homes[number].daemon():
            for process in [*daemon.children(recursive=True), daemon]:
                process.kill()

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def ray_cluster(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A cluster of a test's own, and a driver that is connected to it."""
    with _ray_cluster(settings) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_cluster(settings: dict[str, str]) -> Iterator[RayCluster]:
    """One cluster for the tests of a module that kill nothing."""
    with _ray_cluster(settings) as cluster:
        yield cluster


@contextlib.contextmanager
def _ray_cluster(settings: dict[str, str]) -> Iterator[RayCluster]:
    ray: Any = importlib.import_module("ray")
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        del os.environ[name]
    # On a busy machine, workers of Ray's own niceness would hardly run.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 # Ray's spelling
    with homes(2) as made:
        cluster = RayCluster(made, settings)
        try:
            ray.init(address=cluster.address, logging_level="ERROR")
            importlib.import_module("ray.data").DataContext.get_current().enable_progress_bars = False
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextlib.contextmanager
def spark_session(home: Home, settings: dict[str, str], **options: str) -> Iterator[Any]:
    """Run Spark with two executors, each a process with one processor, which share a home as on one host."""
    sql: Any = importlib.import_module("pyspark.sql")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    builder = sql.SparkSession.builder.master("local-cluster[2,1,1024]").appName("runed tests")
    defaults = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "4",
        "spark.task.maxFailures": "1",
        **{f"spark.executorEnv.{name}": value for name, value in settings.items()},
        "spark.executorEnv.RUNED_HOME": str(home.path),
    }
    for name, value in {**defaults, **options}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()


@pytest.fixture(scope="module")
def spark(settings: dict[str, str]) -> Iterator[tuple[Any, Home]]:
    """A Spark session, and the home of its executors."""
    with homes(1) as (home,), spark_session(home, settings) as session:
        yield session, home
