"""A program with the command line and the HTTP interface of the worker with ONNX Runtime that misbehaves as a test asks.

See `misbehaving`. It reads no graph.
"""

from __future__ import annotations

import struct
import sys

from tests.fakes.misbehaving import Handler, serve, words

SEP = 319
IDS = 0x8000_0000
"""The bit of a size that marks ids of tokens."""


def pack_list(parts: list[bytes]) -> bytes:
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def read_text(part: bytes, *, is_ids: bool) -> str:
    """Return a text. Ids of tokens become words."""
    return " ".join(map(str, struct.unpack(f"<{len(part) // 4}i", part)[:-1])) if is_ids else part.decode()


class OnnxHandler(Handler):
    too_many = 2**32 - 1

    def respond(self, question: bytes) -> None:
        if self.path == "/spell":
            ids = struct.unpack(f"<{len(question) // 4}i", question)
            self.answer(200, pack_list([str(token).encode() for token in ids]))
            return
        (count,) = struct.unpack_from("<I", question)
        sizes, start = struct.unpack_from(f"<{count}I", question, 4), 4 + 4 * count
        texts = []
        for size in sizes:
            end = start + (size & ~IDS)
            texts.append(read_text(question[start:end], is_ids=bool(size & IDS)))
            start = end
        if self.path == "/tokenize":
            tokens = [[*words(text), SEP] for text in texts]
            self.answer(200, pack_list([struct.pack(f"<{len(ids)}i", *ids) for ids in tokens]))
        else:
            self.embed(texts)

    def pack(self, vectors: list[list[float]], counts: list[int]) -> bytes:
        values = [value for vector in vectors for value in vector]
        return struct.pack(f"<{len(counts)}I{len(values)}f", *counts, *values)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, message.encode())


def main() -> None:
    serve(sys.argv[sys.argv.index("--socket") + 1], OnnxHandler)
