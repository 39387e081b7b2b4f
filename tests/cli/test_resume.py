"""Interrupted jobs of `runed embed --batch`: nothing is lost or doubled, and a file never has vectors of two models."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runed.errors import RunedError, SettingsError
from tests.cli import jobs
from tests.cli.stand_in import DIM, Options
from tests.cli.support import Cli
from tests.support import wait_until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COUNT = 2000
FORMATS = ["json", "jsonl", "npy", "parquet"]


def write_texts(path: Path, count: int = COUNT) -> Path:
    path.write_text("".join(json.dumps({"id": f"n{number}", "text": f"text {number}"}) + "\n" for number in range(count)))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl")


def part_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part.journal")


def done_rows(output: Path) -> int:
    """Return the number of rows that are done by the journal of a job; 0 without a journal."""
    try:
        lines = journal_of(output).read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["done"]) if lines else 0


def interrupt_after(texts: Path, output: Path, answered: int, *arguments: str) -> None:
    """Run a job during which the daemon goes away."""
    with pytest.raises(RunedError, match="stand-in: gone"):
        jobs.here("--batch", texts, "-o", output, *arguments, options=Options(lost_after=answered))


@pytest.mark.parametrize("output_format", ["jsonl", "npy", "parquet"])
@pytest.mark.slow
def test_job_that_is_killed_again_and_again_gives_the_same_file(texts: Path, tmp_path: Path, output_format: str) -> None:
    whole, output, log = (tmp_path / f"{name}.{output_format}" for name in ("whole", "out", "log"))
    assert jobs.here("--batch", texts, "-o", whole) == 0
    chance = random.Random(output_format)
    options = Options(log=os.fspath(log), pause=0.002)
    killed, done = 0, 0
    while killed < 3:
        process = jobs.start("--batch", texts, "-o", output, "--resume", options=options)
        target = done + chance.randrange(1, COUNT // 5)
        wait_until(lambda: done_rows(output) >= min(target, COUNT) or process.poll() is not None)  # noqa: B023 # waited for here
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        killed += 1
        assert not output.exists()
        assert done_rows(output) >= done, "work was lost"
        done = done_rows(output)
    else:  # on a busy machine, the job may have ended before it could be killed; another run would begin anew
        last = jobs.run("--batch", texts, "-o", output, "--resume", options=options)
        assert (last.returncode, last.stdout) == (0, b"")
    assert killed >= 2
    assert output.read_bytes() == whole.read_bytes()
    asked = log.read_text().splitlines()
    assert set(asked) == {f"text {number}" for number in range(COUNT)}
    # Texts in flight at the kill were never answered and may be sent again. Rows on the disk may not.
    assert len(asked) <= COUNT + killed * (options.in_flight + 256)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([texts.name, whole.name, output.name, log.name])


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet.gz", "utf-16", "NaN and blank lines"])
def test_killed_job_with_input_of_another_form_gives_the_same_file(texts: Path, tmp_path: Path, kind: str) -> None:
    data = texts.read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    path = tmp_path / {"utf-16": "t.jsonl", "NaN and blank lines": "t.jsonl"}.get(kind, f"t.{kind}")
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    elif kind == "jsonl.zst":
        path.write_bytes(zstd.compress(data))
    elif kind == "parquet.gz":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=100)
        path.write_bytes(gzip.compress(stream.getvalue()))
    elif kind == "utf-16":
        path.write_bytes(data.decode().encode("utf-16"))
    else:
        path.write_bytes(data.replace(b"{", b'\n{"x": NaN, "y": "\\ud800", '))
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert jobs.here("--batch", texts, "-o", whole) == 0
    process = jobs.start("--batch", path, "-o", output, options=Options(pause=0.02))
    wait_until(lambda: done_rows(output) or process.poll() is not None)
    process.kill()
    process.communicate()
    assert 0 < done_rows(output) < COUNT
    assert jobs.here("--batch", path, "-o", output, "--resume") == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("output_format", "syncs"), [("npy", 5), ("parquet", 6)])
@pytest.mark.slow
def test_job_that_dies_at_any_step_of_its_beginning_and_end_gives_the_same_file(
    tmp_path: Path, output_format: str, syncs: int
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", 100)
    whole, output = tmp_path / f"whole.{output_format}", tmp_path / f"out.{output_format}"
    assert jobs.here("--batch", texts, "-o", whole) == 0
    deaths = 0
    for number in itertools.count(1):
        done = jobs.run("--batch", texts, "-o", output, options=Options(die_at_sync=number))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        # After the renaming, only the journal remains to be removed.
        renamed = output.exists()
        options = Options(lost_after=1) if renamed else None  # the first text of a part would fail, if there was one
        assert jobs.here("--batch", texts, "-o", output, "--resume", options=options) == 0
        assert output.read_bytes() == whole.read_bytes()
        output.unlink()
        assert {entry.name for entry in tmp_path.iterdir()} == {texts.name, whole.name}
    assert deaths == syncs


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    """The folders of jobs of 600 texts that were interrupted in the middle, and their complete results, by format."""
    results = {}
    for output_format in FORMATS:
        folder = tmp_path_factory.mktemp(output_format)
        texts, output = write_texts(folder / "texts.jsonl", 600), folder / f"out.{output_format}"
        assert jobs.here("--batch", texts, "-o", output) == 0
        whole = output.read_bytes()
        output.unlink()
        interrupt_after(texts, output, 400)
        results[output_format] = folder, whole
    return results


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    output_format=st.sampled_from(FORMATS),
    part=st.floats(0, 1),
    journal=st.floats(0, 1),
    zeros=st.integers(0, 8192),
)
def test_whatever_a_power_failure_left_of_the_files_is_told_from_what_it_did_not(
    interrupted: dict[str, tuple[Path, bytes]], output_format: str, part: float, journal: float, zeros: int
) -> None:
    origin, whole = interrupted[output_format]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(origin, folder, dirs_exist_ok=True)
        output = folder / f"out.{output_format}"
        record_size = journal_of(output).read_bytes().index(b"\n") + 1  # synced before the part is created
        for path, share, least in ((part_of(output), part, 0), (journal_of(output), journal, record_size)):
            # A file may have its new length without its new content.
            size = max(least, int(path.stat().st_size * share))
            os.truncate(path, size)
            os.truncate(path, size + zeros)
        assert jobs.here("--batch", folder / "texts.jsonl", "-o", output, "--resume") == 0
        assert output.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_what_is_done_and_says_how_to_go_on(texts: Path, tmp_path: Path, number: int) -> None:
    output = tmp_path / "out.npy"
    process = jobs.start("--batch", texts, "-o", output, options=Options(pause=0.02))
    wait_until(lambda: done_rows(output))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    done = done_rows(output)
    assert errors.decode() == (
        f"runed: the first {done:,} vectors are kept in {part_of(output)}; add --resume to the same command to go on\n"
    )
    log = tmp_path / "log"
    assert jobs.here("--batch", texts, "-o", output, "--resume", options=Options(log=os.fspath(log))) == 0
    assert sorted(log.read_text().splitlines()) == sorted(f"text {number}" for number in range(done, COUNT))
    assert np.load(output).shape == (COUNT, DIM)


def test_interruption_before_the_first_vector_leaves_nothing(texts: Path, tmp_path: Path) -> None:
    interrupt_after(texts, tmp_path / "out.npy", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == [texts.name]


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n\n")
    with pytest.raises(RunedError, match="line 2 is empty"):
        jobs.here("--batch", texts, "-o", tmp_path / "out.npy")
    assert [entry.name for entry in tmp_path.iterdir()] == [texts.name]


def test_what_is_kept_is_neither_overwritten_nor_resumed_unasked(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    interrupt_after(texts, output, 1000)
    kept = part_of(output).read_bytes()
    with pytest.raises(SettingsError, match=r"out\.npy\.part holds the first [\d,]+ vectors .* --resume .* --overwrite"):
        jobs.here("--batch", texts, "-o", output)
    assert part_of(output).read_bytes() == kept
    log = tmp_path / "log"
    assert jobs.here("--batch", texts, "-o", output, "--overwrite", options=Options(log=os.fspath(log))) == 0
    assert len(log.read_text().splitlines()) == COUNT
    assert not part_of(output).exists()


def test_part_that_is_no_part_of_ours_is_left_alone(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    part_of(output).write_text("half a film")
    for arguments in ((), ("--resume",)):
        with pytest.raises(SettingsError, match="exists, and not from an interrupted job"):
            jobs.here("--batch", texts, "-o", output, *arguments)
    assert part_of(output).read_text() == "half a film"
    assert not journal_of(output).exists()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["--role", "query"], Options(), 'of other options: role was not given and is "query"'),
        (["--dimensions", "8"], Options(), 'of other options: dimensions was not given and is "8"'),
        (["--truncate", "end"], Options(), 'of other options: truncate was "none" and is "end"'),
        (["--format", "jsonl"], Options(), 'of other options: format was "npy" and is "jsonl"'),
        ([], Options(fingerprint="space-2"), 'of another model or engine: its fingerprint was "space-1" and is "space-2"'),
    ],
)
def test_another_job_is_not_taken_for_the_same(
    texts: Path, tmp_path: Path, arguments: list[str], options: Options, message: str
) -> None:
    output = tmp_path / "out.npy"
    interrupt_after(texts, output, 1000)
    kept = part_of(output).read_bytes()
    with pytest.raises(RunedError) as caught:
        jobs.here("--batch", texts, "-o", output, "--resume", *arguments, options=options)
    assert message in caught.value.message
    assert "start anew with --overwrite" in caught.value.message
    assert part_of(output).read_bytes() == kept
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0


def test_job_goes_on_by_another_name_of_the_same_model(texts: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.npy", tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", whole) == 0
    interrupt_after(texts, output, 1000)
    assert jobs.here("--batch", texts, "-o", output, "--resume", "--model", "another-name") == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("change", ["text", "id", "order", "shorter"])
def test_input_whose_done_texts_changed_is_refused(texts: Path, tmp_path: Path, change: str) -> None:
    output = tmp_path / "out.npy"
    interrupt_after(texts, output, 1000)
    lines = texts.read_text().splitlines()
    changed = {
        "text": [lines[0], lines[1].replace("text 1", "text one"), *lines[2:]],
        "id": [lines[0], lines[1].replace("n1", "n-one"), *lines[2:]],
        "order": [lines[1], lines[0], *lines[2:]],
        "shorter": lines[:100],
    }[change]
    texts.write_text("\n".join(changed))
    with pytest.raises(RunedError, match=r"of another input: its first [0-9,]+ texts or ids are not the same any more"):
        jobs.here("--batch", texts, "-o", output, "--resume")
    texts.write_text("\n".join(lines))
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_follows_the_done_texts_may_be_corrected_and_continued(texts: Path, tmp_path: Path, output_format: str) -> None:
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join([*lines[:1500], '"fail:TEXT_TOO_LONG"', *lines[1501:]]))
    whole, output = tmp_path / f"whole.{output_format}", tmp_path / f"out.{output_format}"
    with pytest.raises(RunedError, match="line 1501: the text is bad"):
        jobs.here("--batch", texts, "-o", output)
    assert done_rows(output) == 1500
    texts.write_text("\n".join([*lines, *lines, *lines, *lines]))
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    assert jobs.here("--batch", texts, "-o", whole) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_job_that_stopped_at_a_bad_text_goes_on_past_it(texts: Path, tmp_path: Path) -> None:
    with texts.open("a") as file:
        file.write('"fail:TEXT_TOO_LONG"\n"the last"\n')
    output = tmp_path / "out.parquet"
    with pytest.raises(RunedError, match=f"line {COUNT + 1}: the text is bad"):
        jobs.here("--batch", texts, "-o", output)
    assert jobs.here("--batch", texts, "-o", output, "--resume", "--keep-going") == 1
    rows = pyarrow.parquet.read_table(output).slice(COUNT).to_pylist()
    assert [row["error"] is None for row in rows] == [False, True]


def test_failures_before_an_interruption_are_still_told_after_it(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    texts.write_text('"fail:TEXT_TOO_LONG"\n' + texts.read_text())
    with pytest.raises(RunedError, match="gone"):
        jobs.here("--batch", texts, "-o", output, "--keep-going", options=Options(lost_after=1000))
    assert jobs.here("--batch", texts, "-o", output, "--keep-going", "--resume") == 1


def test_standard_input_is_resumed_by_the_same_texts(texts: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "out.npy", tmp_path / "log"
    first = jobs.run("--batch", "-", "-o", output, stdin=texts.read_bytes(), options=Options(lost_after=1000))
    assert (first.returncode, first.stderr.count(b"\n")) == (1, 2)
    done = done_rows(output)
    assert done > 0
    options = Options(log=os.fspath(log))
    assert jobs.run("--batch", "-", "-o", output, "--resume", stdin=texts.read_bytes(), options=options).returncode == 0
    assert len(log.read_text().splitlines()) == COUNT - done


def test_two_at_once_do_not_write_the_same_file(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    process = jobs.start("--batch", texts, "-o", output, options=Options(pause=0.02))
    try:
        wait_until(lambda: done_rows(output))
        for arguments in ((), ("--resume",), ("--overwrite",)):
            with pytest.raises(RunedError, match="another `runed embed` is writing"):
                jobs.here("--batch", texts, "-o", output, *arguments)
    finally:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count(b"\n")) == (0, 1), errors
    assert np.load(output).shape == (COUNT, DIM)


def test_resume_without_anything_to_go_on_with_begins(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"the result of yesterday")
    with pytest.raises(SettingsError, match="exists already, and is no output of such a job; add --overwrite"):
        jobs.here("--batch", texts, "-o", output, "--resume")
    output.unlink()
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    assert np.load(output).shape == (COUNT, DIM)


def test_existing_file_stays_until_the_job_is_complete(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"the result of yesterday")
    output.chmod(0o640)
    interrupt_after(texts, output, 1000, "--overwrite")
    assert output.read_bytes() == b"the result of yesterday"
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    assert np.load(output).shape == (COUNT, DIM)
    assert output.stat().st_mode & 0o777 == 0o640


def test_disk_that_is_full_costs_no_complete_row(texts: Path, tmp_path: Path) -> None:
    """A limit on the size of files replaces a full disk: a write is cut in the middle."""
    whole, output = tmp_path / "whole.npy", tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", whole) == 0
    limited = ["/bin/sh", "-c", 'trap "" XFSZ; ulimit -f 100; exec "$@"', "sh", *jobs.command("--batch", texts, "-o", output)]
    full = subprocess.run(limited, capture_output=True, check=False)
    assert full.returncode == 1
    assert b"File too large" in full.stderr
    assert done_rows(output) > 0
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    assert output.read_bytes() == whole.read_bytes()


def test_real_job_that_is_killed_gives_the_same_file(served: Cli, tmp_path: Path) -> None:
    texts, output, whole = write_texts(tmp_path / "texts.jsonl", 500), tmp_path / "out.npy", tmp_path / "whole.npy"
    done = 0
    for _ in range(2):
        process = served.start("embed", "--batch", os.fspath(texts), "-o", os.fspath(output), "--resume")
        wait_until(lambda: done_rows(output) > done or process.poll() is not None)  # noqa: B023 # waited for here
        process.kill()
        process.communicate()
        done = done_rows(output)
        assert (process.returncode, 0 < done < 500) == (-signal.SIGKILL, True)
    last = served.run("embed", "--batch", os.fspath(texts), "-o", os.fspath(output), "--resume")
    assert (last.returncode, last.stdout) == (0, "")
    assert re.fullmatch(rf"runed: 500 texts \({done} of them by an earlier run\), .*\n", last.stderr)
    # All vectors come from the daemon's cache now, so that not even the last digits may differ.
    assert served.run("embed", "--batch", os.fspath(texts), "-o", os.fspath(whole)).returncode == 0
    assert output.read_bytes() == whole.read_bytes()
    assert np.load(output).shape == (500, 64)
