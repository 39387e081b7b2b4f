"""A program with the command line and the HTTP interface of `llama-server` that misbehaves as a test asks; see `misbehaving`.

Further keys of `behaviour.json`, all optional:
    needs_no_repack: die of SIGILL in the warm-up, with the socket bound, unless `--no-repack` is given
    no_slots: refuse to erase slots
    no_eos: do not end a text with the EOS token
    devices: the lines of `--list-devices`
    on_device: the keys that hold instead for a start on a device
"""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import sys

from tests.fakes.misbehaving import BEHAVIOUR, Handler, serve, words

EOS = 319


def tokenize(content: str | list[str | int]) -> list[int]:
    """Return one token a word, and EOS. Like the real one, join the parts of a list: numbers stay, and no EOS is added."""
    if isinstance(content, list):
        return [token for part in content for token in ([part] if isinstance(part, int) else words(part))]
    return words(content) if BEHAVIOUR.get("no_eos") else [*words(content), EOS]


class LlamaHandler(Handler):
    too_many = 10**30

    def respond(self, question: bytes) -> None:
        wanted = json.loads(question)
        if self.path == "/tokenize":
            self.answer(200, json.dumps({"tokens": tokenize(wanted["content"])}).encode())
        elif self.path.startswith("/slots/"):
            if BEHAVIOUR.get("no_slots"):
                self.refuse(501, "This server does not support slots action.")
            else:
                self.answer(200, b"{}")
        else:
            texts = [wanted["input"]] if isinstance(wanted["input"], str) else wanted["input"]
            self.embed([text if isinstance(text, str) else " ".join(map(str, text[:-1])) for text in texts])

    def pack(self, vectors: list[list[float]], counts: list[int]) -> bytes:
        data = [
            {"index": index, "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()}
            for index, vector in enumerate(vectors)
        ]
        return json.dumps({"data": data[::-1], "usage": {"prompt_tokens": sum(counts)}}).encode()

    def refuse(self, status: int, message: str) -> None:
        error = {"code": status, "message": message, "type": "server_error" if status == 500 else "not_supported_error"}
        self.answer(status, json.dumps({"error": error}).encode())


def warm_up() -> None:
    if BEHAVIOUR.get("needs_no_repack") and "--no-repack" not in sys.argv:
        os.kill(os.getpid(), signal.SIGILL)


def main() -> None:
    if "--list-devices" in sys.argv:
        sys.stdout.write("\n  ".join(["Available devices:", *BEHAVIOUR.get("devices", [])]) + "\n")
        return
    if "--device" in sys.argv and sys.argv[sys.argv.index("--device") + 1] != "none":
        BEHAVIOUR.update(BEHAVIOUR.get("on_device", {}))
    serve(sys.argv[sys.argv.index("--host") + 1], LlamaHandler, warm_up)
