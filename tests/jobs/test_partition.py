"""Jobs of many files: each part counts once, whatever is interrupted, changed or done twice."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pa_parquet
import pytest

from runed.errors import BackendUnavailableError, EmptyTextError, RunedError, SettingsError
from runed.jobs.folders import OWN
from runed.jobs.job import JobResult
from runed.jobs.journal import Journal
from runed.jobs.outputs import part_of
from runed.jobs.partition import FileOptions, PartitionJob, run_here
from tests.cli import jobs
from tests.cli.stand_in import DIM, Options, StandIn
from tests.support import Golden, RunningDaemon, wait_until

ROWS = 300
"""Texts of each file."""


def texts_of(name: str) -> list[str]:
    return [f"{name} {number}" for number in range(ROWS)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a file of each kind."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    table = pa.table({"id": range(ROWS), "text": texts_of("a")})
    pa_parquet.write_table(table, folder / "a.parquet")
    (folder / "b.jsonl").write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts_of("b"))))
    (folder / "sub" / "c.csv").write_text("id,text\n" + "".join(f"{n},{t}\n" for n, t in enumerate(texts_of("c"))))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(text) + "\n" for text in texts_of("d")).encode()))
    (folder / "README").write_text("not a text to embed\n")
    (folder / "_SUCCESS").touch()
    return folder


TARGETS = ["a.parquet", "b.jsonl", "d.jsonl.gz.jsonl", "sub/c.csv.jsonl"]


class Runner:
    """Runs a job with stand-ins, and counts the texts that they are asked for."""

    def __init__(self, tmp_path: Path) -> None:
        self.output = tmp_path / "out"
        self.log = tmp_path / "log"
        self.complaints: list[str] = []

    def __call__(
        self, source: Path | str, *, resume: bool = False, lost_after: int = 0, fingerprint: str = "space-1", **options: object
    ) -> JobResult:
        job = PartitionJob(str(source), str(self.output), FileOptions(**options))  # type: ignore[typeddict-item] # of a test
        left = [lost_after]

        def connect() -> StandIn:
            """Return the stand-in of the next file, which may be lost during it."""
            here, left[0] = left[0], left[0] - ROWS
            lost = here if 0 < here <= ROWS else 0
            return StandIn(Options(log=str(self.log), lost_after=lost, fingerprint=fingerprint))

        return run_here(job, resume=resume, connect=connect, on_complaint=self.complaints.append)  # type: ignore[arg-type] # a stand-in

    def asked(self) -> list[str]:
        """Return the texts that were asked for since the last look."""
        texts = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return texts

    def written(self) -> dict[str, str]:
        """Return the id and the text's first vector value of all rows: enough to tell them apart."""
        rows = {}
        for path in sorted(self.output.rglob("*.jsonl")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                rows[f"{path.name} {row['index']}"] = str(row["embedding"])
        return rows

    def receipt(self, target: str) -> dict[str, object]:
        receipt: dict[str, object] = json.loads((self.output / OWN / f"{target}.json").read_text())
        return receipt


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_each_file_has_an_output_and_a_receipt(source: Path, run: Runner) -> None:
    assert run(source) == JobResult(count=4 * ROWS, failed=0)
    written = sorted(str(path.relative_to(run.output)) for path in run.output.rglob("*") if path.is_file())
    assert written == sorted([*TARGETS, *(f"{OWN}/{target}.json" for target in TARGETS)])
    table = pa_parquet.read_table(run.output / "a.parquet")
    assert table["id"].to_pylist() == [str(number) for number in range(ROWS)]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    lines = (run.output / "sub/c.csv.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(number) for number in range(ROWS)]
    receipt = run.receipt("a.parquet")
    assert (receipt["count"], receipt["failed"], receipt["fingerprint"]) == (ROWS, 0, "space-1")
    assert pa_dataset.dataset(run.output / "a.parquet").count_rows() == ROWS
    assert sorted(run.asked()) == sorted(text for name in "abcd" for text in texts_of(name))


def test_done_parts_count_without_being_embedded_again(source: Path, run: Runner) -> None:
    first = run(source)
    run.asked()
    assert run(source, resume=True) == first
    assert run.asked() == []
    with pytest.raises(SettingsError, match=r"holds 4 of the 4 parts of an earlier run; add --resume .* or --overwrite"):
        run(source)
    assert run(source, overwrite=True) == first
    assert len(run.asked()) == 4 * ROWS


@pytest.mark.parametrize("lost_after", [1, ROWS + 50, 4 * ROWS - 1])
def test_interrupted_job_goes_on_where_it_stopped(source: Path, run: Runner, lost_after: int) -> None:
    whole = Runner(run.output.parent / "whole")
    whole.output.mkdir(parents=True)
    whole(source)
    with pytest.raises(BackendUnavailableError):
        run(source, lost_after=lost_after)
    before = run.asked()
    assert run(source, resume=True) == JobResult(count=4 * ROWS, failed=0)
    after = run.asked()
    assert run.written() == whole.written()
    assert (run.output / "a.parquet").read_bytes() == (whole.output / "a.parquet").read_bytes()
    assert len(before) + len(after) <= 4 * ROWS + 512  # those in flight were not answered
    assert not list(run.output.rglob("*.part*"))


def test_changed_input_is_embedded_anew_and_others_are_not(source: Path, run: Runner) -> None:
    run(source)
    run.asked()
    (source / "b.jsonl").write_text('{"id": 1, "text": "another one"}\n')
    os.utime(source / "a.parquet")  # another time and the same content: it is read, and not embedded
    assert run(source, resume=True) == JobResult(count=3 * ROWS + 1, failed=0)
    assert run.asked() == ["another one"]
    assert any("b.jsonl was changed since" in complaint for complaint in run.complaints)


def test_changed_or_missing_output_is_made_again(source: Path, run: Runner) -> None:
    run(source)
    before = run.written()
    (run.output / "b.jsonl").unlink()
    damaged = (run.output / "sub/c.csv.jsonl").read_bytes()
    (run.output / "sub/c.csv.jsonl").write_bytes(damaged.replace(b"0", b"1"))
    (run.output / OWN / "d.jsonl.gz.jsonl.json").write_text("{")
    run.asked()
    assert run(source, resume=True) == JobResult(count=4 * ROWS, failed=0)
    assert sorted(run.asked()) == sorted(text for name in "bcd" for text in texts_of(name))
    assert run.written() == before


def test_part_without_a_receipt_is_not_done(source: Path, run: Runner) -> None:
    """As after a crash between the end of an output and its receipt."""
    run(source)
    run.asked()
    (run.output / OWN / "b.jsonl.json").unlink()
    assert run(source, resume=True) == JobResult(count=4 * ROWS, failed=0)
    assert sorted(run.asked()) == sorted(texts_of("b"))


def test_other_options_are_refused(source: Path, run: Runner) -> None:
    run(source)
    with pytest.raises(RunedError, match=r'a.parquet is of other options: role was "" and is "query"; undo the change'):
        run(source, resume=True, role="query")
    with pytest.raises(RunedError, match='dimensions was "" and is "8"'):
        run(source, resume=True, dimensions=8)


def test_parts_of_another_space_are_refused(source: Path, run: Runner) -> None:
    with pytest.raises(BackendUnavailableError):
        run(source, lost_after=ROWS + 1)
    with pytest.raises(
        RunedError, match=r'of another model or engine than those of other parts: .* "space-2" and not "space-1"'
    ):
        run(source, resume=True, fingerprint="space-2")
    assert sorted(path.name for path in run.output.glob("*.*")) == ["a.parquet"]
    assert run(source, fingerprint="space-2", overwrite=True) == JobResult(count=4 * ROWS, failed=0)


def test_part_that_another_process_writes_is_waited_for(source: Path, run: Runner) -> None:
    """As with speculative tasks: the later one finds the receipt of the earlier one, and embeds nothing."""
    run(source)
    run.asked()
    receipt = (run.output / OWN / "b.jsonl.json").read_bytes()
    (run.output / OWN / "b.jsonl.json").unlink()
    other = Journal(part_of(run.output / "b.jsonl"), resume=True, overwrite=False)
    results: list[JobResult] = []
    thread = threading.Thread(target=lambda: results.append(run(source, resume=True)))
    thread.start()
    wait_until(lambda: any("waiting for another process" in complaint for complaint in run.complaints))
    (run.output / OWN / "b.jsonl.json").write_bytes(receipt)
    other.remove()
    other.close()
    thread.join(30)
    assert results == [JobResult(count=4 * ROWS, failed=0)]
    assert run.asked() == []


def test_bad_text_ends_the_job_and_leaves_the_parts_before(source: Path, run: Runner) -> None:
    (source / "b.jsonl").write_text('"good"\n""\n')
    with pytest.raises(EmptyTextError, match=r"in/b.jsonl, line 2 is empty"):
        run(source)
    assert sorted(path.name for path in run.output.glob("*.*")) == ["a.parquet"]
    assert run(source, resume=True, keep_going=True) == JobResult(count=3 * ROWS + 2, failed=1)
    assert run.receipt("b.jsonl")["failed"] == 1


def test_file_without_texts_has_a_receipt_and_no_output(source: Path, run: Runner) -> None:
    (source / "b.jsonl").write_text("\n")
    assert run(source) == JobResult(count=3 * ROWS, failed=0)
    assert not (run.output / "b.jsonl").exists()
    assert run.receipt("b.jsonl")["output"] is None
    run.asked()
    assert run(source, resume=True).count == 3 * ROWS
    assert run.asked() == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "lies in the input"),
        ("out", "lies in the input"),
        ("b.jsonl", "is a file; many files need a directory"),
    ],
)
def test_output_never_becomes_input(source: Path, place: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PartitionJob(str(source), str(source / place)).begin()
    PartitionJob(str(source / "*.jsonl"), str(source / "out")).begin()
    with pytest.raises(SettingsError, match="lies in the input"):
        PartitionJob(str(source / "*.jsonl"), str(source)).begin()
    with pytest.raises(SettingsError, match="lies in the input"):
        PartitionJob(str(source / "*/*.jsonl"), str(source / "out")).begin()


def test_input_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SettingsError, match=r"has no file of a known format \(.json, "):
        PartitionJob(str(tmp_path / "in"), str(tmp_path / "out")).begin()
    with pytest.raises(SettingsError, match="nowhere cannot be used"):
        PartitionJob(str(tmp_path / "nowhere"), str(tmp_path / "out")).begin()
    with pytest.raises(TypeError, match="there is no option colour"):
        PartitionJob("a", "b", {"colour": "red"})  # type: ignore[typeddict-unknown-key] # as a caller without mypy


