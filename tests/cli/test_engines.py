"""The commands show the engine of a model and why it is that one, compare both, and take ONNX files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runed.backends.onnx import availability
from runed.backends.onnx.graph_folder import graph_folder
from runed.bootstrap import EngineComparison, Installation, keep_comparison, read_comparison
from runed.daemon.choosing import builds_of
from runed.domain.model_spec import ModelSpec
from runed.settings import Settings
from tests.cli.support import Cli
from tests.cli.test_models import config, ran, refused
from tests.onnx_files import write_own_model

VERSION = availability.engine_version()
AT = "2026-11-29T01:00:00+00:00"


@pytest.fixture
def mini(home: Path, llama_server: Path, minilm: Path) -> Iterator[Cli]:
    """A home that serves MiniLM with the engine that is the faster one."""
    cli = Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm)})
    yield cli
    cli.stop()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An ONNX file of the user's own."""
    return write_own_model(tmp_path / "own", pooling="mean")


@pytest.fixture
def empty(home: Path) -> Iterator[Cli]:
    """A home without any llama-server. There is no way to get one from here."""
    cli = Cli(home)
    yield cli
    cli.stop()


def compared(cli: Cli, minilm: Path, **facts: object) -> EngineComparison:
    """Write the result of a comparison into a home, as of its own engines."""
    settings = Settings(home=cli.home)
    own = Path(cli.environment["RUNED_LLAMA_SERVER"])
    build = f"{own} {own.stat().st_size} {own.stat().st_mtime_ns}"
    sha256 = hashlib.sha256(minilm.read_bytes()).hexdigest()
    installation = Installation(own, minilm, "", sha256, "", (), ModelSpec(family="x"), engine_build=build)
    usual = {"is_faster": True, "llama_server_rate": 302.4, "onnx_rate": 612.0, "cosine": 0.99999, "compared_at": AT}
    builds = msgspec.to_builtins(builds_of(settings, installation))
    result = msgspec.convert({"model": sha256, "builds": builds} | usual | facts, EngineComparison)
    keep_comparison(cli.paths.engine_comparisons, result)
    return result


def lines_of(text: str) -> dict[str, str]:
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in text.splitlines()}


def test_status_tells_the_engine_and_why(mini: Cli, minilm: Path) -> None:
    compared(mini, minilm)
    assert mini.run("ensure", "--wait", timeout=120).returncode == 0
    status = lines_of(ran(mini, "status"))
    reason = f"the faster one: 612 texts/s, and llama-server 302, as measured at {AT} (`runed bench --reset` undoes that)"
    assert status["engine"].startswith(f"ONNX Runtime {VERSION.removeprefix('onnxruntime-')}, {reason}, profile balanced, pid ")
    assert status["device"].startswith("the processors; ")
    assert json.loads(ran(mini, "status", "--json"))["engine_reason"] == reason


def test_status_tells_how_much_quantized_vectors_differ(mini: Cli, minilm: Path) -> None:
    compared(mini, minilm, is_faster=False, cosine=0.999617, llama_server_rate=700.0)
    assert mini.run("ensure", "--wait", timeout=120).returncode == 0
    engine = lines_of(ran(mini, "status"))["engine"]
    expected = (
        "the faster one: 700 texts/s, and ONNX Runtime 612, vectors of the two have a cosine of 0.99961 or more, "
        f"as measured at {AT} "
    )
    assert expected in engine
    assert engine.startswith("llama-server ")


def test_status_of_a_named_engine_gives_no_reason(mini: Cli, minilm: Path) -> None:
    compared(mini, minilm)
    named = mini.with_environment(RUNED_ENGINE="cpu")
    assert named.run("ensure", "--wait", timeout=120).returncode == 0
    assert "faster" not in lines_of(ran(named, "status"))["engine"]


