"""The output and the record of a child."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runed.backends.llama.process import ChildProcess, OutputLog, reap_orphan
from tests.bad_files import BAD_FILES, put_bad_file


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_anything_in_the_place_of_the_record_counts_as_missing(tmp_path: Path, kind: str) -> None:
    record = tmp_path / "engine.json"
    put_bad_file(kind, record)
    reap_orphan(record)
    argv, output = [sys.executable, "-c", ""], OutputLog(tmp_path / "log")
    child = await ChildProcess.spawn(argv, env={}, output=output, record=record, leftovers=[])
    assert await child.exited == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
async def test_a_record_that_does_not_fit_on_the_disk_is_named(tmp_path: Path) -> None:
    record = tmp_path / "engine.json"
    record.symlink_to("/dev/full")
    argv, output = [sys.executable, "-c", ""], OutputLog(tmp_path / "log")
    with pytest.raises(OSError, match="No space left") as caught:
        await ChildProcess.spawn(argv, env={}, output=output, record=record, leftovers=[])
    assert caught.value.filename == str(record)


def test_names_that_an_engine_tells_cannot_steer_the_terminal(tmp_path: Path) -> None:
    output = OutputLog(tmp_path / "log")
    output.write("name = \x1b]0;x\x07 \x9b2J\r é\tend\n".encode())
    assert (tmp_path / "log").read_text() == "name = ?]0;x? ?2J? é\tend\n"
    assert output.last_words() == "; its last words: name = ?]0;x? ?2J? é\tend"
