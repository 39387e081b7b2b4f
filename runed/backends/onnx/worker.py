"""The engine for ONNX graphs: a program that tokenizes texts and computes their vectors, over a UNIX socket.

    python -P worker.py --graph FOLDER --socket PATH --threads N

It is one file, and imports nothing of runed, so that it stays small and starts fast. It speaks HTTP/1.1 with kept connections.
Numbers are little-endian. A list is the sizes of its parts in bytes, as u32, and then the parts.

| request | question | answer |
|---|---|---|
| `GET /health` | | nothing |
| `POST /tokenize` | u32 n, list of n texts in UTF-8 | list of n texts, each as i32 ids of tokens |
| `POST /embed` | u32 n, list of n texts, each in UTF-8 or as ids | n x u32 numbers of tokens, n x dim float32 |
| `POST /spell` | i32 ids | list of the texts of the tokens, in UTF-8 |

Tokens include special ones. The size of a text that is written as ids has its highest bit set.

The answer to a wrong question has status 400, and 500 after a failure. Its body is one sentence, which quotes no text. Status
413 means that a text has too many tokens, and the body is only their number in digits.

The main thread computes, one question at a time. Each connection has a thread, which tokenizes. So the processor time of the
main thread shows whether the engine works, and `/health` is answered meanwhile. SIGTERM keeps its default: it ends the process
at once, also while it computes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socketserver
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

# All threads that compute are ONNX Runtime's. Those of numpy's library would cost memory, and those of the tokenizer would take
# the processors from the micro-batch that is computed.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Otherwise its import writes a number of this machine and a store of events for Microsoft below ~/.cache.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np  # it reads the environment above
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

Ids: TypeAlias = "NDArray[np.int32]"
"""The ids of the tokens of one text, including special tokens."""

Vectors: TypeAlias = "NDArray[np.float32]"

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
"""ONNX Runtime's names of its devices."""

MAX_QUESTION = 32 * 1024 * 1024
"""Most bytes of a question. The longest text that the daemon accepts has half of that."""

_MAX_LINE = 8 * 1024
"""Most bytes of a line in the head of a request."""

_IDS = 0x8000_0000
"""The bit of a size that marks ids of tokens."""

_MAX_PADDING = 32
"""Most tokens of padding in one run of the graph. A further run costs about as much as 10 to 14 tokens."""

_MAX_RUN_TOKENS = 1024
"""Most tokens of one run, with padding, unless a single text has more. Larger runs are not faster, and take more memory."""

_LARGE_RUN_TOKENS = 512
"""Tokens of a run after which its memory goes back to the system."""

_SPIN_MICROSECONDS = "20"
"""Time that a thread without work looks for some before it sleeps. Longer looks take the processors from other programs."""

_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 256 * 1024
"""The option of mallopt(3) for the bytes from which a freed block goes back to the system, and these. glibc keeps 32 MiB."""

_FATAL = 4
"""The level of the log at which ONNX Runtime tells only its own end."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""The inputs that a graph may have, each of shape (n, tokens)."""

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 500: "Internal Server Error"}


