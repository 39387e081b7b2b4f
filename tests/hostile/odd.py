"""Odd machines, files, texts and requests."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import runed
from runed.errors import RunedError
from tests.bootstrap.parts import Release
from tests.bootstrap.site import Exchange, Site, drop_after, running_site, status
from tests.hostile.arena import MINILM, RUNED, Arena, Measured, attack, is_bug, said
from tests.support import FIXTURES, RunningDaemon

TINY = FIXTURES / "tiny-qwen3.f32.gguf"


@contextmanager
def _release() -> Iterator[tuple[Site, str]]:
    """Serve an engine and a model, and return the site and the URL of the manifest."""
    with running_site() as site:
        release = Release(site, models={"tiny": TINY.read_bytes()})
        yield site, release.publish()


def _install(arena: Arena, manifest: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return arena.run(arena.new(), "install", RUNED_LLAMA_SERVER="", RUNED_MODEL="", RUNED_MANIFEST=manifest, extra=environment)


_NOTHING_OF_MINE = {"RUNED_LLAMA_SERVER": "", "RUNED_MODEL": ""}

_PROXIES = {
    "NO_PROXY with [::1]": {"NO_PROXY": "[::1]", "http_proxy": "http://127.0.0.1:9"},
    "NO_PROXY with an IPv6 CIDR": {"no_proxy": "fd00::/8,10.0.0.0/8", "HTTP_PROXY": "http://127.0.0.1:9"},
    "NO_PROXY of nonsense": {"NO_PROXY": "::,[,:80,*.*,\x7f", "all_proxy": "http://127.0.0.1:9"},
    "all_proxy of SOCKS": {"all_proxy": "socks5://127.0.0.1:9"},
    "all_proxy of SOCKS4": {"ALL_PROXY": "socks4://127.0.0.1:9"},
    "a proxy that is no URL": {"http_proxy": "::::", "https_proxy": "not a url"},
    "a proxy without a scheme": {"http_proxy": "127.0.0.1:9"},
}


@attack("16", f"{len(_PROXIES)} odd settings of proxies, downloads from loopback", "each install works")
def proxies(arena: Arena) -> Measured:
    failed = []
    with _release() as (_, manifest):
        for name, variables in _PROXIES.items():
            result = _install(arena, manifest, **variables)
            if result.returncode:
                failed.append(f"{name} ({said(result)})")
    return Measured("; ".join(failed) or "all work", not failed)


@attack("16", "a proxy that refuses, for a host that is not loopback", "the error names the proxy's variable", slow=True)
def refused_proxy(arena: Arena) -> Measured:
    result = _install(arena, "http://runed.invalid/manifest.json", http_proxy="http://127.0.0.1:9")
    named = "proxy" in result.stderr.lower()
    return Measured(said(result), named and not is_bug(result))


def _whole_with_range(exchange: Exchange) -> None:
    """Answer a range by the whole file, with status 200 and a Content-Range."""
    content = exchange.content
    exchange.send_response(200)
    exchange.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
    exchange.send_header("Content-Length", str(len(content)))
    exchange.send_header("ETag", '"1"')
    exchange.end_headers()
    exchange.wfile.write(content)


def _compressed(exchange: Exchange) -> None:
    """Compress although nobody asked for that."""
    body = gzip.compress(exchange.content, 1)
    exchange.send_response(200)
    exchange.send_header("Content-Encoding", "gzip")
    exchange.send_header("Content-Length", str(len(body)))
    exchange.end_headers()
    exchange.wfile.write(body)


def _portal(exchange: Exchange) -> None:
    """Answer as a captive portal does."""
    body = b"<html>Please log in to use this network</html>"
    exchange.send_response(200)
    exchange.send_header("Content-Type", "text/html")
    exchange.send_header("Content-Length", str(len(body)))
    exchange.end_headers()
    exchange.wfile.write(body)


@attack(
    "17",
    "a download breaks off, then a server of three odd kinds goes on with it",
    "the install is complete at last",
    slow=True,
)
def odd_servers(arena: Arena) -> Measured:
    failed = []
    for name, odd in (("200 with Content-Range", _whole_with_range), ("compressed", _compressed), ("portal", _portal)):
        with _release() as (site, manifest):
            home = arena.new()
            site.behaviours["/models/tiny.gguf"] = [drop_after(400_000), odd, odd]
            tries = (
                arena.run(home, "install", timeout=40, extra={**_NOTHING_OF_MINE, "RUNED_MANIFEST": manifest}) for _ in range(3)
            )
            results = list(itertools.takewhile(lambda result: result.returncode, tries))
            if len(results) == 3:
                failed.append(f"{name} ({said(results[-1])})")
    return Measured("; ".join(failed) or "all complete", not failed)


@attack("17", "a site answers 503 and 404 to everything", "one sentence each, no stack trace", slow=True)
def dead_site(arena: Arena) -> Measured:
    results = []
    for code in (404, 503):
        with _release() as (site, manifest):
            site.always["/models/tiny.gguf"] = status(code)
            results.append(_install(arena, manifest))
    return Measured(said(results[0]), all(result.returncode == 1 and not is_bug(result) for result in results))


@attack("19", "a home whose name is not UTF-8", "it works, or one sentence")
def odd_name(arena: Arena) -> Measured:
    home = Path(os.fsdecode(os.fsencode(arena.new()) + b"\xff\xe4"))
    results = [arena.run(home, *command) for command in (["embed", "a"], ["status"], ["stop"])]
    return Measured(f"{said(results[0])}"[:100].encode(errors="replace").decode(), not any(map(is_bug, results)))


@attack("19", "a home on a full file system, and on one without exec", "one true sentence that names the file", root=True)
def small_places(arena: Arena) -> Measured:
    told = []
    for options, word in (("size=300k", "are free"), ("size=100m,noexec", "noexec")):
        home = arena.new()
        home.mkdir(mode=0o700)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(home)], capture_output=True, check=False
        ).returncode:
            return Measured("this machine lets nobody mount", None)
        home.chmod(0o700)
        try:
            with _release() as (_, manifest):
                result = arena.run(home, "install", RUNED_LLAMA_SERVER="", RUNED_MODEL="", RUNED_MANIFEST=manifest)
            if word not in result.stderr or is_bug(result) or str(home) not in result.stderr:
                told.append(said(result))
        finally:
            subprocess.run(["umount", "-l", home], check=False)
    return Measured("; ".join(told) or "both are told", not told)


def _batch(daemon: RunningDaemon, path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Embed a file of texts, to standard output."""
    command = [str(RUNED), "embed", "--batch", str(path), "--format", "jsonl", *flags]
    return subprocess.run(command, env=daemon.environment, capture_output=True, text=True, check=False, timeout=60)


