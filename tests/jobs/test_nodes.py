"""The daemon of a node: the first worker starts it, no worker owns it, and an error names the node."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

import runed
import runed.ray
import runed.spark
from runed.bootstrap.engine_comparison import keep_comparison, read_comparison
from runed.errors import LifecycleError, RunedError, SettingsError
from runed.jobs import nodes
from runed.jobs.columns import Columns
from runed.jobs.partition import PartitionJob
from runed.paths import Paths
from tests.cli.support import Cli
from tests.support import clean_environment, short_home, wait_until
from tests.users import needs_root
from tools import docroot


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Take settings of a job out of the environment, which a worker keeps to its end."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    nodes._given.clear()


@pytest.fixture
def other_home() -> Iterator[Path]:
    """The home of a second node, whose daemon is stopped at the end."""
    path = short_home()
    yield path
    Cli(path).stop()
    shutil.rmtree(path)


@pytest.fixture
def first_home(home: Path, llama_server: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of the node that is asked first, for a model that both engines serve. Its daemon is stopped at the end."""
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNED_LLAMA_SERVER", str(llama_server))
    monkeypatch.setenv("RUNED_MODEL", str(minilm))
    yield home
    Cli(home).stop()


@pytest.fixture
def node(home: Path, llama_server: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.Node]:
    for name in [name for name in os.environ if name.startswith("RUNED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNED_LLAMA_SERVER", str(llama_server))
    monkeypatch.setenv("RUNED_MODEL", str(tiny_qwen3))
    yield nodes.Node(home=home)
    Cli(home).stop()


def test_workers_that_come_at_once_share_a_daemon_that_none_of_them_owns(node: nodes.Node, home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda _: node.prepare(), range(4)))
    assert len({info.fingerprint for info in infos}) == 1
    assert infos[0].vector_dim == 64
    daemon = Cli(home).daemon()
    assert daemon is not None
    assert daemon.pid not in {child.pid for child in psutil.Process().children()}
    with pickle.loads(pickle.dumps(node)).connect() as client:
        assert client.health().pid == daemon.pid


def test_daemon_outlives_a_worker_whose_children_are_killed(node: nodes.Node, home: Path) -> None:
    """As Ray does at the end of a worker."""
    program = textwrap.dedent(
        """
        import os, psutil, sys
        from runed.jobs.nodes import Node
        Node(home=sys.argv[1]).prepare()
        for child in psutil.Process().children():
            child.kill()
        os._exit(0)
        """
    )
    environment = clean_environment(**{name: value for name, value in os.environ.items() if name.startswith("RUNED_")})
    assert subprocess.run([sys.executable, "-c", program, str(home)], env=environment, check=False).returncode == 0
    with runed.connect(home=home, spawn=False) as client:
        assert client.embed("green tea").shape == (64,)


