"""Four processes that embed by runed, against four that embed by a library of their own each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.lab import Daemon, Lab, say
from benchmarks.lifecycle import RUNED
from benchmarks.results import Row
from tools.minilm import package_folder
from tools.minilm_onnx import export

PEERS_HELP = "a Python that has fastembed and sentence-transformers; without it, they are left out"

PROCESSES = 4

SIZES = (1, 32)
"""Texts of a list."""

_SCRIPT = Path(__file__).with_name("peer_process.py")

_TEXTS = 20_000
"""Texts of a process. No text of runed's processes occurs twice."""

MIB = 1024 * 1024

_PROBE = "the same text for all libraries"

_SAME = 0.9999
"""Least cosine of the vectors of two libraries. They must compute the same model."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The figures of four processes with one library.

    Attributes:
        name: The name of the library.
        vector: The vector of `_PROBE`.
        first: Seconds from the start of the processes until all have a vector.
        rates: Texts per second of all processes together, by the texts of a list.
        memory: Bytes of all processes together, and of the daemon and its engine. A shared page counts once.
    """

    name: str
    vector: NDArray[np.float64]
    first: float
    rates: dict[int, float]
    memory: int


def measure_peers(lab: Lab) -> list[Row]:
    """Measure four processes at once: those of runed, with no daemon at first, and those of each library in turn."""
    if lab.peers is None:
        say("  left out: the libraries, since there is no --peers")
        return []
    with Daemon(lab.model) as daemon, daemon.as_home(), tempfile.TemporaryDirectory() as folder:
        subprocess.run([RUNED, "stop"], check=True, capture_output=True)
        ours = _measure(lab, "runed", [sys.executable, "runed", ""], lambda: _service(daemon))
        subprocess.run([RUNED, "stop"], check=True, capture_output=True)
        export(package_folder(), Path(folder))
        models = {"fastembed": Path(folder), "sentence-transformers": package_folder()}
        theirs = [
            _measure(lab, name, [str(lab.peers), name, str(model)])
            for name, model in models.items()
            if _has(lab.peers, name.replace("-", "_"))
        ]
    for peer in theirs:
        cosine = float(ours.vector @ peer.vector / np.linalg.norm(ours.vector) / np.linalg.norm(peer.vector))
        assert cosine >= _SAME, f"{peer.name} computes another model: cosine {cosine}"
    return peer_rows(ours, theirs) if theirs else []


def _has(python: Path, module: str) -> bool:
    """Return whether a Python has a library, and tell the user if it has not."""
    found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    if not found:
        say(f"  left out: {module}, since {python} cannot import it")
    return found


def _measure(lab: Lab, name: str, argv: Sequence[str], service: Callable[[], Iterable[int]] = tuple) -> Peer:
    """Measure four processes.

    Args:
        lab: The lab.
        name: The name of the library.
        argv: The Python, and the arguments of `peer_process`.
        service: Returns the process ids of what serves these processes.
    """
    python, *arguments = argv
    began = time.perf_counter()
    quiet = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    processes = [
        subprocess.Popen([python, _SCRIPT, *arguments], env=quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    try:
        texts = [lab.fresh_texts(_TEXTS) for _ in processes]
        vectors = _ask(processes, [[_PROBE, *texts[0]], *texts[1:]])
        first = time.perf_counter() - began
        rates = {size: sum(_ask(processes, [(size, lab.effort.slice_seconds)] * PROCESSES)) for size in SIZES}
        memory = sum(_proportional_bytes(pid) for pid in (*(process.pid for process in processes), *service()))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    say(f"  {name}: {first:.2f} s to the first vector, {rates} texts/s, {memory / MIB:.0f} MiB")
    return Peer(name, np.array(vectors[0]), first, rates, memory)


def _ask(processes: Sequence[subprocess.Popen[str]], questions: Sequence[object]) -> list[Any]:
    """Send a line to each process, and return their answers."""

    def ask(process: subprocess.Popen[str], question: object) -> object:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(question), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(ask, processes, questions))


def _service(daemon: Daemon) -> tuple[int, int]:
    """Return the process ids of the engine and of the daemon that serve a home, which the processes have started."""
    with daemon.connect() as client:
        engine = client.health().engine_pid
    return engine, psutil.Process(engine).ppid()


def _proportional_bytes(pid: int) -> int:
    """Return the memory of a process. Of a page that several processes share, each has its part."""
    return int(psutil.Process(pid).memory_full_info().pss)


def peer_rows(ours: Peer, theirs: Sequence[Peer]) -> list[Row]:
    """Judge the figures of runed against the best of the libraries."""
    name = f"{PROCESSES} processes"
    rates = [
        _row(
            f"{name}, {'single texts' if size == 1 else f'lists of {size}'}: throughput of the machine",
            {peer.name: peer.rates[size] for peer in (ours, *theirs)},
            "{:.0f} texts/s",
            more=True,
        )
        for size in SIZES
    ]
    memory = {peer.name: peer.memory / MIB for peer in (ours, *theirs)}
    first = {peer.name: peer.first for peer in (ours, *theirs)}
    return [
        *rates,
        _row(f"{name}: memory of all, with the daemon and the engine", memory, "{:.0f} MiB", more=False),
        _row(f"{name}: from their start to the first vector of all, no daemon before", first, "{:.2f} s", more=False),
    ]


def _row(name: str, figures: Mapping[str, float], form: str, *, more: bool) -> Row:
    """Judge a figure of runed, the first one, against those of the libraries. Return a row."""
    (_, ours), *theirs = figures.items()
    best = (max if more else min)(figure for _, figure in theirs)
    return Row(
        name,
        form.format(ours),
        ", ".join(f"{library} {form.format(figure)}" for library, figure in theirs),
        f"x {ours / best:.2f}",
        f"{'more' if more else 'less'} than each",
        ours > best if more else ours < best,
    )