_INVISIBLE = (
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\u200b\u200d\u2060",
    "\x01",
    "\x7f\x9f",
    "\ue000",
    "\U000e0001",
    "\u0378",
    " \u200b ",
)


@attack("20", f"{len(_INVISIBLE)} texts of invisible characters, by six ways, with a WordPiece model", "each is EMPTY_TEXT")
def invisible(arena: Arena) -> Measured:
    if not MINILM.exists():
        return Measured("the model is not there; run `make setup`", None)
    daemon = arena.started(model=MINILM)
    accepted: set[str] = set()
    with runed.connect(socket_path=daemon.socket) as client:
        for text in _INVISIBLE:
            with suppress(runed.errors.EmptyTextError):
                client.embed(text)
                accepted.add(f"embed of {text!a}")
            items = [*client.embed_items(["a", text]), *(item for _, item in client.embed_stream([(1, text)]))]
            if sum(isinstance(item, runed.errors.EmptyTextError) for item in items) != 2:
                accepted.add(f"embed_items or embed_stream of {text!a}")
            with suppress(RunedError):
                client.embed(text, truncate="end")
                accepted.add(f"truncate of {text!a}")
    with daemon.http() as http:
        for text in _INVISIBLE:
            if http.post("/v1/embeddings", json={"input": ["a", text]}).status_code == 200:
                accepted.add(f"OpenAI of {text!a}")
    lines = arena.folder / "invisible.jsonl"
    lines.write_text("".join(json.dumps(text) + "\n" for text in _INVISIBLE))
    job = _batch(daemon, lines, "--keep-going")
    if '"embedding"' in job.stdout:
        accepted.add("a job")
    return Measured(f"accepted: {len(accepted)} ({', '.join(sorted(accepted)[:2]) or 'none'})", not accepted)