@pytest.mark.parametrize("engine", ["cpu", "onnx"])
def test_other_nodes_take_the_engine_of_the_first(
    first_home: Path, other_home: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNED_ENGINE", engine)
    first = pickle.loads(pickle.dumps(nodes.Node(home=first_home).fingerprint()))
    assert (first.engine, first.node) == (engine, socket.gethostname())
    monkeypatch.delenv("RUNED_ENGINE")
    node = nodes.Node(home=other_home, expected=first)
    assert node.prepare().fingerprint == first
    with node.connect() as client:
        wait_until(Cli(other_home).daemon)
        psutil.Process(client.health().pid).kill()
        assert client.embed_items(["green tea"])[0].fingerprint == first  # type: ignore[union-attr] # no error
    assert os.environ["RUNED_ENGINE"] == engine
    assert nodes.Node(home=other_home).prepare().fingerprint == first
    assert "RUNED_ENGINE" not in os.environ  # it was that of the job alone


@pytest.mark.slow
def test_nodes_that_would_choose_differently_take_one_engine(first_home: Path, other_home: Path, minilm: Path) -> None:
    sha256 = hashlib.sha256(minilm.read_bytes()).hexdigest()
    for home, is_faster in ((first_home, True), (other_home, False)):
        nodes.Node(home=home).prepare()
        Cli(home).stop()
        path = Paths(home).engine_comparisons
        comparison = read_comparison(path, sha256)
        assert comparison is not None
        keep_comparison(path, msgspec.structs.replace(comparison, is_faster=is_faster, objection=""))
    first = nodes.Node(home=first_home).fingerprint()
    assert first.engine == "onnx"
    assert nodes.Node(home=other_home).prepare().fingerprint != first
    Cli(other_home).stop()
    assert nodes.Node(home=other_home, expected=first).prepare().fingerprint == first


def test_daemon_with_another_engine_is_refused(first_home: Path, other_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNED_ENGINE", "cpu")
    first = nodes.Node(home=first_home).fingerprint()
    node = nodes.Node(home=other_home, expected=first)
    monkeypatch.setenv("RUNED_ENGINE", "onnx")
    message = (
        rf"node {socket.gethostname()} and node {socket.gethostname()}, which was asked first, have different engines: "
        r"onnx \(onnxruntime-.*\) and cpu \(.*\)\. Their vectors cannot be compared; set RUNED_ENGINE=cpu on all nodes, and "
        r"end daemons that have others with `runed stop`"
    )
    with pytest.raises(RunedError, match=message):
        node.prepare()
    monkeypatch.delenv("RUNED_ENGINE")  # the daemon still runs
    with pytest.raises(RunedError, match=message):
        node.prepare()
    assert "RUNED_ENGINE" not in os.environ


def test_other_nodes_take_the_variant_of_the_first(
    node: nodes.Node, other_home: Path, tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_qwen3.read_bytes()
    models = {}
    for name, content in {"tiny.one": data, "tiny.two": data + b"other"}.items():
        (tmp_path / name).write_bytes(content)
        models[name] = {"url": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    engine = {"url": "none", "sha256": "0" * 64, "size": 1, "extract": "tar.gz", "exec": "llama-server"}
    manifest = {"version": 1, "platforms": {docroot.PLATFORM: {"llama_server": engine}}, "models": models}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"default_model": "tiny.one"}))
    monkeypatch.delenv("RUNED_MODEL")
    monkeypatch.setenv("RUNED_MANIFEST", str(tmp_path / "manifest.json"))
    monkeypatch.setenv("RUNED_MODEL_VARIANT", "tiny.two")
    first = node.fingerprint()
    monkeypatch.delenv("RUNED_MODEL_VARIANT")
    assert nodes.Node(home=other_home, expected=first).prepare().model_variant == "tiny.two"
    Cli(other_home).stop()
    monkeypatch.setenv("RUNED_MODEL_VARIANT", "tiny.one")
    with pytest.raises(RunedError, match=r"different models or prompts: tiny\.one .* and tiny\.two "):
        nodes.Node(home=other_home, expected=first).prepare()


def test_node_that_cannot_have_the_engine_of_the_first_tells_where_it_comes_from(
    first_home: Path, other_home: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNED_ENGINE", "onnx")
    first = nodes.Node(home=first_home).fingerprint()
    monkeypatch.delenv("RUNED_ENGINE")
    monkeypatch.setenv("RUNED_MODEL", str(tiny_qwen3))  # no graph can be built of it
    message = r"node .*RUNED_ENGINE=onnx: .*; the job sets RUNED_ENGINE=onnx, as on the node that was asked first"
    with pytest.raises(RunedError, match=message):
        nodes.Node(home=other_home, expected=first).prepare()


def test_another_model_or_version_is_told(node: nodes.Node) -> None:
    first = node.fingerprint()
    facts = first.facts | {"native": "another", "node": "first"}
    with pytest.raises(
        RunedError, match=r"and node first, .* different models or prompts: tiny-qwen3.* and another \(sha256:0\)\."
    ):
        nodes.Node(home=node.home, expected=nodes.Fingerprint("another", **facts | {"model": "another (sha256:0)"})).prepare()
    with pytest.raises(RunedError, match=r"different versions of the engine: .* and 1 \(abc\)\. .*install the same one"):
        nodes.Node(home=node.home, expected=nodes.Fingerprint("another", **facts | {"version": "1 (abc)"})).prepare()


async def test_shorter_vectors_have_a_fingerprint_of_their_own(node: nodes.Node, tmp_path: Path) -> None:
    expected = node.fingerprint(32)
    assert expected != expected.native == node.fingerprint()
    texts = pa.table({"text": ["green tea", "night train"]})
    embed = runed.ray.Embed(dimensions=32, home=node.home, fingerprint=expected)
    table = await embed(texts)
    assert table["embedding"].type == pa.list_(pa.float32(), 32)
    wrong = runed.ray.Embed(dimensions=48, home=node.home, fingerprint=expected)
    with pytest.raises(RunedError, match=r'instead of "fp1-.*RUNED_ENGINE'):
        await wrong(texts)
    for actor in (embed, wrong):
        await (await actor._connected()).close()
    worker = runed.spark._Worker(Columns(), {"dimensions": 32, "model": None}, nodes.Node(home=node.home, expected=expected))
    (batch,) = worker.batches(iter(texts.to_batches()))
    assert batch.column(1).to_pylist() == table["embedding"].to_pylist()
    (tmp_path / "in").mkdir()
    pa_parquet.write_table(texts, tmp_path / "in" / "a.parquet")
    job = PartitionJob(str(tmp_path / "in"), str(tmp_path / "out"), {"dimensions": 32, "home": str(node.home)})
    (part,) = job.begin()
    assert job.run_on_node(part, expected).fingerprint == expected


def test_missing_home_is_told_with_the_node_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LifecycleError) as raised:
        nodes.Node(home="/proc/nowhere").prepare()
    assert raised.value.message.startswith(f"node {socket.gethostname()}: ")
    assert "/proc/nowhere" in raised.value.message
    assert "set RUNED_HOME for them, or give `home`: a folder on a disk of the node" in raised.value.message
    monkeypatch.setenv("RUNED_IDLE_TIMEOUT", "soon")
    with pytest.raises(SettingsError, match=r"node .*RUNED_IDLE_TIMEOUT.*for never$"):
        nodes.Node().prepare()


@needs_root
def test_user_without_a_home_is_told(tmp_path: Path) -> None:
    """As a worker in a container whose user has no entry in the user database."""
    # The other user may not read this user's packages, so all of them are imported before.
    program = "import os, runed.client.client; from runed.jobs.nodes import Node; os.setuid(54321); Node().prepare()"
    environment = {name: value for name, value in clean_environment().items() if name != "HOME"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    told = f"node {socket.gethostname()}: ~/.runed: no home directory is known for ~; set HOME, or RUNED_HOME to a full path"
    assert done.stderr.splitlines()[-1].endswith(told)


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="only Linux has mount namespaces")
def test_node_without_disk_is_told(home: Path) -> None:
    program = "import sys; from runed.jobs.nodes import Node; Node(home=sys.argv[1]).prepare()"
    script = f'mount -t tmpfs -o mode=700,size=64k none {home}; head -c 1000000 /dev/zero > {home}/fill; exec "$0" "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, sys.executable, "-c", program, str(home)]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, timeout=100, check=False)
    told = f"node {socket.gethostname()}: the daemon cannot be started: "
    assert told in done.stderr.splitlines()[-1]
    assert f"No space left on device: the file system at {home} is full" in done.stderr.splitlines()[-1]


def test_model_that_cannot_be_fetched_ends_the_wait(
    home: Path, llama_server: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a node without a network."""
    monkeypatch.setenv("RUNED_LLAMA_SERVER", str(llama_server))
    monkeypatch.delenv("RUNED_MODEL", raising=False)
    monkeypatch.setenv("RUNED_MANIFEST", "http://127.0.0.1:9/manifest.json")
    with pytest.raises(RunedError, match=r"node .*127\.0\.0\.1:9"):
        nodes.Node(home=home, timeout=60).prepare()
    Cli(home).stop()


def test_unknown_model_is_told(node: nodes.Node) -> None:
    with pytest.raises(RunedError, match=r"node .*'nosuchmodel'"):
        nodes.Node(home=node.home, model="nosuchmodel").prepare()
