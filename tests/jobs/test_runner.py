"""A program runs a job without the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import runed
from runed.errors import EmptyBatchError, EmptyTextError, SettingsError
from runed.jobs import inputs
from runed.jobs.inputs import Item
from runed.jobs.job import JobResult
from runed.jobs.runner import run_job
from tests.support import Golden, RunningDaemon


@pytest.fixture
def connect(qwen_daemon: RunningDaemon) -> Callable[[], runed.Client]:
    return lambda: runed.connect(home=qwen_daemon.home, spawn=False)


def test_vectors_are_those_of_the_reference_implementation(
    connect: Callable[[], runed.Client], tiny_golden: Golden, tmp_path: Path
) -> None:
    """The source is a callable of the program, like that of an adapter for a distributed runner."""
    progress: list[tuple[int, int]] = []
    complaints: list[str] = []
    result = run_job(
        lambda: (Item(text, f"text {index}") for index, text in enumerate(tiny_golden.texts)),
        tmp_path / "vectors.npy",
        connect=connect,
        on_progress=lambda done, total: progress.append((done, total)),
        on_complaint=complaints.append,
    )
    count = len(tiny_golden.texts)
    assert result == JobResult(count=count, failed=0)
    assert tiny_golden.cosines(np.load(tmp_path / "vectors.npy")).min() >= 0.9999
    assert (progress[0], progress[-1]) == ((0, count), (count, count))
    assert complaints == []


def test_failures_are_counted_and_told_to_the_callback(
    connect: Callable[[], runed.Client], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\ntwo\n")
    complaints: list[str] = []
    with inputs.open_batch(str(texts)) as source:
        result = run_job(
            source, tmp_path / "out.npy", connect=connect, dimensions=32, keep_going=True, on_complaint=complaints.append
        )
    assert result == JobResult(count=3, failed=1)
    assert [complaint.partition(" is ")[0] for complaint in complaints] == [f"{texts}, line 2"]
    assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, True, False]
    assert capfd.readouterr() == ("", "")


def test_text_of_which_the_model_reads_nothing_fails_alone(minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\u200b\n[SEP]\ntwo\n")

    def connect() -> runed.Client:
        return runed.connect(home=minilm_daemon.home, spawn=False)

    with inputs.open_batch(str(texts)) as source:
        with pytest.raises(EmptyTextError, match="line 2: the text has only special tokens"):
            run_job(source, tmp_path / "out.npy", connect=connect)
        result = run_job(source, tmp_path / "out.npy", connect=connect, keep_going=True, overwrite=True)
    assert result == JobResult(count=4, failed=2)
    assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, True, True, False]


def test_bad_input_connects_to_no_daemon(tmp_path: Path) -> None:
    def connect() -> runed.Client:
        raise AssertionError("the input is to be checked first")

    with pytest.raises(EmptyBatchError):
        run_job(lambda: inputs.from_arguments([]), tmp_path / "out.json", connect=connect)
    with pytest.raises(EmptyTextError, match="argument 2"):
        run_job(lambda: inputs.from_arguments(["one", " "]), tmp_path / "out.json", connect=connect)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_job_is_kept_and_resumed(connect: Callable[[], runed.Client], tmp_path: Path) -> None:
    output = tmp_path / "vectors.jsonl"
    interruptions = [KeyboardInterrupt()]
    complaints: list[str] = []

    def items() -> Iterator[Item]:
        for number in range(2000):
            yield Item(f"the text with the number {number}", f"text {number}")

    def interrupt(done: int, total: int) -> None:
        if total and done and interruptions:
            raise interruptions.pop()

    with pytest.raises(KeyboardInterrupt):
        run_job(items, output, connect=connect, on_progress=interrupt, on_complaint=complaints.append)
    assert "vectors are kept in" in complaints.pop()
    assert not output.exists()
    with pytest.raises(SettingsError, match="--resume"):
        run_job(items, output, connect=connect)
    started: list[int] = []
    run_job(items, output, connect=connect, resume=True, on_progress=lambda done, _total: started.append(done))
    assert started[0] > 0
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert output.read_bytes().count(b'"embedding"') == 2000


def test_a_job_that_is_interrupted_before_its_first_vector_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    def connect() -> runed.Client:
        raise KeyboardInterrupt

    complaints: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_job(lambda: inputs.from_arguments(["one"]), tmp_path / "out.npy", connect=connect, on_complaint=complaints.append)
    assert complaints == ["interrupted; nothing of out.npy is kept"]
    assert list(tmp_path.iterdir()) == []


def test_running_a_job_imports_nothing_of_the_command_line() -> None:
    program = "import sys, runed.jobs.runner; sys.exit(any(name.startswith(('runed.cli', 'argparse')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