@attack("21", "a lone surrogate and a byte order mark in JSON", "the index of the text is told; the mark is ignored")
def odd_json(arena: Arena) -> Measured:
    wrong = []
    with arena.daemon.http() as http:
        headers = {"content-type": "application/json"}
        body = b'{"texts": ["a", "\\ud800", "b"], "perItemErrors": true}'
        answer = http.post("/runed.v1.RunedService/EmbedBatch", content=body, headers=headers)
        embeddings = answer.json().get("embeddings", [])
        if len(embeddings) != 3 or "error" not in embeddings[1] or "error" in embeddings[2]:
            wrong.append("per-item errors")
        answer = http.post("/runed.v1.RunedService/EmbedBatch", content=b'{"texts": ["a", "\\ud800"]}', headers=headers)
        if answer.status_code != 400 or "1" not in answer.json()["message"]:
            wrong.append("batch")
        answer = http.post("/v1/embeddings", content=b'{"input": ["a", "\\udfff"]}', headers=headers)
        if answer.status_code != 400 or "1" not in answer.text:
            wrong.append("OpenAI")
        for path, text in (("/runed.v1.RunedService/Embed", b'{"text": "a"}'), ("/v1/embeddings", b'{"input": "a"}')):
            if http.post(path, content=b"\xef\xbb\xbf" + text, headers=headers).status_code != 200:
                wrong.append(f"mark at {path}")
    return Measured(f"wrong: {', '.join(wrong) or 'none'}", not wrong)


@attack("21", "JSON lines with a blank line, and odd members that are not read", "every text gets its vector")
def odd_lines(arena: Arena) -> Measured:
    lines = {
        "blank": b'"a"\n\n"b"\n',
        "NaN": b'{"text": "a", "x": NaN}\n',
        "Infinity": b'{"text": "a", "x": [-Infinity]}\n',
        "surrogate": b'{"text": "a", "x": "\\ud800"}\n',
        "deep": b'{"text": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        "mark": b'\xef\xbb\xbf"a"\n',
        "CRLF": b'"a"\r\n"b"\r\n',
    }
    failed = []
    for name, content in lines.items():
        path = arena.folder / f"{name}.jsonl"
        path.write_bytes(content)
        result = _batch(arena.daemon, path)
        if result.returncode:
            failed.append(f"{name} ({said(result)})")
    return Measured("; ".join(failed) or "all work", not failed)


