"""The document root of the demo looks like an official release, and its server lets a download resume."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tools import docroot, engine

TOP = "llama-b1"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real engine, packed."""
    path = tmp_path_factory.mktemp("archive") / "engine.tar.gz"
    docroot.pack_engine(engine.programs_folder(), path, TOP)
    return path


@pytest.fixture
def base_url(tmp_path: Path) -> Iterator[str]:
    """A server of one file, `data`, that holds 0123456789."""
    (tmp_path / "data").write_bytes(b"0123456789")
    with docroot.serve(tmp_path) as site:
        yield site.url


def test_the_archive_is_flat_with_links_and_a_licence(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}

    assert all(name.startswith(f"{TOP}/") and name.count("/") == 1 for name in members)
    names = {name.partition("/")[2] for name in members}
    assert {"llama-server", "llama-quantize", "LICENSE"} <= names
    library = members[f"{TOP}/libllama.so"]
    assert library.issym()
    assert library.linkname == "libllama.so.0"


def test_the_programs_run_wherever_they_are_extracted(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", tmp_path], check=True, timeout=60)
    program = tmp_path / TOP / "llama-server"

    loaded = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, timeout=30).stdout
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=30)

    assert "not found" not in loaded
    assert all(str(tmp_path) in line for line in loaded.splitlines() if "libllama" in line or "libggml" in line)
    assert "version" in version.stdout + version.stderr


def test_packing_again_changes_no_hash(archive: Path, tmp_path: Path) -> None:
    docroot.pack_engine(engine.programs_folder(), tmp_path / "again.tar.gz", TOP)

    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()


def test_the_manifest_tells_the_true_sizes_and_hashes(minilm: Path, tmp_path: Path) -> None:
    docroot.build(tmp_path / "root")

    manifest = json.loads((tmp_path / "root" / "manifest.json").read_text())
    entries = [manifest["platforms"][docroot.PLATFORM]["llama_server"], manifest["models"][manifest["default_model"]]]
    for entry in entries:
        data = (tmp_path / "root" / entry["url"]).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (tmp_path / "root" / entries[1]["url"]).read_bytes() == minilm.read_bytes()


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({}, 200, b"0123456789"),
        ({"Range": "bytes=4-"}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"data-10"'}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"another"'}, 200, b"0123456789"),
        ({"Range": "bytes=10-"}, 416, None),
    ],
)
def test_a_download_resumes_only_from_the_same_file(
    base_url: str, headers: dict[str, str], status: int, body: bytes | None
) -> None:
    answer = httpx.get(base_url + "data", headers=headers)

    assert answer.status_code == status
    if body is not None:
        assert answer.content == body
        assert answer.headers["ETag"] == '"data-10"'


@pytest.mark.parametrize("path", ["", "nothing", "%2e%2e/engine.tar.gz", "/etc/hostname"])
def test_nothing_but_the_files_of_the_folder_is_served(base_url: str, path: str) -> None:
    assert httpx.get(base_url + path).status_code == 404


def test_a_head_request_tells_the_size_without_the_body(base_url: str) -> None:
    answer = httpx.head(base_url + "data")

    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "10", b"")