class RefusedError(Exception):
    """A question that gets another status than 200. `status` and `message` are those of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class StartError(Exception):
    """The engine cannot start. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The file `graph.json`, which describes a graph.

    Attributes:
        model: The ONNX file: a name in the folder of the description, or an absolute path.
        dim: The number of values of a vector.
        max_tokens: The most tokens of a text, including special tokens.
        pooling: "none" if the graph answers vectors, of shape (n, dim). Otherwise "mean", "cls" or "last": the graph answers
            the states of all tokens, of shape (n, tokens, dim), which are pooled here.
        normalized: Whether the vectors are left as they are. Otherwise they get unit norm here.
        output: The name of the output.
        pad_id: The id of the token that fills a shorter text up.
    """

    model: str
    dim: int
    max_tokens: int
    pooling: str
    normalized: bool
    output: str
    pad_id: int

    @classmethod
    def read(cls, folder: Path) -> Graph:
        """Read the description of a graph.

        Raises:
            OSError: It cannot be read.
            ValueError: It is damaged.
        """
        content = json.loads((folder / "graph.json").read_bytes())
        try:
            graph = cls(**{field.name: content[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"graph.json has no {error}") from None
        if graph.pooling not in {"none", "mean", "cls", "last"}:
            raise ValueError("graph.json names an unknown pooling")
        return graph


class Model:
    """A graph with its tokenizer.

    Args:
        folder: The folder with `graph.json`, `tokenizer.json` and mostly the ONNX file.
        threads: The number of threads that compute.
        provider: A key of `PROVIDERS`.
        max_tokens: The most tokens of a text, if the graph takes more.

    Raises:
        StartError: The device is not there, or the graph needs something else than texts.
        Exception: The files are damaged, or missing. The classes are those of the libraries.
    """

    def __init__(self, folder: Path, *, threads: int, provider: str = "cpu", max_tokens: int = sys.maxsize) -> None:
        self.graph = Graph.read(folder)
        self._max_tokens = min(max_tokens, self.graph.max_tokens)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        if isinstance(self._tokenizer.decoder, decoders.WordPiece):
            self._tokenizer.decoder = decoders.WordPiece(self._tokenizer.decoder.prefix, cleanup=False)  # for `spell`
        self._session = _open(folder / self.graph.model, threads=threads, provider=provider)
        self._types = {node.name: np.int32 if node.type == "tensor(int32)" else np.int64 for node in self._session.get_inputs()}
        if unknown := self._types.keys() - set(_INPUTS):
            raise StartError(f"the graph has inputs that texts do not give: {', '.join(sorted(unknown))}")
        self._was_large = False
        self._plain, self._giving_back = ort.RunOptions(), ort.RunOptions()
        for options in (self._plain, self._giving_back):
            options.log_severity_level = _FATAL  # an error of a run may tell a token
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def tokenize(self, texts: Sequence[str]) -> list[Ids]:
        """Return the tokens of each text, including special tokens."""
        return [np.array(encoding.ids, np.int32) for encoding in self._tokenizer.encode_batch_fast(texts)]

    def spell(self, index: int) -> str:
        """Return the text of a token. A part of a character is written as U+FFFD.

        Raises:
            RefusedError: There is no such token.
        """
        token = self._tokenizer.id_to_token(index) if index >= 0 else None
        if token is None:
            raise RefusedError("no token has this id")
        decoder = self._tokenizer.decoder
        if token in self._special or decoder is None:
            return token
        text: str = decoder.decode(["a", token])  # after another token, since the first one loses its space
        return text.removeprefix("a")

    def check(self, texts: Sequence[Ids]) -> None:
        """Refuse texts that the model cannot read, which are given as tokens.

        Raises:
            RefusedError: A text has no tokens, or too many, or ids that do not exist.
        """
        for text in texts:
            if not text.size:
                raise RefusedError("a text has no tokens")
            if text.size > self._max_tokens:
                raise RefusedError(str(text.size), 413)

    def embed(self, texts: Sequence[Ids]) -> Vectors:
        """Return the vectors, of shape (n, dim), of n texts that `check` has accepted."""
        vectors = np.empty((len(texts), self.graph.dim), np.float32)
        for run in plan_runs([text.size for text in texts]):
            vectors[run] = self._run([texts[index] for index in run])
        return vectors

    def _run(self, texts: Sequence[Ids]) -> Vectors:
        """Return the vectors of some texts, the longest first, by one run of the graph."""
        lengths = np.array([text.size for text in texts])
        places = np.arange(lengths[0])
        mask = places < lengths[:, np.newaxis]
        ids = np.full(mask.shape, self.graph.pad_id)
        ids[mask] = np.concatenate(texts)
        values = (ids, mask, np.zeros_like(ids), np.broadcast_to(places, ids.shape))
        every = dict(zip(_INPUTS, values, strict=True))
        feeds = {name: every[name].astype(kind) for name, kind in self._types.items()}
        is_large = mask.size > _LARGE_RUN_TOKENS
        # The answer of a large run is still in memory at its end, so the next run gives that back.
        options = self._giving_back if is_large or self._was_large else self._plain
        self._was_large = is_large
        [answer] = self._session.run([self.graph.output], feeds, options)
        vectors = _pool(answer, self.graph.pooling, mask)
        return vectors if self.graph.normalized else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plan_runs(lengths: Sequence[int]) -> list[list[int]]:
    """Divide texts into runs of the graph, each of texts of about the same length.

    Args:
        lengths: The number of tokens of each text.

    Returns:
        The indices of the texts of each run, the longest text first.
    """
    runs: list[list[int]] = []
    width = padding = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padding += width - lengths[index]
        if not runs or padding > _MAX_PADDING or (len(runs[-1]) + 1) * width > _MAX_RUN_TOKENS:
            runs.append([])
            width, padding = lengths[index], 0
        runs[-1].append(index)
    return runs


def _pool(answer: Vectors, pooling: str, mask: NDArray[np.bool_]) -> Vectors:
    """Return the vectors, of shape (n, dim), of the answer of a graph. The mask, of shape (n, tokens), tells its tokens."""
    pooled = answer
    if pooling == "mean":
        pooled = np.einsum("nt,ntd->nd", mask.astype(np.float32), answer) / mask.sum(axis=1, dtype=np.float32)[:, np.newaxis]
    elif pooling == "cls":
        pooled = answer[:, 0]
    elif pooling == "last":
        pooled = answer[np.arange(len(mask)), mask.sum(axis=1) - 1]
    return pooled


def _open(path: Path, *, threads: int, provider: str) -> ort.InferenceSession:
    """Load a graph.

    Raises:
        StartError: The installed ONNX Runtime does not have the device, or cannot use it.
    """
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        there = ", ".join(ort.get_available_providers())
        raise StartError(f"the installed ONNX Runtime has no {wanted}, only {there}; install one that has it")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a pattern for each shape, of which there are thousands
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    session = ort.InferenceSession(str(path), options, providers=[wanted])
    if session.get_providers()[0] != wanted:  # it falls back to the processors
        raise StartError(f"ONNX Runtime cannot use its {wanted} on this machine; choose another device")
    return session


class _Task:
    """Texts for the main thread, which `Model.check` has accepted."""

    def __init__(self, texts: Sequence[Ids]) -> None:
        self._texts = texts
        self._answer: SimpleQueue[Vectors | None] = SimpleQueue()

    def compute(self, model: Model) -> None:
        """Compute the answer, on the main thread."""
        try:
            self._answer.put(model.embed(self._texts))
        except Exception as error:  # noqa: BLE001 # the next question may be answered
            _tell(f"computing failed with {type(error).__name__}")  # not its message, which may tell a token
            self._answer.put(None)

    def result(self) -> Vectors:
        """Wait for the answer.

        Raises:
            RefusedError: Computing failed.
        """
        vectors = self._answer.get()
        if vectors is None:
            raise RefusedError("computing failed; the log of the engine tells the kind of the failure", 500)
        return vectors


class _Server(socketserver.ThreadingUnixStreamServer):
    """Accepts connections. Each one has a thread.

    Args:
        path: The socket, which must not exist.
        model: The model.
        tasks: The questions for the main thread.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, model: Model, tasks: SimpleQueue[_Task]) -> None:
        self.model = model
        self.tasks = tasks
        super().__init__(path, _Connection)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 # socketserver calls it so
        """Note an error that closes a connection. Its trace could quote a text."""
        if not isinstance(error := sys.exception(), ConnectionError):  # otherwise the other end has gone
            _tell(f"a connection ended with {type(error).__name__}")