@pytest.mark.parametrize("engine", ["auto", "cpu", "onnx"])
def test_status_names_no_engine_before_there_is_one(empty: Cli, tmp_path: Path, engine: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    cli = empty.with_environment(RUNED_ENGINE=engine, RUNED_MODEL=str(broken))
    assert cli.run("ensure", "--wait", timeout=60).returncode != 0
    assert lines_of(cli.run("status").stdout)["engine"] == "not chosen yet, profile balanced"


def test_models_and_show_tell_the_engine_of_the_next_start(mini: Cli, minilm: Path) -> None:
    assert "engine" not in ran(mini, "models").splitlines()[0].split()
    assert mini.with_environment(RUNED_ENGINE="cpu").run("install").returncode == 0  # the hash of the file is known then
    compared(mini, minilm)
    table = ran(mini, "models").splitlines()
    assert table[0].split()[-1] == "engine"
    assert next(line for line in table if line.startswith("all-minilm")).endswith("  ONNX Runtime")
    assert all(line.endswith(("ONNX Runtime", "llama-server", "engine")) for line in table)
    model = json.loads(ran(mini, "show", "all-minilm-l6-v2.f16", "--json"))
    assert model["engine"] == "ONNX Runtime"
    shown = lines_of(ran(mini, "show", "all-minilm-l6-v2.f16"))
    assert shown["engine"].startswith("ONNX Runtime, the faster one: 612 texts/s, and llama-server 302, as measured at ")
    compared(mini, minilm, objection="it died", onnx_rate=0.0)
    shown = lines_of(ran(mini, "show", "all-minilm-l6-v2.f16"))
    assert shown["engine"] == "llama-server, since ONNX Runtime cannot serve the model: it died"
    named = mini.with_environment(RUNED_ENGINE="onnx")
    assert lines_of(ran(named, "show", "all-minilm-l6-v2.f16"))["engine"] == "ONNX Runtime"


def test_reset_forgets_the_comparison(mini: Cli, minilm: Path) -> None:
    for command in (("install", "--reset"), ("bench", "--reset")):
        compared(mini, minilm)
        ran(mini, *command)
        assert not mini.paths.engine_comparisons.exists()


def test_tune_compares_both_engines(mini: Cli, minilm: Path) -> None:
    compared(mini, minilm, is_faster=False, onnx_rate=1.0)
    done = mini.run("bench", "--tune", "--seconds", "0.02", "--force", "--json", timeout=180)
    assert done.returncode == 0, done.stderr
    engines = json.loads(done.stdout)["engines"]
    assert engines["objection"] == ""
    assert engines["cosine"] >= 0.9999
    assert min(engines["onnx_rate"], engines["llama_server_rate"]) > 1.0
    kept = read_comparison(mini.paths.engine_comparisons, engines["model"])
    assert kept is not None
    assert msgspec.to_builtins(kept) == engines
    assert not list(Path("/tmp").glob("runed-bench-*/cache/onnx"))


def test_tune_shows_both_engines_to_people(mini: Cli) -> None:
    done = mini.run("bench", "--tune", "--seconds", "0.02", "--force", timeout=180)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    [header] = [number for number, line in enumerate(lines) if line == ["engine", "texts/s"]]
    assert {" ".join(line[:-2]) or line[0] for line in lines[header + 1 : header + 3]}
    assert sum("chosen" in line for line in lines[header + 1 : header + 3]) == 1


def test_tune_measures_nothing_without_llama_server(mini: Cli) -> None:
    done = mini.with_environment(RUNED_ENGINE="onnx").run("bench", "--tune")
    assert done.returncode == 2
    assert "only llama-server has settings and variants to measure" in done.stderr.splitlines()[-1]


def test_install_needs_no_llama_server_for_onnx(empty: Cli, minilm: Path) -> None:
    cli = empty.with_environment(RUNED_ENGINE="onnx", RUNED_MODEL=str(minilm))
    assert lines_of(ran(cli, "install"))["engine"] == "ONNX Runtime"
    assert not empty.paths.llama_cpp.exists()


# Own files


def test_an_onnx_file_is_added_served_shown_and_removed(empty: Cli, own: Path) -> None:
    told = ran(empty, "add", str(own), "--name", "own")
    assert "added     own: model, bert, F32, vectors of 16 dimensions\n" in told
    assert "pooling   mean\n" in told
    assert config(empty)["models"] == {"own": {"path": str(own)}}
    shown = lines_of(ran(empty, "show", "own"))
    assert (shown["engine"], shown["vectors"], shown["pooling"]) == ("ONNX Runtime", "16 dimensions", "mean")
    ran(empty, "use", "own")
    done = empty.run("embed", "--format", "jsonl", "word1 word2", timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["embedding"]) == 16
    empty.stop()
    graphs = list((empty.paths.cache / "onnx").iterdir())
    assert graphs
    (empty.paths.config).write_text(
        json.dumps({"version": 1, "models": {"own": {"path": str(own)}, "other": {"path": str(own)}}})
    )
    assert f"the file {own} stays" in ran(empty, "rm", "own")
    assert [path for path in (empty.paths.cache / "onnx").iterdir() if not path.name.startswith(".")] == []
    assert own.exists()


def test_the_graph_of_a_gguf_is_removed_with_it(mini: Cli, minilm: Path) -> None:
    own = mini.with_environment(RUNED_MODEL="", RUNED_ENGINE="onnx")
    ran(own, "add", str(minilm), "--name", "mini")
    ran(own, "use", "mini")
    assert own.run("ensure", "--wait", timeout=120).returncode == 0
    own.stop()
    sha256 = hashlib.sha256(minilm.read_bytes()).hexdigest()
    graph = graph_folder(own.paths, sha256)
    assert graph.is_dir()
    own.paths.config.write_text(json.dumps({"version": 1, "models": {"mini": {"path": str(minilm)}}}))
    told = ran(own, "rm", "mini")
    assert told.startswith("removed mini, ")
    assert told.endswith(f"; the file {minilm} stays\n")
    assert not graph.exists()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda own: (own.parent / "tokenizer.json").unlink(), "has no tokenizer.json beside it; copy that of the model there"),
        (lambda own: own.write_bytes(b"no model at all"), "not an ONNX file"),
        (lambda own: (own.parent / "1_Pooling" / "config.json").unlink(), "--pooling mean"),
    ],
)
def test_an_onnx_file_that_cannot_be_used_is_refused_with_the_reason(
    empty: Cli, tmp_path: Path, break_it: object, message: str
) -> None:
    own = write_own_model(tmp_path / "deep" / "own", pooling="mean")
    assert callable(break_it)
    break_it(own)
    assert message in refused(empty, "add", str(own), "--name", "own", code=1)
    assert not empty.paths.config.exists()


def test_a_pooling_that_nothing_tells_can_be_named(empty: Cli, tmp_path: Path) -> None:
    own = write_own_model(tmp_path / "own")
    assert "pooling   cls" in ran(empty, "add", str(own), "--pooling", "cls")
    assert config(empty)["models"] == {"model": {"path": str(own), "pooling": "cls"}}
