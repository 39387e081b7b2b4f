"""The readers of files and of answers, each as a target: it takes any bytes, and may only raise what its callers expect."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import struct
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

from runed.backends.engine.process import reap_orphan
from runed.backends.gguf import read_gguf
from runed.backends.llama.profile import choose_profile
from runed.bootstrap import read_comparison
from runed.bootstrap.archive import extract
from runed.bootstrap.audit import Audit
from runed.bootstrap.device_choice import read_choice
from runed.bootstrap.device_failures import DeviceFailures, DeviceUse
from runed.bootstrap.drivers import find_drivers
from runed.bootstrap.manifest import ManifestSource, current_platform, parse_manifest
from runed.caching.vector_file import VectorFile
from runed.client.wire.stream import StreamExchange
from runed.client.wire.unary import BrokenAnswerError, Exchange
from runed.doctor.finding import Patient
from runed.doctor.logs import last_errors
from runed.errors import RunedError
from runed.jobs.inputs import open_batch
from runed.jobs.journal import Journal
from runed.lifecycle.hold import LONGEST, read_hold
from runed.lifecycle.record import DaemonRecord
from runed.onnx_files import files_of
from runed.paths import Paths
from runed.routing.set_file import UnusableFileError, load
from runed.settings import Settings, load_settings
from tests.bootstrap.parts import VERSION_SCRIPT, special
from tests.support import FIXTURES

EXPECTED = (RunedError, OSError)


@dataclass(frozen=True)
class FileTarget:
    """A reader.

    Attributes:
        seeds: Makes the inputs to begin with.
        read: Reads an input, in an empty folder.
        expected: The errors that are an answer.
        words: Pieces that mean something to the reader.
        wrap: Turns a changed input into what is read, as in compressing it.
    """

    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    expected: tuple[type[Exception], ...] = EXPECTED
    words: Sequence[bytes] = ()
    wrap: Callable[[bytes, Random], bytes] = lambda data, _: data


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# Bootstrap


def _manifests() -> Sequence[bytes]:
    artefact = {"url": "https://example.org/a", "sha256": "0" * 64, "size": 10}
    document = {
        "version": 1,
        "platforms": {current_platform(): {"llama_server": {**artefact, "extract": "tar.gz", "exec": "a/llama-server"}}},
        "models": {"m": artefact, "d": {"derive": {"from": "m", "type": "Q6_K"}}},
        "default_model": "m",
    }
    return [json.dumps(document).encode(), json.dumps({**document, "default_model": "d"}).encode()]


def _read_manifest(data: bytes, _: Path) -> object:
    manifest = parse_manifest(data, ManifestSource("https://example.org/manifest.json", is_url=True))
    results: list[object] = []
    for question in (lambda: manifest.engine(current_platform()), lambda: manifest.model(None), lambda: manifest.model("d")):
        try:
            results.append(question())
        except RunedError as error:
            results.append(error)
    return results


def _archives() -> Sequence[bytes]:
    result = []
    for members in (
        [special("a/link", tarfile.SYMTYPE, "llama-server"), special("a/hard", tarfile.LNKTYPE, "a/llama-server")],
        [special("a/folder", tarfile.DIRTYPE), special("a/self", tarfile.LNKTYPE, "a/self")],
        [special("a/up", tarfile.SYMTYPE, "../../out"), special("/absolute", tarfile.REGTYPE)],
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("a/llama-server")
            info.size, info.mode = len(VERSION_SCRIPT), 0o755
            tar.addfile(info, io.BytesIO(VERSION_SCRIPT.encode()))
            for member in members:
                tar.addfile(member)
        result.append(buffer.getvalue())
    return result


def _compressed(data: bytes, random: Random) -> bytes:
    """Compress most inputs, so that the changes reach the reader of the archive."""
    whole = gzip.compress(data, 1, mtime=0)
    dice = random.random()
    return data if dice < 0.05 else whole[: random.randint(0, len(whole))] if dice < 0.1 else whole


def _extract(data: bytes, folder: Path) -> object:
    archive, inner = _file(folder, "archive", data), folder / "inner"
    inner.mkdir()
    before = sorted(folder.iterdir())
    try:
        extract(archive, inner / "engine")
    finally:
        assert sorted(folder.iterdir()) == before, "a file came out of the folder"
        assert [path.name for path in inner.iterdir()] in ([], ["engine"]), "a file came out of the folder"
    return None


def _ggufs() -> Sequence[bytes]:
    return [(FIXTURES / "tiny-qwen3.f32.gguf").read_bytes()[:12_000]]


def _onnx_files() -> Sequence[bytes]:
    tensor, outside = (numpy_helper.from_array(np.ones(2, np.float32), name) for name in "wv")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    set_external_data(outside, location="w.bin")
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return [helper.make_model(helper.make_graph([node], "g", [], [], [tensor, outside])).SerializeToString()]


def _read_onnx(data: bytes, folder: Path) -> object:
    for name in ("tokenizer.json", "w.bin"):
        _file(folder, name, b"{}")
    files = files_of(_file(folder, "model.onnx", data))
    assert all(file.is_relative_to(folder) and file.is_file() for file in files)
    return len(files)


# State


_CUDA = {"accelerator": "cuda", "engine": "b", "driver": "535", "model": "m"}

_BUILDS = {"llama_server": "b", "onnx": "onnxruntime-1", "processors": "p"}


def _states() -> Sequence[bytes]:
    engine = {"url": "u", "sha256": "0" * 64, "version": "1"}
    documents: list[object] = [
        {"pid": 1, "start_time": 1.0, "version": "0.1.0", "socket": "/s", "draining": True},
        {"pid": 2**31, "start_time": 1e300, "version": "x", "socket": ""},
        {"version": 1, "llama_server": engine, "models": {"m": engine}},
        {"version": 1, "model": "/m", "idle_timeout": "10m", "queue_texts": 100, "cache_size": "64MiB", "http": "[::1]:0"},
        {"version": 1, "default_model": "m", "aliases": {"b": "m"}, "models": {"m": {"path": "/m", "keep_alive": "1m"}}},
        {"/m": {"size": 1, "mtime_ns": 1, "inode": 1, "sha256": "0"}},
        {"version": 1, "tunings": {"key": {"cores": 2, "profiles": []}}},
        {"version": 1, "no_repack": ["a"], "one_slot": []},
        {"seconds": 600.0, "since": time.time(), "boot": "b", "uptime": 1.0},
        [{"use": _CUDA, "reason": "lost", "at": "2026"}],
        [{"model": "m", "compared": [_CUDA], "chosen": _CUDA, "chosen_at": "2026"}],
        [{"model": "m", "builds": _BUILDS, "is_faster": True, "llama_server_rate": 1.0, "onnx_rate": 2.0, "cosine": 0.9999}],
    ]
    return [json.dumps(document).encode() for document in documents]


def _read_states(data: bytes, folder: Path) -> object:
    path = _file(folder, "state.json", data)
    record = DaemonRecord.read(path)
    audit = Audit(path, Settings(folder)).installed
    profile = choose_profile("balanced", pooling="mean", tuned=path, key="key")
    alive = record is not None and record.pid > 0 and record.is_alive()
    failure = DeviceFailures(path).reason(DeviceUse("cuda", "b", "535", "m"))
    choice = read_choice(path, "m")
    comparison = read_comparison(path, "m")
    figures = comparison and (comparison.figures, comparison.chooses_onnx)
    hold = read_hold(path)
    assert hold is None or (0 < hold.remaining <= LONGEST and hold.until)
    reap_orphan(path)
    assert not path.exists()
    return type(record), type(audit), type(profile), alive, type(failure), type(choice), type(figures), type(hold)


def _logs() -> Sequence[bytes]:
    facts = {"timestamp": datetime.now(UTC).isoformat(), "logger": "runed"}
    lines = [
        {**facts, "level": "error", "message": "the bootstrap failed", "reason": "DISK_FULL"},
        {**facts, "level": "error", "message": "failure in the event loop", "error_type": "ValueError"},
        {**facts, "level": "info", "message": "serving"},
    ]
    return [b"\n".join(json.dumps(line).encode() for line in lines)]


def _read_log(data: bytes, folder: Path) -> object:
    (folder / "logs").mkdir()
    _file(folder, "logs/events.log", data)
    return [(found.state, bool(found.remedy)) for found in last_errors(Patient(Settings(folder), Paths(folder)))]


def _drivers() -> Sequence[bytes]:
    icd = {"file_format_version": "1.0.0", "ICD": {"library_path": "/lib.so", "api_version": "1.3.230"}}
    nvidia = b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023"
    return [json.dumps(icd).encode(), nvidia, b"glibc-ld.so.cache1.1\0libcuda.so.1\0/lib.so\0/libcuda.so.1\0", b"10.0.1-12"]


def _read_drivers(data: bytes, folder: Path) -> object:
    for name in ("etc/ld.so.cache", "etc/vulkan/icd.d/x.json", "proc/driver/nvidia/version", "opt/rocm/.info/version"):
        _file(folder, name, data)
    for name in ("lib.so", "libcuda.so.1", "dev/kfd", "dev/nvidia0", "dev/dri/renderD128"):
        _file(folder, name, b"")
    return [(driver.accelerator, driver.has_device) for driver in find_drivers({}, root=folder, system="linux")]


def _read_settings(data: bytes, folder: Path) -> object:
    _file(folder, "config.json", data)
    with warnings.catch_warnings(action="ignore"):  # of keys that are like a setting
        return load_settings(home=folder, environ={})


def _centroids() -> Sequence[bytes]:
    header = {"format": 1, "model": "sha256:0", "version": "v", "dim": 4, "nlist": 2, "preset": "", "checksum": "0"}
    return [json.dumps(header).encode().ljust(4096) + np.eye(4, dtype="<f4")[:2].tobytes()]


def _vectors() -> Sequence[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache" / "vectors.sqlite"
        VectorFile(path, Path(folder) / "secret", max_bytes=32 * 2**20).close()
        return [path.read_bytes()]


def _read_vectors(data: bytes, folder: Path) -> object:
    path = _file(folder, "cache/vectors.sqlite", data)
    file = VectorFile(path, folder / "secret", max_bytes=32 * 2**20)
    try:
        return len(file.read([b"key"]))
    finally:
        file.close()


def _journals() -> Sequence[bytes]:
    record = {"version": 1, "options": {}, "space": {"model_identity": "m", "fingerprint": "f", "dim": 4}, "head": 0}
    mark = {"done": 1, "failed": 0, "inputs": "a", "size": 1, "checksum": 0}
    return [b"\n".join(json.dumps(line).encode() for line in (record, mark, {**mark, "done": 2, "size": 2}, b""[:0].decode()))]


def _read_journal(data: bytes, folder: Path) -> object:
    part = _file(folder, "out.part", b"abc")
    _file(folder, "out.part.journal", data)
    journal = Journal(part, resume=True, overwrite=False)
    journal.close()
    return journal.mark.done


# Inputs of jobs


def _read_batch(name: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        with open_batch(str(_file(folder, name, data))) as source:
            return sum(1 for _ in source())

    return read


def _arrays() -> Sequence[bytes]:
    return [
        b'["a text, ]", {"id": 7, "text": "another \\" one", "more": [1, {"a": null}]},\n {"text": "b", "id": "x"}]\n',
        b"\xef\xbb\xbf [ ]",
    ]


def _lines() -> Sequence[bytes]:
    return [
        b'"a text"\n{"id": 7, "text": "another", "more": [1, {"a": null}]}\n\n{"text": "b", "id": "x"}\n',
        b"\xef\xbb\xbf" + b'"a"',
    ]


def _tables() -> Sequence[bytes]:
    return [b'id,text\r\n1,"a ""quoted"" text"\r\n2,b\r\n', "text;id\nä;1\n".encode("utf-16"), b"text\n\n\nb\n"]


@cache
def _parquets() -> Sequence[bytes]:
    import pyarrow as pa  # noqa: PLC0415 # half a second
    import pyarrow.parquet as pq  # noqa: PLC0415

    result = []
    for table in (pa.table({"id": [1, 2], "text": ["a", "b"]}), pa.table({"text": pa.array(["a"]).dictionary_encode()})):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        result.append(buffer.getvalue())
    return result


# Answers to a client


def _answers() -> Sequence[bytes]:
    error = json.dumps({"code": "internal", "message": "m", "details": [{"type": "google.rpc.ErrorInfo", "value": "CgFh"}]})
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 3\r\n\r\n\x0a\x01a",
        b"HTTP/1.1 503 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(error), error.encode()),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ]


def _read_answer(data: bytes, _: Path) -> object:
    exchange = Exchange()
    exchange.request("Embed", b"", 1.0)
    for piece in (data, b""):
        if (answer := exchange.receive(piece)) is not None:
            return len(answer.message())
    return None


def _stream_answers() -> Sequence[bytes]:
    settings = SettingsFrame(0).serialize()
    headers = HeadersFrame(1, data=b"\x88", flags=["END_HEADERS"]).serialize()
    end = json.dumps({"error": {"code": "internal", "message": "m"}}).encode()
    body = struct.pack(">BI", 0, 3) + b"abc" + struct.pack(">BI", 2, len(end)) + end
    return [settings + headers + DataFrame(1, data=body, flags=["END_STREAM"]).serialize(), settings + headers]


def _read_stream(data: bytes, _: Path) -> object:
    exchange = StreamExchange("EmbedStream")
    exchange.send(b"abc")
    exchange.output()
    messages = exchange.receive(data)
    exchange.receive(b"")
    exchange.output()
    assert exchange.ended or exchange.failure is not None, "the stream neither ended nor failed"
    return len(messages), type(exchange.failure)


FILE_TARGETS = {
    "manifest": FileTarget(
        _manifests, _read_manifest, words=(b"https://[::1", b"http://", b"derive", b"../../a", b"file:///a")
    ),
    "archive": FileTarget(_archives, _extract, wrap=_compressed),
    "gguf": FileTarget(_ggufs, lambda data, folder: read_gguf(_file(folder, "m.gguf", data)), words=(b"GGUF", b"qwen3.")),
    "onnx": FileTarget(_onnx_files, _read_onnx, words=(b"w.bin", b"location", b"../", b"\x3a", b"\x2a", b"\x6a")),
    "state": FileTarget(_states, _read_states),
    "log": FileTarget(_logs, _read_log, words=(b'"level":"error"', b'"reason":', b'"timestamp":')),
    "drivers": FileTarget(_drivers, _read_drivers, words=(b"library_path", b"ICD", b"Kernel Module  5.1", b"/libcuda.so.1\0")),
    "config": FileTarget(_states, _read_settings, words=(b"queue_texts", b"idle_timeout", b"model")),
    "centroids": FileTarget(
        _centroids,
        lambda data, folder: load(_file(folder, "c.bin", data), dim=4, model="sha256:0"),
        expected=(*EXPECTED, UnusableFileError),
    ),
    "vectors": FileTarget(_vectors, _read_vectors, expected=(*EXPECTED, sqlite3.Error)),
    "journal": FileTarget(_journals, _read_journal),
    "jsonl": FileTarget(_lines, _read_batch("in.jsonl"), words=(b'"text":', b'"id":')),
    "array": FileTarget(_arrays, _read_batch("in.json"), words=(b'"text":', b'"id":', b"[", b"]", b",", b'"', b"\\")),
    "csv": FileTarget(_tables, _read_batch("in.csv"), words=(b"text", b"id", b",", b'"')),
    "lines": FileTarget(_lines, _read_batch("in.txt")),
    "parquet": FileTarget(_parquets, _read_batch("in.parquet")),
    "answer": FileTarget(_answers, _read_answer, expected=(*EXPECTED, BrokenAnswerError)),
    "stream-answer": FileTarget(_stream_answers, _read_stream),
}
"""The readers by name."""


def read_in_empty_folder(target: FileTarget, data: bytes) -> str:
    """Read an input. Return a word for what the reader did.

    Raises:
        Exception: The reader failed in a way that its callers do not expect.
    """
    folder = Path(tempfile.mkdtemp(prefix="fz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        return f"read {target.read(data, folder)!r}"[:80]
    except target.expected as error:
        return f"{type(error).__name__} {_line_of(error)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _line_of(error: BaseException) -> str:
    """Return the line that raised an error, of all that it came through the innermost."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"


def describe_crash(error: BaseException) -> str:
    """Return the type and place of an unexpected error: the innermost line of runed, and the innermost line."""
    ours, place = "", error.__traceback__
    while place is not None:
        name = place.tb_frame.f_code.co_filename
        if "/runed/" in name:
            ours = f"{Path(name).name}:{place.tb_lineno}"
        place = place.tb_next
    return f"{type(error).__name__} at {ours}, from {_line_of(error)}"