@attack(
    "22", "-o /dev/stdout, /dev/fd/1 and /proc/self/fd/1 to a file that others write", "nothing of theirs is lost", slow=True
)
def outputs(arena: Arena) -> Measured:
    lost: list[str] = []
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        path = arena.folder / f"out{len(lost)}"
        path.write_text("an earlier line\n")
        with path.open("a") as file:
            file.write("a line of a shell\n")
            file.flush()
            subprocess.run(
                [RUNED, "embed", "a text", "-o", name, "--format", "jsonl"],
                env=arena.daemon.environment, stdout=file, stderr=subprocess.DEVNULL, check=False, timeout=60,
            )  # fmt: skip
            file.write("a later line\n")
        content = path.read_text()
        if not all(line in content for line in ("an earlier line", "a line of a shell", '"embedding"', "a later line")):
            lost.append(name)
    piped = subprocess.run(
        ["bash", "-c", f"{RUNED} embed 'a text' --format jsonl -o >(cat; echo end) | cat"],
        env=arena.daemon.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if '"embedding"' not in piped.stdout:
        lost.append(">(...)")
    return Measured(f"lost: {', '.join(lost) or 'none'}", not lost)


@attack(
    "22",
    "Parquet with nanoseconds, far dates, two columns of one name, string views; UTF-16; .gz",
    "vectors, or one sentence",
    slow=True,
)
def odd_files(arena: Arena) -> Measured:
    import pyarrow as pa  # noqa: PLC0415 # half a second
    import pyarrow.parquet as pq  # noqa: PLC0415

    far = pa.array([2**62, 1], pa.timestamp("us"))
    tables = {
        "nanoseconds.parquet": pa.table({"id": pa.array([1, 2], pa.timestamp("ns")), "text": ["a", "b"]}),
        "far.parquet": pa.table({"id": far, "text": ["a", "b"]}),
        "twice.parquet": pa.table([pa.array(["a", "b"]), pa.array(["c", "d"])], names=["text", "text"]),
        "view.parquet": pa.table({"text": pa.array(["a", "b"], pa.string_view())}),
    }
    for name, table in tables.items():
        with suppress(pa.ArrowException):
            pq.write_table(table, arena.folder / name)
    (arena.folder / "wide.csv").write_bytes("text;id\na;1\n".encode("utf-16"))
    (arena.folder / "semicolons.csv").write_text("text;id\na;1\n")
    (arena.folder / "squeezed.jsonl.gz").write_bytes(gzip.compress(b'"a"\n'))
    bugs = []
    for path in sorted(arena.folder.glob("*.*")):
        result = _batch(arena.daemon, path)
        must_work = path.name.startswith(("squeezed", "view", "nanoseconds"))
        if is_bug(result) or (must_work and result.returncode):
            bugs.append(f"{path.name} ({said(result)})")
    return Measured("; ".join(bugs) or "none is a bug", not bugs)


@attack(
    "22", "RUNED_MODEL is a file: URL, and an https URL", "the first works, the second is answered with what to do", slow=True
)
def models(arena: Arena) -> Measured:
    home = arena.new()
    local = arena.run(home, "embed", "a", RUNED_MODEL=f"file://{TINY}")
    arena.run(home, "stop")
    web = arena.run(arena.new(), "embed", "a", RUNED_MODEL="https://example.invalid/m.gguf")
    ok = local.returncode == 0 and web.returncode != 0 and not is_bug(web) and "RUNED_MODEL" in web.stderr
    return Measured(f"file: {said(local)[:60]}; https: {said(web)}", ok)


def _ask(daemon: RunningDaemon, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(daemon.socket))
        connection.sendall(data)
        received = b""
        with suppress(TimeoutError):
            while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
                received += chunk
        return received


@attack("23", "an empty line first, an absolute target, a Latin-1 header, HTTP/9.9", "200, 200, 200, 505 (RFC 9112)")
def odd_requests(arena: Arena) -> Measured:
    tail = b"Host: r\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n%b\r\n{}"
    path = b"/runed.v1.RunedService/Health"
    requests = {
        b"\r\nPOST %b HTTP/1.1\r\n" % path + tail % b"": b"200",
        b"POST http://runed%b HTTP/1.1\r\n" % path + tail % b"": b"200",
        b"POST %b HTTP/1.1\r\n" % path + tail % b"X-Name: M\xfcller\r\n": b"200",
        b"POST %b HTTP/9.9\r\n" % path + tail % b"": b"505",
    }
    statuses = [_ask(arena.daemon, request)[9:12] for request in requests]
    return Measured(", ".join(status.decode() or "closed" for status in statuses), statuses == list(requests.values()))


@attack("23", "the engine spoils one vector of a batch", "BACKEND_FAULT names its index, the others get vectors")
def spoiled_vector(arena: Arena) -> Measured:
    engine = arena.fake_engine(on={"spoiled": "nan"})
    daemon = arena.started(engine=engine.executable)
    with runed.connect(socket_path=daemon.socket) as client:
        items = client.embed_items(["a", "b", "spoiled", "c"], timeout=60)
        failed = [index for index, item in enumerate(items) if isinstance(item, RunedError)]
        message = ""
        try:
            client.embed_batch(["a", "spoiled"], timeout=60)
        except RunedError as error:
            message = f"{error.reason}: {error.message}"
    return Measured(
        f"failed: {failed}; {message[:120]}", failed == [2] and message.startswith("BACKEND_FAULT") and "1" in message
    )
