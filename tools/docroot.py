"""Serves a document root on loopback to download from: an engine's archive, a model and a manifest, all of real parts.

The archive has the shape of an official llama.cpp release: one top folder, flat, symbolic links between its libraries, and
programs that find these beside themselves.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.server
import json
import platform
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from tools import engine, minilm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT_ROOT = ROOT / "build" / "demo-root"
LICENSE = ROOT / "runed" / "bootstrap" / "licenses" / "llama.cpp.txt"

MANIFEST = "manifest.json"
VARIANT = "all-minilm-l6-v2.f16"

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PLATFORM = f"{platform.system().lower()}-{ARCHITECTURES.get(platform.machine().lower(), platform.machine())}"


def pack_engine(programs: Path, archive: Path, top: str) -> None:
    """Pack an engine like an official release. The same files always make the same archive.

    Args:
        programs: The folder of `llama-server`, `llama-quantize` and their libraries.
        archive: The `.tar.gz` to write.
        top: The name of the folder in the archive, such as "llama-b1".
    """

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        return member

    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(LICENSE, f"{top}/LICENSE", filter=anonymous)
        for path in sorted(programs.iterdir()):
            if path.name.startswith(("llama", "lib")):
                tar.add(path, f"{top}/{path.name}", filter=anonymous)


def build(root: Path) -> None:
    """Make the document root.

    Args:
        root: The folder to make; an older one is replaced.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    programs, release = engine.find_engine()
    top = f"llama-{release}"
    archive = root / f"{top}-bin-{PLATFORM}.tar.gz"
    model = root / minilm.OUTPUT.name
    pack_engine(programs, archive, top)
    shutil.copyfile(minilm.OUTPUT, model)
    manifest = {
        "version": 1,
        "platforms": {
            PLATFORM: {"llama_server": _entry(archive) | {"extract": "tar.gz", "exec": f"{top}/llama-server"}},
        },
        "models": {VARIANT: _entry(model)},
        "default_model": VARIANT,
    }
    # The manifest is written last: a document root that has one is complete.
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _entry(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"url": path.name, "sha256": digest, "size": path.stat().st_size}


@dataclass(frozen=True, slots=True)
class Site:
    """A served folder.

    Attributes:
        root: The folder.
        url: The base URL, ending in a slash.
        requested: The names of the requested files, in the order of the requests.
    """

    root: Path
    url: str
    requested: list[str] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    """A handler that serves the plain files of one folder, whole or from a byte on (`Range: bytes=N-`)."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        name = self.path.lstrip("/")
        if name not in {path.name for path in self.site.root.iterdir()}:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.site.requested.append(name)
        with (self.site.root / name).open("rb") as file:
            size = file.seek(0, 2)
            etag = f'"{name}-{size}"'
            start = self._first_byte(etag)
            if start >= size:
                self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
            self.send_header("Content-Length", str(size - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            if with_body:
                file.seek(start)
                self._copy(file)

    def _first_byte(self, etag: str) -> int:
        """Return the first byte to send: 0 without a range, or if the client has a part of another file."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked and self.headers.get("If-Range", etag) == etag else 0

    def _copy(self, file: BinaryIO) -> None:
        try:
            shutil.copyfileobj(file, self.wfile, 1 << 20)
        except ConnectionError:
            self.close_connection = True  # a client may stop reading at any time

    def log_message(self, *_arguments: object) -> None:
        """Log nothing, since the downloading side reports its progress."""


@contextmanager
def serve(root: Path) -> Iterator[Site]:
    """Serve a folder on a free port of the loopback interface.

    Args:
        root: The folder.

    Yields:
        The served folder and its URL.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        site = Site(root, f"http://127.0.0.1:{server.server_port}/")
        server.RequestHandlerClass = type("Handler", (_Handler,), {"site": site})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Build the document root of the demo."""
    parser = argparse.ArgumentParser(description="Pack the engine and the model, and write a manifest of them.")
    parser.add_argument("--output", type=Path, default=DOCUMENT_ROOT, help="the folder to make (default: %(default)s)")
    output = parser.parse_args().output
    build(output)
    for path in sorted(output.iterdir()):
        print(f"Made {path} ({path.stat().st_size / 1e6:,.1f} MB)")


if __name__ == "__main__":
    main()
