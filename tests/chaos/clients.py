"""The clients of a run of chaos: Python and Go programs, plain gRPC, and jobs. Each calls on and on, and checks each answer."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
from runed_proto.runed.v1.runed_pb2 import EmbedBatchRequest, EmbedBatchResponse

import runed
from runed.errors import RunedError
from tests.chaos.ground import LEAST_COSINE, RUNED, Ground
from tests.chaos.report import Report
from tests.support import GRPC_OPTIONS, raw_stub

CALL_SECONDS = 20.0
"""The time limit of a call."""

OVERDUE_SECONDS = 15.0
"""Seconds after its time limit at which a call counts as hung, on a machine that is busy with other things, too."""

TRANSIENT = {
    *("BACKEND_UNAVAILABLE", "SHUTTING_DOWN", "QUEUE_FULL", "DEADLINE_EXCEEDED", "CANCELED", "BOOTSTRAPPING"),
    *("DAEMON_UNAVAILABLE", "DAEMON_START_FAILED", "FOREIGN_PATH", "LIFECYCLE"),
}
"""Reasons with which a call may be refused while something is broken on purpose."""

_TRANSIENT_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.CANCELLED,
}

_JOB_TEXTS = 1500


class ChaosClient(threading.Thread):
    """A client that runs until `stop` is called.

    Attributes:
        name: Its name in the report.
        since: The time at which its present call began, on the clock of `time.monotonic`; None between two calls.
    """

    def __init__(self, name: str, ground: Ground, report: Report) -> None:
        super().__init__(name=name, daemon=True)
        self.ground = ground
        self.report = report
        self.random = Random(f"{report.seed} {name}")
        self.since: float | None = None
        self.stopping = threading.Event()

    @abstractmethod
    def step(self) -> None:
        """Make a call, or a few, and check the answers."""

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 # told in the report, since a thread ends in silence
                self.report.violated(f"{self.name}: {type(error).__name__}: {error}")
                self.stopping.wait(1.0)
        self.close()

    def stop(self) -> None:
        """Begin the end of the thread."""
        self.stopping.set()

    def close(self) -> None:
        """Release what the client has, in its thread."""

    def overdue(self) -> bool:
        """Return whether the present call is far beyond its time limit."""
        return self.since is not None and time.monotonic() - self.since > CALL_SECONDS + OVERDUE_SECONDS

    def choose(self, most: int) -> list[int]:
        """Choose up to `most` texts, by number."""
        return [self.random.randrange(len(self.ground.texts)) for _ in range(self.random.randint(1, most))]

    def check(self, vectors: Iterable[tuple[int, list[float]]]) -> None:
        """Compare vectors with the references of their texts."""
        cosines = [self.ground.cosine(number, vector) for number, vector in vectors]
        self.report.compared(cosines)
        if cosines and min(cosines) < LEAST_COSINE:
            self.report.violated(f"{self.name}: a vector has the cosine {min(cosines):.6f} with its reference")

    def refused(self, reason: str, what: str) -> None:
        """Note a refused call or text."""
        self.report.called(self.name, reason)
        if reason not in TRANSIENT:
            self.report.violated(f"{self.name}: {what} was refused with {reason}")


class ProgramClient(ChaosClient):
    """A client that is a process of its own, which faults may kill or freeze.

    Attributes:
        process: The process; None between two processes.
        attacked: Whether a fault may have ended the process.
    """

    process: subprocess.Popen[str] | None = None
    attacked = False

    def stop(self) -> None:
        super().stop()
        if (process := self.process) is not None:
            process.kill()

    def started(self, command: list[str], environment: Mapping[str, str], errors: Path) -> subprocess.Popen[str]:
        """Start the process."""
        self.attacked = False
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        return self.process

    def ended(self, process: subprocess.Popen[str], errors: Path) -> None:
        """Reap the process, and check how it ended."""
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        code = process.wait()
        said = errors.read_text(errors="replace").strip()
        errors.unlink(missing_ok=True)
        if self.attacked or self.stopping.is_set():
            return
        last = said.rpartition("\n")[2]
        if "this is a bug" in said or "panic" in said or not raised(said).startswith(("runed.errors.", "nothing")):
            self.report.violated(f"{self.name}: ended with code {code}: {said[-600:]}")
        if code:
            self.report.called(self.name, f"exit code {code}")
            self.report.say(f"{self.name}: exit code {code}: {last[:300]}")
            self.stopping.wait(0.3)


def raised(said: str) -> str:
    """Return the exception that ended a Python program, by what it wrote; "nothing" without a stack trace.

    The message of an exception of ours may quote further lines of a log.
    """
    *_, trace = ["", *said.split("Traceback (most recent call last):\n")[1:]]
    return next((line for line in trace.splitlines() if not line.startswith(" ")), "nothing")


class DriverClient(ProgramClient):
    """A conformance driver: the public client of a language in a program of its own.

    Args:
        command: The command line of the driver.
        environment: Further settings of a daemon that the driver starts.
    """

    def __init__(
        self, name: str, command: list[str], ground: Ground, report: Report, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name, ground, report)
        self._driver = command
        self._environment = ground.environment(**(environment or {}))
        self._calls = 0

    def step(self) -> None:
        errors = self.ground.jobs.parent / f"{self.name}.stderr"
        process = self.started(self._driver, self._environment, errors)
        try:
            while not self.stopping.is_set() and self._converse(process):
                self.since = None
                self.stopping.wait(self.random.uniform(0.0, 0.2))
        finally:
            self.since = None
            if self.stopping.is_set():
                process.kill()
            self.ended(process, errors)

    def _converse(self, process: subprocess.Popen[str]) -> bool:
        """Let the driver make one call, and check its answer. Return False if the driver has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        question, numbers = self._next_call()
        self.since = time.monotonic()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return False
        line = process.stdout.readline()
        if not line.endswith("\n"):
            return False
        self._judge(question["call"], numbers, json.loads(line))
        return True

    def _next_call(self) -> tuple[dict[str, Any], list[int]]:
        self._calls += 1
        numbers = self.choose(self.random.choice([1, 1, 8, 32, 100]))
        texts = [self.ground.texts[number] for number in numbers]
        kind = self.random.choice(["embed_items", "embed_batch", "embed_stream", "embed_items", "count_tokens", "health"])
        args: dict[str, Any] = {"timeout_ms": int(CALL_SECONDS * 1000)}
        if kind == "embed_stream":
            args["items"] = [[str(index), text] for index, text in enumerate(texts)]
        elif kind != "health":
            args["texts"] = texts
        return {"id": str(self._calls), "call": kind, "args": args}, numbers

    def _judge(self, kind: str, numbers: list[int], answer: dict[str, Any]) -> None:
        if (error := answer.get("error")) is not None:
            self.refused(error["reason"], kind)
            return
        self.report.called(self.name, "ok")
        result = answer["result"]
        items = result.get("items")
        if items is None:
            return
        if isinstance(items, dict):
            items = [items.get(str(index)) for index in range(len(numbers))]
        if len(items) != len(numbers) or None in items:
            self.report.violated(f"{self.name}: {kind} of {len(numbers)} texts lost some of them")
            return
        for item in items:
            if "error" in item:
                self.refused(item["error"]["reason"], f"a text of {kind}")
        self.check((number, item["vector"]) for number, item in zip(numbers, items, strict=True) if "vector" in item)