def test_files_that_are_left_out_are_told(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.md", "_hidden.md"):
        (tmp_path / name).write_text("a line\n")
    told: list[str] = []
    [part] = PartitionJob(str(tmp_path), f"{tmp_path}-out").begin(on_complaint=told.append)
    assert part.source == "a.txt"
    [line] = told
    assert line.startswith("left out, since the extension tells no known format: b.md and 1 more; --input-format ")
    told.clear()
    for location, options in ((tmp_path, {"input_format": "lines"}), (tmp_path / "*.txt", {})):
        PartitionJob(str(location), f"{tmp_path}-out", options).begin(on_complaint=told.append)  # type: ignore[arg-type] # a dict
    assert told == []


def test_job_goes_to_another_process(source: Path, tmp_path: Path) -> None:
    job = PartitionJob(str(source), str(tmp_path / "out"), {"role": "document"})
    assert pickle.loads(pickle.dumps(job)) == job


def test_vectors_are_those_of_the_daemon(minilm_daemon: RunningDaemon, minilm_golden: Golden, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    half = len(minilm_golden.texts) // 2
    for name, texts in (("a", minilm_golden.texts[:half]), ("b", minilm_golden.texts[half:])):
        pa_parquet.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    job = PartitionJob(str(folder / "*.parquet"), str(tmp_path / "out"), {"home": str(minilm_daemon.home)})
    assert run_here(job, resume=False).count == len(minilm_golden.texts)
    table = pa_parquet.read_table(tmp_path / "out")
    vectors = np.stack(table["embedding"].to_numpy())
    assert minilm_golden.cosines(vectors).min() >= 0.9999


def test_command_embeds_a_glob(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "vectors"
    assert jobs.here("--batch", f"{source}/**/[bc].*", "-o", output) == 0
    assert sorted(path.name for path in output.rglob("*.jsonl")) == ["b.jsonl", "c.csv.jsonl"]
    assert jobs.here("--batch", source, "-o", output, "--resume", "--format", "npy") == 0
    assert np.load(output / "a.parquet.npy").shape == (ROWS, DIM)
    with pytest.raises(jobs.WrongUsageError, match="many files need a directory for their vectors"):
        jobs.here("--batch", source)
    assert f"to {output}" in capfd.readouterr().err


def test_killed_command_loses_and_doubles_nothing(source: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    options = Options(log=os.fspath(log), pause=0.05, in_flight=20)
    done: Callable[[], int] = lambda: len(list((output / OWN).rglob("*.json"))) if output.exists() else 0  # noqa: E731 # short
    for parts in (1, 2, 3):
        process = jobs.start("--batch", source, "-o", output, "--resume", options=options)
        wait_until(lambda: done() >= parts or process.poll() is not None)  # noqa: B023 # waited for here
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = jobs.run("--batch", source, "-o", output, "--resume", options=options)
    assert last.returncode == 0, last.stderr
    receipts = [json.loads(path.read_text()) for path in (output / OWN).rglob("*.json")]
    assert sum(receipt["count"] for receipt in receipts) == 4 * ROWS
    assert (
        sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file() and OWN not in path.parts)
        == TARGETS
    )
    # Texts in flight at a kill, and rows that were not written yet, may be asked for again.
    assert len(log.read_text().splitlines()) <= 4 * ROWS + 3 * (options.in_flight + 256)
