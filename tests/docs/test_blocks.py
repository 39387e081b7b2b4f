"""Runs the code blocks of the pages; tests/docs/blocks.py tells how."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from runed.bootstrap.manifest import ManifestSource, parse_manifest
from runed.settings import load_settings
from tests.cli.support import Cli
from tests.docs.blocks import BLOCKS, PAGES, ROOT, SCENES, Block, blocks_of, scene
from tests.support import LLAMA_SERVER_ALONE, RunningDaemon, clean_environment, short_home

SECONDS = 110
"""Most seconds of a block; those of a test are 120."""


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_is_run_or_says_why_not(block: Block) -> None:
    if block.verb == "run":
        assert block.language in SCENES.get(block.rest, set()), "no such scene for this language; see tests/docs/blocks.py"
    elif block.verb == "tested":
        test = (ROOT / block.rest).read_text()
        command = block.text.splitlines()[0].partition("  #")[0].strip()
        assert Path(block.page).name in test or command in test, "that test neither reads this page nor has this command"
    else:
        assert len(block.rest.split()) >= 3, "say why in a few words"


@pytest.mark.parametrize("page", PAGES)
def test_each_fence_is_a_block(page: str) -> None:
    text = (ROOT / page).read_text()
    fences = re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page, text)), "fences are ```, at the beginning of a line, with a language"
    comments = re.findall(r"^ *<!-- (?:run|tested|not run):", text, re.MULTILINE)
    said = [block for block in blocks_of(page, text) if block.verb != "run" or block.rest != block.language]
    assert len(comments) == len(said), "a comment belongs to the fence below it, with one blank line between at most"


def in_python(block: Block, home: Path, folder: Path) -> None:
    """Run a block of Python. It must print what stands beside its calls of `print`, if anything does."""
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        # Earlier versions of Chroma sent telemetry, and later ones may do so again.
        env=clean_environment(RUNED_HOME=str(home), ANONYMIZED_TELEMETRY="false", HAYSTACK_TELEMETRY_ENABLED="false"),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert done.stdout.splitlines() == promised or not promised


@pytest.mark.parametrize("block", scene("python", "python"), ids=str)
def test_a_block_of_python_prints_what_stands_beside_it(block: Block, minilm_daemon: RunningDaemon, desk: Path) -> None:
    in_python(block, minilm_daemon.home, desk)


@pytest.mark.parametrize("block", scene("reranker", "python"), ids=str)
def test_a_block_of_python_reranks(block: Block, reranker_daemon: RunningDaemon, desk: Path) -> None:
    in_python(block, reranker_daemon.home, desk)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the examples read."""
    (tmp_path / "notes" / "drinks").mkdir(parents=True)
    (tmp_path / "notes" / "drinks" / "tea.md").write_text(
        "Green tea is steeped at 80 degrees.\n\nBlack tea takes boiling water.\n"
    )
    (tmp_path / "notes" / "travel.md").write_text("The night train leaves at ten.\n\nTickets are sold on board.\n")
    for name in ("lines.txt", "notes.txt", "passages.txt"):
        (tmp_path / name).write_text("green tea\nblack tea\nnight train\n")
    rows = [{"id": number, "text": text, "body": text} for number, text in enumerate(["green tea", "night train"])]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.jsonl.gz").write_bytes(gzip.compress((tmp_path / "texts.jsonl").read_bytes()))
    (tmp_path / "all.csv").write_text("id,body\n1,green tea\n2,night train\n")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"{name}.parquet")
    return tmp_path


def in_shell(block: Block, home: Path, folder: Path, **settings: str) -> None:
    """Run a block of commands as a user types them: in a home directory, with the programs of this environment.

    An error in JSON, which curl takes for success, is a failure here.
    """
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        env=clean_environment(
            HOME=str(home), PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", PAGER="cat", **settings
        ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r'"(?:code|error)":', done.stdout), done.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def settings(llama_server: Path, minilm: Path) -> dict[str, str]:
    return {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm)} | LLAMA_SERVER_ALONE


@pytest.fixture(scope="session")
def shared_home(settings: dict[str, str]) -> Iterator[Path]:
    """A home directory whose daemon all blocks share."""
    homes = _home(settings)
    home = next(homes)
    assert Cli(home / ".runed", settings).run("ensure", "--wait").returncode == 0
    yield home
    next(homes, None)


@pytest.fixture
def own_home(settings: dict[str, str], minilm: Path) -> Iterator[Path]:
    """A home directory of one block, with a model of the user's own."""
    for home in _home(settings):
        (home / "models").mkdir()
        (home / "models" / "e5.gguf").symlink_to(minilm)
        yield home


def _home(settings: dict[str, str]) -> Iterator[Path]:
    home = short_home()
    yield home
    Cli(home / ".runed", settings).stop()
    shutil.rmtree(home)


@pytest.mark.parametrize("block", scene("sh", "sh"), ids=str)
def test_commands_work(block: Block, shared_home: Path, settings: dict[str, str], desk: Path) -> None:
    in_shell(block, shared_home, desk, **settings)


@pytest.mark.parametrize("block", scene("own", "sh"), ids=str)
def test_commands_work_in_a_home_of_their_own(block: Block, own_home: Path, settings: dict[str, str], desk: Path) -> None:
    in_shell(block, own_home, desk, **settings)


@pytest.mark.parametrize("block", [*scene("port", "sh"), *scene("open port", "sh")], ids=str)
def test_commands_reach_the_port(block: Block, own_home: Path, settings: dict[str, str], desk: Path, minilm: Path) -> None:
    opened = block.rest == "open port"
    [documented] = set(re.findall(r"127\.0\.0\.1:(\d+)", block.text))
    port = free_port()
    home = own_home / ".runed"
    home.mkdir(0o700)
    model = own_home / "qwen3-embedding-0.6b.gguf"
    model.symlink_to(minilm)
    config = {"version": 1, "model": str(model), "http": f"127.0.0.1:{port}", "http_token": not opened}
    (home / "config.json").write_text(json.dumps(config))
    text = f"runed ensure --wait\n{block.text.replace(documented, str(port))}"
    in_shell(replace(block, text=text), own_home, desk, **{**settings, "RUNED_MODEL": ""})


@pytest.mark.parametrize("block", scene("reranker", "sh"), ids=str)
def test_commands_rerank(block: Block, reranker_daemon: RunningDaemon, desk: Path) -> None:
    home = short_home()
    (home / ".runed").symlink_to(reranker_daemon.home)
    in_shell(block, home, desk, RUNED_HOME=str(reranker_daemon.home))
    shutil.rmtree(home)


@pytest.mark.parametrize("block", scene("json", "json"), ids=str)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", scene("yaml", "yaml"), ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", scene("members", "json"), ids=str)
def test_members_are_those_of_an_object(block: Block) -> None:
    assert json.loads(f"{{{block.text}}}")


@pytest.mark.parametrize("block", scene("config", "json"), ids=str)
def test_a_configuration_is_accepted(block: Block, home: Path) -> None:
    (home / "config.json").write_text(block.text)
    assert load_settings(home=home, environ={}).home == home


@pytest.mark.parametrize("block", scene("manifest", "json"), ids=str)
def test_a_manifest_is_accepted(block: Block) -> None:
    assert parse_manifest(block.text.encode(), ManifestSource("", is_url=False)).source.location == ""