class _Connection(socketserver.StreamRequestHandler):
    """Answers the requests of one connection, one after the other."""

    server: _Server

    def handle(self) -> None:
        """Answer requests until the other end closes the connection, or sends something that is not HTTP."""
        while head := self._read_head():
            method, path, size = head
            if size > MAX_QUESTION:
                self._send(400, f"a question has at most {MAX_QUESTION} bytes; ask for fewer texts at once".encode())
                return  # the question follows, and is not read
            question = self.rfile.read(size)
            if len(question) < size:
                return
            try:
                status, body = 200, self._answer(method, path, question)
            except RefusedError as error:
                status, body = error.status, error.message.encode()
            except Exception as error:  # noqa: BLE001 # each question gets an answer
                status, body = 500, f"the question failed with {type(error).__name__}".encode()
            self._send(status, body)
            if size > _LARGE_BLOCK:  # tokens take many times the memory of their text, in small blocks
                with suppress(AttributeError):  # no glibc
                    ctypes.CDLL(None).malloc_trim(0)

    def _read_head(self) -> tuple[str, str, int] | None:
        """Read the head of a request. Return its method, its path and the size of its body; None if there is none."""
        match self.rfile.readline(_MAX_LINE).decode("latin-1").split():
            case [method, path, _]:
                size = 0
            case _:
                return None
        while line := self.rfile.readline(_MAX_LINE).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                if not value.strip().isdigit():
                    return None
                size = int(value)
        return method, path, size

    def _send(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def _answer(self, method: str, path: str, question: bytes) -> bytes:
        """Return the body of the answer.

        Raises:
            RefusedError: The question has another answer than 200.
        """
        answer = {
            ("GET", "/health"): self._health,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/embed"): self._embed,
            ("POST", "/spell"): self._spell,
        }.get((method, path))
        if answer is None:
            raise RefusedError("there is no such question", 404)
        return answer(question)

    def _health(self, _: bytes) -> bytes:
        return b""

    def _tokenize(self, question: bytes) -> bytes:
        return pack_list([ids.tobytes() for ids in self._read_texts(question)])

    def _embed(self, question: bytes) -> bytes:
        texts = self._read_texts(question)
        self.server.model.check(texts)
        task = _Task(texts)
        self.server.tasks.put(task)
        return np.array([text.size for text in texts], "<u4").tobytes() + task.result().astype("<f4", copy=False).tobytes()

    def _spell(self, question: bytes) -> bytes:
        if len(question) % 4:
            raise RefusedError("the question is damaged")
        return pack_list([self.server.model.spell(index).encode() for index in np.frombuffer(question, "<i4").tolist()])

    def _read_texts(self, question: bytes) -> list[Ids]:
        """Return the tokens of each text of a question."""
        texts = unpack_texts(question)
        written = [text for text in texts if isinstance(text, str)]
        tokens = iter(self.server.model.tokenize(written))
        return [next(tokens) if isinstance(text, str) else text for text in texts]


def pack_list(parts: Sequence[bytes]) -> bytes:
    """Return a list: the sizes of its parts, and the parts."""
    return np.array([len(part) for part in parts], "<u4").tobytes() + b"".join(parts)


def unpack_texts(question: bytes) -> list[str | Ids]:
    """Return the texts of a question, each as it is written there.

    Raises:
        RefusedError: The question is damaged.
    """
    count = int.from_bytes(question[:4], "little")
    start = 4 + 4 * count
    if start > len(question):
        raise RefusedError("the question is damaged")
    texts: list[str | Ids] = []
    for size in np.frombuffer(question, "<u4", count, 4).tolist():
        part = question[start : start + (size & ~_IDS)]
        start += size & ~_IDS
        try:
            texts.append(np.frombuffer(part, "<i4") if size & _IDS else part.decode())
        except ValueError:  # also for bytes that are no UTF-8, which its message would quote
            raise RefusedError("the question is damaged") from None
    if start != len(question):
        raise RefusedError("the question is damaged")
    return texts


def _tell(line: str) -> None:
    """Write a line to the log of the engine."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 # the daemon reads it


def main() -> int:
    """Load the model, and answer questions until a signal ends the process.

    Returns:
        The exit code: 2 if the device or the graph cannot be used at all, 3 if the graph is damaged.
    """
    parser = argparse.ArgumentParser(description="Compute vectors with ONNX Runtime, over a UNIX socket.")
    parser.add_argument("--graph", type=Path, required=True, help="the folder of graph.json, model.onnx and tokenizer.json")
    parser.add_argument("--socket", required=True, help="the socket to listen on, at a path where nothing is yet")
    parser.add_argument("--threads", type=int, required=True, help="the threads that compute")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="the device (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=sys.maxsize, help="the most tokens of a text")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a handler of Python would wait until the run of a graph ends
    os.umask(0o077)
    with suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    tasks: SimpleQueue[_Task] = SimpleQueue()
    try:
        model = Model(arguments.graph, threads=arguments.threads, provider=arguments.provider, max_tokens=arguments.max_tokens)
    except StartError as error:
        _tell(str(error))
        return 2
    except Exception as error:  # noqa: BLE001 # the libraries have classes of their own
        reason = next(iter(str(error).splitlines()), "")
        _tell(f"the graph in {arguments.graph} cannot be served: {type(error).__name__}: {reason}")
        return 3
    server = _Server(arguments.socket, model, tasks)
    threading.Thread(target=server.serve_forever, args=(3600.0,), daemon=True).start()  # s between looks for its end
    while True:
        tasks.get().compute(model)


if __name__ == "__main__":
    sys.exit(main())
