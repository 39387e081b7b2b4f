"""The commands about models: what there is, how it is fetched, added, chosen and removed."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap.manifest import current_platform
from runed.bootstrap.partial_files import partial_path
from runed.locking import LockFile
from tests.bootstrap.parts import sha256
from tests.bootstrap.site import Behaviour, Site, drop_after, running_site, stall_after, status
from tests.cli.support import Cli
from tests.support import wait_until


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as site:
        yield site


@pytest.fixture
def bare(home: Path, llama_server: Path) -> Cli:
    """A home with an engine and nothing else."""
    return Cli(home, {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_ENGINE": "cpu"})


@pytest.fixture
def stocked(bare: Cli, site: Site, tiny_qwen3: Path) -> Iterator[Cli]:
    """A home whose manifest has two models, with the same bytes, which are on the site and not fetched yet."""
    models: dict[str, dict[str, object]] = {}
    data = tiny_qwen3.read_bytes()
    for name in ("tiny.f32", "mini.f32"):
        site.files[f"/{name}.gguf"] = data
        models[name] = {"url": f"{site.url}/{name}.gguf", "sha256": sha256(data), "size": len(data)}
    models["mini.f32"] |= {"license": "Gemma", "license_url": "https://ai.google.dev/gemma/terms"}
    manifest = bare.home / "manifest"
    manifest.write_text(
        json.dumps({"version": 1, "platforms": {current_platform(): {}}, "models": models, "default_model": "tiny.f32"})
    )
    cli = bare.with_environment(RUNED_MANIFEST=str(manifest), HF_ENDPOINT=site.url)
    yield cli
    cli.stop()


def config(cli: Cli) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cli.paths.config.read_text())
    return document


def ran(cli: Cli, *arguments: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = cli.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(cli: Cli, *arguments: str, code: int = 2) -> str:
    """Run a command that must fail, and return its error, which has one line."""
    done = cli.run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("runed: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# The list


def test_a_fresh_home_lists_the_models_of_the_package(bare: Cli) -> None:
    lines = ran(bare, "models").splitlines()
    assert lines[0].split() == ["name", "state", "size", "vectors", "context", "licence"]
    assert lines[1].split() == [
        "qwen3-embedding-0.6b.q6_K",
        "(default)",
        "not",
        "installed",
        "unknown",
        "1,024",
        "32,768",
        "Apache-2.0",
    ]
    assert any(line.split() == ["bge-m3.q8_0", "not", "installed", "635", "MB", "1,024", "8,192", "MIT"] for line in lines)
    models = json.loads(ran(bare, "models", "--json"))
    assert [model["name"] for model in models if model["default"]] == ["qwen3-embedding-0.6b.q6_K"]
    assert not any(model["installed"] for model in models)


def test_the_file_of_a_model_tells_what_the_list_does_not_know(stocked: Cli, minilm: Path, reranker: Path) -> None:
    ran(stocked, "add", str(minilm), "--name", "own")
    ran(stocked, "add", str(reranker), "--name", "ranker")
    rows = {line.split()[0]: line.split() for line in ran(stocked, "models").splitlines()}
    assert rows["own"] == ["own", "your", "file", *rows["own"][3:5], "384", "512", "unknown"]
    assert rows["ranker"][5:7] == ["reranker", "512"]
    assert not [row for row in rows.values() if "-" in row]
    models = {model["name"]: (model["dimensions"], model["context"]) for model in json.loads(ran(stocked, "models", "--json"))}
    assert (models["own"], models["ranker"]) == ((384, 512), (0, 512))


def test_a_model_that_is_not_installed_is_shown_with_its_prompts_and_licence(bare: Cli) -> None:
    shown = ran(bare, "show", "EmbeddingGemma-300m")
    for line in (
        "name      embeddinggemma-300m.q8_0",
        "file      not installed; `runed pull embeddinggemma-300m.q8_0` fetches it (334 MB)",
        "licence   Gemma, https://ai.google.dev/gemma/terms",
        "vectors   768 dimensions, or fewer down to 128",
        "query     'task: search result | query: '",
        "document  'title: none | text: '",
    ):
        assert line in shown.splitlines()
    assert "needs     llama-server b11457 or newer" in ran(bare, "show", "embeddinggemma-2").splitlines()
    assert json.loads(ran(bare, "show", "bge-m3", "--json"))["query_prompt"] == ""


@pytest.mark.parametrize(
    ("command", "name"), [("show", "x" * 300), ("pull", "../models/x"), ("rm", ".."), ("use", "\x1b[2J"), ("rm", "a/b")]
)
def test_a_name_that_is_no_model_is_answered_with_those_that_are(bare: Cli, command: str, name: str) -> None:
    done = bare.run(command, name)
    assert done.returncode == 1
    assert done.stderr.startswith("runed: there is no model ")
    assert re.search("; (there are qwen3-embedding-0.6b.q6_K, |did you mean )", done.stderr)
    assert "\x1b" not in done.stderr
    assert len(done.stderr) < 1000


# Fetching


def test_a_model_is_fetched_and_serves_at_once(stocked: Cli, tiny_qwen3: Path) -> None:
    told = ran(stocked, "pull", "mini")
    assert told.startswith("mini.f32 is under the licence Gemma, https://ai.google.dev/gemma/terms; whoever uses")
    size = f"{tiny_qwen3.stat().st_size / 1e6:,.0f} MB"
    assert f"model     {stocked.paths.model('mini.f32')}, {size}" in told
    assert f"sha256    {sha256(tiny_qwen3.read_bytes())}" in told
    assert "licence" not in ran(stocked, "pull", "mini")  # it is there already
    assert ["mini.f32", "installed", *size.split()] in [line.split()[:4] for line in ran(stocked, "models").splitlines()]
    shown = ran(stocked, "show", "mini")
    assert f"sha256    {sha256(tiny_qwen3.read_bytes())}" in shown
    assert "vectors   64 dimensions, or fewer down to 32" in shown
    ran(stocked, "use", "mini")
    assert json.loads(ran(stocked, "embed", "tea"))["dim"] == 64


@pytest.mark.parametrize("behaviour", [stall_after(1000), status(404)], ids=["stalls", "fails"])
def test_a_named_model_needs_no_default_model(stocked: Cli, site: Site, reranker: Path, behaviour: Behaviour) -> None:
    site.always["/tiny.f32.gguf"] = behaviour
    ran(stocked, "pull", "mini")
    ran(stocked, "add", str(reranker), "--name", "judge")
    texts = stocked.home / "texts"
    texts.write_text("green tea\na train\n")
    ran(stocked, "ensure")
    assert json.loads(ran(stocked, "embed", "tea", "--model", "mini"))["dim"] == 64
    assert ran(stocked, "rerank", "tea", str(texts)).count("\n") == 2
    assert ran(stocked, "rerank", "trains", str(texts), "--model", "judge").count("\n") == 2


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_pull_that_is_cut_is_resumed_by_the_same_command(stocked: Cli, site: Site, tiny_qwen3: Path, tenth: int) -> None:
    whole = tiny_qwen3.stat().st_size
    cut = whole * tenth // 10
    # Odd tenths are killed, even ones lose the connection.
    site.behaviours["/tiny.f32.gguf"] = [stall_after(cut) if tenth % 2 else drop_after(cut)]
    site.always["/tiny.f32.gguf"] = status(404)
    partial = partial_path(stocked.paths.model("tiny.f32"))
    process = stocked.start("pull", "tiny")
    if tenth % 2:
        wait_until(lambda: partial.exists() and partial.stat().st_size == cut, what="the first part")
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert partial.stat().st_size == cut
    if tenth == 5:
        assert "half fetched" in ran(stocked, "models")
        assert " of it are here; " in ran(stocked, "show", "tiny")
    site.always.clear()
    ran(stocked, "pull", "tiny")
    assert site.requests[-1].range == f"bytes={cut}-"
    assert stocked.paths.model("tiny.f32").read_bytes() == tiny_qwen3.read_bytes()
    assert not partial.exists()


def test_a_file_of_the_hub_is_recorded_with_its_hash_at_first_use(stocked: Cli, site: Site, tiny_qwen3: Path) -> None:
    path, data = "/o/r/resolve/main/sub/Tiny-Qwen3.F32.gguf", tiny_qwen3.read_bytes()
    site.files[path] = data
    source = "hf:o/r/sub/Tiny-Qwen3.F32.gguf"
    told = ran(stocked, "pull", source)
    assert f"recorded  {sha256(data)} as its SHA-256; every later download must have it" in told
    assert config(stocked)["models"] == {"tiny-qwen3.f32": {"source": source, "sha256": sha256(data)}}
    assert json.loads(ran(stocked, "show", "tiny-qwen3", "--json"))["sha256"] == sha256(data)
    # It is there, and is not fetched again, neither by its name nor by its source.
    site.requests.clear()
    ran(stocked, "pull", "tiny-qwen3")
    ran(stocked, "pull", source)
    assert site.requests == []
    # Another file at the same place is not taken.
    stocked.paths.model("tiny-qwen3.f32").unlink()
    site.files[path] = data[:-1] + b"x"
    assert "has SHA-256 " in refused_of_many_lines(stocked, "pull", "tiny-qwen3")
    site.files[path] = data
    ran(stocked, "pull", "tiny-qwen3")


def test_a_reranker_of_the_hub_is_recorded_as_one(stocked: Cli, site: Site, reranker: Path) -> None:
    site.files["/o/r/resolve/main/Judge.gguf"] = reranker.read_bytes()
    told = ran(stocked, "pull", "hf:o/r/Judge.gguf")
    assert "use       runed rerank --model judge QUERY FILE" in told.splitlines()
    assert config(stocked)["models"]["judge"]["kind"] == "rerank"
    assert "use       runed rerank --model judge QUERY FILE" in ran(stocked, "pull", "judge").splitlines()
    (stocked.home / "documents").write_text("green tea\na train\n")
    assert ran(stocked, "rerank", "tea", str(stocked.home / "documents")).count("\n") == 2


def refused_of_many_lines(cli: Cli, *arguments: str) -> str:
    """Run a command that must fail after it has told of its tries."""
    done = cli.run(*arguments)
    assert done.returncode == 1
    return done.stderr


def test_a_file_of_the_hub_that_is_no_model_is_not_kept(stocked: Cli, site: Site) -> None:
    site.files["/o/r/resolve/1/x.gguf"] = b"GGUF" + bytes(1000)
    assert "cannot be used" in refused_of_many_lines(stocked, "pull", "hf:o/r/x.gguf@1", "--name", "odd")
    assert not stocked.paths.model("odd").exists()
    assert not stocked.paths.config.exists()


@pytest.mark.parametrize("name", ["../x", "x" * 200])
def test_a_name_for_a_file_of_the_hub_that_cannot_be_one_is_told(stocked: Cli, site: Site, name: str) -> None:
    assert "cannot be the name of a model" in refused(stocked, "pull", "hf:o/r/x.gguf", "--name", name)
    assert site.requests == []


def test_a_name_that_is_taken_is_told(stocked: Cli, site: Site) -> None:
    assert "there is already a model called 'TINY'" in refused(stocked, "pull", "hf:o/r/x.gguf", "--name", "TINY")
    assert "--name is for a file of the hub" in stocked.run("pull", "tiny", "--name", "x").stderr
    assert site.requests == []


# Models of the user's own


def test_a_file_of_the_user_is_added_and_all_else_stays(stocked: Cli, minilm: Path) -> None:
    before = '{"//": "mine",\n   "of_a_newer_version": {"x": [1,2]}, "version": 1}'
    stocked.paths.config.write_text(before)
    told = ran(stocked, "add", str(minilm), "--name", "own", "--alias", "Small", "--query-prompt", "query: ")
    assert "added     own: all-MiniLM-L6-v2, bert, F16, vectors of 384 dimensions" in told
    assert "query     'query: '\ndocument  none\n" in told
    text = stocked.paths.config.read_text()
    assert text.startswith(before[:-1])
    assert config(stocked)["models"] == {"own": {"path": str(minilm), "query_prompt": "query: ", "aliases": ["Small"]}}
    assert json.loads(ran(stocked, "show", "small", "--json"))["query_prompt"] == "query: "
    ran(stocked, "use", "SMALL")
    assert config(stocked)["default_model"] == "own"
    assert json.loads(ran(stocked, "embed", "tea", "--role", "query"))["embeddings"][0]["token_count"] == 5
    done = stocked.run("embed", "tea", "--role", "document")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reranker_of_the_user_reranks_without_being_told(stocked: Cli, reranker: Path, tmp_path: Path) -> None:
    told = ran(stocked, "add", str(reranker), "--name", "ranker")
    assert "added     ranker: minilm-reranker-random, bert, F32, reranks documents\n" in told
    assert "use       runed rerank --model ranker QUERY FILE\n" in told
    assert config(stocked)["models"] == {"ranker": {"path": str(reranker)}}
    shown = ran(stocked, "show", "ranker")
    assert "kind      reranks documents" in shown
    assert "context   512 tokens of query and document together" in shown
    assert "problem" not in shown
    assert "is a reranker and gives no vectors" in refused(stocked, "use", "ranker")
    ran(stocked, "pull", "tiny")
    documents = tmp_path / "documents"
    documents.write_text("a train\ntea\n")
    assert len(json.loads(ran(stocked, "rerank", "tea?", str(documents), "--format", "json"))) == 2
    assert "ranker is a reranker; use it by `runed rerank`" in refused(stocked, "embed", "tea", "--model", "ranker", code=1)


def test_a_kind_or_pooling_that_contradicts_the_file_is_told(stocked: Cli, reranker: Path, minilm: Path) -> None:
    assert "for which pooling 'mean' makes no sense" in refused(stocked, "add", str(reranker), "--pooling", "mean", code=1)
    assert "is a reranker, which has no prompts" in refused(stocked, "add", str(reranker), "--query-prompt", "q: ")
    models = {
        "vectors": {"path": str(reranker), "kind": "embedding"},
        "pooled": {"path": str(reranker), "pooling": "mean"},
        "ranks": {"path": str(minilm), "kind": "rerank"},
        "other": {"path": str(minilm), "pooling": "cls"},
    }
    stocked.paths.config.write_text(json.dumps({"models": models}))
    assert "problem   " in (shown := ran(stocked, "show", "vectors"))
    assert "cannot be used for embeddings, since it is a reranker" in shown
    assert "for which pooling 'mean' makes no sense" in json.loads(ran(stocked, "show", "pooled", "--json"))["problem"]
    assert 'it scores no documents; remove "kind": "rerank"' in ran(stocked, "show", "ranks")
    assert "pooling   cls, as config.json says; the file tells mean" in ran(stocked, "show", "other")


def test_a_role_without_a_prompt_is_one_line_of_the_command(stocked: Cli, nameless: Path) -> None:
    assert "an empty query_prompt says that it has none" in ran(stocked, "add", str(nameless), "--name", "own")
    ran(stocked, "use", "own")
    done = stocked.run("embed", "tea", "--role", "query")
    assert done.returncode == 0
    assert 'runed: role="query" adds nothing: no prompt of own is known.' in done.stderr


def test_what_cannot_be_added_is_told_and_changes_nothing(stocked: Cli, minilm: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(minilm.read_bytes()[:1000])
    assert "cut short" in refused(stocked, "add", str(broken), code=1)
    assert "cannot be read" in refused(stocked, "add", str(tmp_path / "none.gguf"), code=1)
    assert "cannot be the name of a model" in refused(stocked, "add", str(minilm), "--name", "../x")
    assert "cannot be the name of a model" in refused(stocked, "add", str(minilm), "--name", "x", "--alias", "a/b")
    assert "already a model called 'tiny'" in refused(stocked, "add", str(minilm), "--name", "x", "--alias", "tiny")
    assert "has an alias twice" in refused(stocked, "add", str(minilm), "--name", "x", "--alias", "y", "--alias", "Y")
    assert "accepted is a duration" in refused(stocked, "add", str(minilm), "--name", "x", "--keep-alive", "soon")
    assert not stocked.paths.config.exists()
    ran(stocked, "add", str(minilm), "--name", "x")
    assert "already a model called 'X'" in refused(stocked, "add", str(minilm), "--name", "X")
    stocked.paths.config.write_text("{")
    assert "accepted is a JSON object" in refused(stocked, "add", str(minilm), "--name", "z")
    assert stocked.paths.config.read_text() == "{"
    stocked.paths.config.unlink()


def test_use_takes_the_place_of_older_settings_and_tells_of_the_environment(stocked: Cli, minilm: Path) -> None:
    stocked.paths.config.write_text(json.dumps({"model": str(minilm), "model_variant": "tiny.f32", "idle_timeout": "1m"}))
    told = ran(stocked, "use", "tiny")
    assert "removed model from config.json" in told
    assert "removed model_variant from config.json" in told
    name = "all-minilm-l6-v2.f16"
    assert f"that model stays as {name}: `runed use {name}` goes back to it\n" in told
    own = {name: {"path": str(minilm)}}
    assert config(stocked) == {"idle_timeout": "1m", "models": own, "default_model": "tiny.f32"}
    assert ran(stocked, "use", name) == f"the default model is {name}\n"
    assert config(stocked) == {"idle_timeout": "1m", "models": own, "default_model": name}
    ran(stocked, "use", "tiny")
    done = stocked.with_environment(RUNED_MODEL=str(minilm)).run("use", "mini")
    assert "the environment names another model: unset RUNED_MODEL\n" in done.stderr
    assert config(stocked)["default_model"] == "mini.f32"
    done = stocked.with_environment(RUNED_BACKEND="http://127.0.0.1:1/v1").run("use", "mini")
    assert "unset RUNED_BACKEND\n" in done.stderr
    both = {"RUNED_MODEL": str(minilm), "RUNED_MODEL_VARIANT": "tiny.f32"}
    assert "unset RUNED_MODEL and RUNED_MODEL_VARIANT\n" in stocked.with_environment(**both).run("use", "mini").stderr
    stocked.paths.config.write_text(json.dumps({"backend": "http://127.0.0.1:1/v1"}))
    assert "backend in config.json goes before default_model: remove it there" in stocked.run("use", "mini").stderr


# Removing


def test_a_fetched_model_is_removed_with_its_record(stocked: Cli) -> None:
    ran(stocked, "pull", "mini")
    assert ran(stocked, "rm", "mini").startswith("removed mini.f32")
    assert list(stocked.paths.models.iterdir()) == []
    assert json.loads(stocked.paths.installed.read_text()).get("models", {}) == {}
    assert "mini.f32 is not installed" in refused(stocked, "rm", "mini")


def test_the_rest_of_an_interrupted_download_is_removed(stocked: Cli, site: Site) -> None:
    site.behaviours["/mini.f32.gguf"] = [drop_after(100_000)]
    site.always["/mini.f32.gguf"] = status(404)
    refused_of_many_lines(stocked, "pull", "mini")
    assert partial_path(stocked.paths.model("mini.f32")).exists()
    assert ran(stocked, "rm", "mini") == "removed mini.f32, 0 MB\n"
    assert list(stocked.paths.models.iterdir()) == []


def test_a_model_that_the_daemon_uses_is_not_removed(stocked: Cli) -> None:
    ran(stocked, "pull", "tiny")
    ran(stocked, "pull", "mini")
    ran(stocked, "embed", "tea")
    assert "the daemon uses tiny.f32; end it by `runed stop`" in refused(stocked, "rm", "tiny", code=1)
    assert stocked.paths.model("tiny.f32").exists()
    ran(stocked, "rm", "mini")  # it has opened the other one only
    ran(stocked, "stop")
    assert "removed tiny.f32" in ran(stocked, "rm", "tiny")


def test_a_model_of_the_user_is_removed_from_the_list_and_its_file_stays(stocked: Cli, minilm: Path) -> None:
    ran(stocked, "add", str(minilm), "--name", "own")
    stocked.paths.config.write_text(json.dumps(config(stocked) | {"aliases": {"small": "own"}}))
    assert "the alias 'small' in config.json stands for own; remove it first" in refused(stocked, "rm", "own")
    stocked.paths.config.write_text(json.dumps({**config(stocked), "aliases": {}}))
    ran(stocked, "use", "own")
    assert "own is the default model; choose another one first" in refused(stocked, "rm", "own")
    ran(stocked, "use", "tiny")
    assert ran(stocked, "rm", "own") == f"removed own; the file {minilm} stays\n"
    assert config(stocked)["models"] == {}
    assert minilm.exists()
    named = stocked.with_environment(RUNED_MODEL=str(minilm))
    assert "is the model of RUNED_MODEL" in refused(named, "rm", "all-minilm-l6-v2")


def test_nothing_is_removed_during_an_installation(stocked: Cli) -> None:
    ran(stocked, "pull", "mini")
    with LockFile(stocked.paths.install_lock) as lock:
        assert lock.try_acquire()
        assert "is installing engine or model" in refused(stocked, "rm", "mini", code=1)


def test_add_and_an_editor_at_the_same_moment_lose_nothing(stocked: Cli, minilm: Path) -> None:
    """The editor reads, changes and saves all the time; commands add models meanwhile. An edit made after a look is kept."""
    stocked.paths.config.write_text('{"version": 1}')
    names = [f"own{number}" for number in range(4)]
    processes = [stocked.start("add", str(minilm), "--name", name) for name in names]
    edits = 0
    while any(process.poll() is None for process in processes):
        document = config(stocked)
        document["edits"] = edits = edits + 1
        new = stocked.home / "config.new"
        new.write_text(json.dumps(document))
        # An editor warns if the file has changed since it was read.
        if config(stocked) == document | {"edits": edits - 1} or edits == 1:
            new.replace(stocked.paths.config)
        else:
            edits -= 1
        time.sleep(0.2)
    assert [process.communicate()[1] for process in processes] == [b""] * 4
    assert config(stocked)["edits"] == edits
    assert edits > 1