class GrpcClient(ChaosClient):
    """Plain gRPC by grpcio, as of a program that knows only the contract. It never starts a daemon."""

    def __init__(self, ground: Ground, report: Report) -> None:
        super().__init__("grpc", ground, report)
        self._channel = grpc.insecure_channel(f"unix:{ground.paths.socket}", options=GRPC_OPTIONS)
        self._stub = raw_stub(self._channel, "/runed.v1.RunedService/EmbedBatch")

    def step(self) -> None:
        numbers = self.choose(16)
        request = EmbedBatchRequest(texts=[self.ground.texts[number] for number in numbers])
        self.since = time.monotonic()
        try:
            answer = EmbedBatchResponse.FromString(self._stub(request.SerializeToString(), timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            self.report.called(self.name, error.code().name)
            if error.code() not in _TRANSIENT_CODES:
                self.report.violated(f"grpc: EmbedBatch failed with {error.code().name}: {error.details()}")
            self.stopping.wait(0.1)
        else:
            self.report.called(self.name, "ok")
            self.check((number, list(item.vector)) for number, item in zip(numbers, answer.embeddings, strict=True))
        finally:
            self.since = None
        self.stopping.wait(self.random.uniform(0.0, 0.2))

    def close(self) -> None:
        self._channel.close()


class JobClient(ProgramClient):
    """Jobs of `runed embed`, each with `--resume` until its output is complete."""

    def __init__(self, ground: Ground, report: Report) -> None:
        super().__init__("job", ground, report)
        self._number = 0
        self._numbers: list[int] = []

    @property
    def _input(self) -> Path:
        return self.ground.jobs / f"in{self._number}.jsonl"

    @property
    def _output(self) -> Path:
        return self.ground.jobs / f"out{self._number}.jsonl"

    def step(self) -> None:
        if not self._numbers:
            self._numbers = [self.random.randrange(len(self.ground.texts)) for _ in range(_JOB_TEXTS)]
            lines = [{"id": index, "text": self.ground.texts[number]} for index, number in enumerate(self._numbers)]
            self._input.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        errors = self.ground.jobs.parent / "job.stderr"
        command = [str(RUNED), "embed", "--batch", str(self._input), "-o", str(self._output), "--resume"]
        process = self.started(command, self.ground.environment(), errors)
        process.communicate()
        self.ended(process, errors)
        if process.returncode == 0:
            self._judge()

    def _judge(self) -> None:
        """Check that the output has each text once, in order, with its vector; then begin the next job."""
        rows = [json.loads(line) for line in self._output.read_text().splitlines()]
        if [row["id"] for row in rows] != list(range(_JOB_TEXTS)):
            self.report.violated(f"job: the output of a job of {_JOB_TEXTS} texts has {len(rows)} rows, or in a wrong order")
            return
        self.check((number, row["embedding"]) for number, row in zip(self._numbers, rows, strict=True))
        self.report.jobs += 1
        self._input.unlink()
        self._output.unlink()
        self._number += 1
        self._numbers = []

    def finish(self, timeout: float) -> None:
        """Complete the job that is in work, without further faults."""
        until = time.monotonic() + timeout
        self.stopping.clear()
        while self._numbers and time.monotonic() < until:
            self.step()
        if self._numbers:
            self.report.violated(f"job: it is not complete {timeout:g} s after the last fault")


class Probe:
    """A client that no fault attacks. It tells when the daemon serves again.

    Args:
        command: The command line of a driver.
    """

    def __init__(self, command: list[str], ground: Ground) -> None:
        self._command = command
        self._ground = ground
        self._calls = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines = queue.Queue[str]()

    def embed(self, timeout: float) -> str:
        """Embed a new text, and another one by a connection of its own. Return "" if both succeeded, otherwise the reason.

        The program finds or starts a daemon, but keeps its connection, which may lead to a daemon that nobody else finds.
        """
        return self._embed_by_program(timeout) or self._embed_anew(timeout)

    def _embed_anew(self, timeout: float) -> str:
        try:
            with runed.connect(socket_path=self._ground.paths.socket) as client:
                client.embed(f"another probe {self._calls}", timeout=timeout)
        except RunedError as error:
            return error.reason
        return ""

    def _embed_by_program(self, timeout: float) -> str:
        self._calls += 1
        if self._process is None:
            self._start()
        args = {"texts": [f"probe {self._calls}"], "timeout_ms": max(1, int(timeout * 1000))}
        try:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"id": "probe", "call": "embed_batch", "args": args}) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout + 2.0)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.close()
            return "no answer in time"
        if not line:
            self.close()
            return "the probe could not connect"
        return str(json.loads(line).get("error", {}).get("reason", ""))

    def _start(self) -> None:
        lines = self._lines = queue.Queue[str]()
        process = self._process = subprocess.Popen(
            self._command,
            env=self._ground.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def read() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process = None
