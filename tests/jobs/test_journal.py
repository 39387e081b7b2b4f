"""A journal that is damaged, or something else in its place, never ends a job by anything but a plain error."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from runed.errors import RunedError, SettingsError
from runed.jobs.journal import JobRecord, Journal
from runed.jobs.row import JobSpace
from tests.bad_files import BAD_FILES, put_bad_file
from tests.users import OTHER, needs_root

RECORD = JobRecord(version=1, options={}, space=JobSpace(fingerprint="fp1-0", model_identity="sha256:0", dim=2), head=4)


def written(part: Path) -> Path:
    """Write a part and its journal, of which 3 rows are done."""
    journal = Journal(part, resume=False, overwrite=False)
    journal.begin(RECORD)
    part.write_bytes(b"headrows")
    journal.add(b"rows", done=3, failed=0, inputs="x")
    journal.close()
    return journal.path


@pytest.mark.parametrize("with_part", [False, True])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_anything_in_the_place_of_a_journal_is_told_or_written_anew(
    tmp_path: Path, kind: str, *, resume: bool, with_part: bool
) -> None:
    part = tmp_path / "out.part"
    path = written(part)
    if not with_part:
        part.unlink()
    put_bad_file(kind, path)
    try:
        journal = Journal(part, resume=resume, overwrite=False)
    except RunedError as error:
        assert "remove it, or " in error.message  # noqa: PT017 # there may be no error
    except OSError as error:
        assert error.filename == str(path)  # noqa: PT017 # as above
    else:
        assert not with_part
        assert (journal.record, journal.mark.done, journal.complete) == (None, 0, False)
        journal.close()


@pytest.mark.parametrize(
    "change",
    [{"head": -5}, {"head": 10**30}, {"head": 2**63 - 1}, {"space": None}, {"options": []}, {"version": "1"}, {"version": 99}],
)
def test_a_damaged_record_is_no_journal(tmp_path: Path, change: dict[str, object]) -> None:
    part = tmp_path / "out.part"
    path = written(part)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(msgspec.to_builtins(RECORD) | change) + "\n" + "".join(lines[1:]))
    try:
        journal = Journal(part, resume=True, overwrite=False)
    except RunedError as error:
        assert "remove it, or " in error.message  # noqa: PT017 # as above
    else:
        assert journal.record is None
        journal.close()


@pytest.mark.parametrize(
    "change", [{"done": -1}, {"failed": -1}, {"size": -1}, {"size": 10**30}, {"size": 3}, {"checksum": "x"}, {"done": 10**30}]
)
def test_a_damaged_mark_is_not_gone_on_with(tmp_path: Path, change: dict[str, object]) -> None:
    part = tmp_path / "out.part"
    path = written(part)
    record, mark = path.read_text().splitlines()
    path.write_text(record + "\n" + json.dumps(json.loads(mark) | change) + "\n")
    journal = Journal(part, resume=True, overwrite=False)
    assert (journal.record, journal.mark.done) == (None, 0)
    journal.close()


def test_a_whole_journal_is_gone_on_with(tmp_path: Path) -> None:
    part = tmp_path / "out.part"
    written(part)
    journal = Journal(part, resume=True, overwrite=False)
    assert journal.record is not None
    assert (journal.mark.done, journal.mark.size) == (3, 8)
    journal.close()


@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
def test_a_part_that_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    part = tmp_path / "out.part"
    written(part)
    put_bad_file(kind, part)
    with pytest.raises((OSError, SettingsError), match=r"out\.part"):
        Journal(part, resume=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out.part", "out.part.journal"])
def test_a_link_in_the_place_of_part_or_journal_is_not_followed(tmp_path: Path, name: str, *, overwrite: bool) -> None:
    (tmp_path / name).symlink_to("precious")
    with pytest.raises(SettingsError, match=rf"{name} is a link, so it is not written; remove it"):
        Journal(tmp_path / "out.part", resume=False, overwrite=overwrite)
    assert not (tmp_path / "precious").exists()


@needs_root
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("name", ["out.part", "out.part.journal"])
def test_files_of_another_user_in_an_open_directory_are_not_used(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    part = tmp_path / "out.part"
    written(part)
    os.chown(tmp_path / name, OTHER, OTHER)
    arguments = {"resume": False, "overwrite": False} | options
    tmp_path.chmod(0o1777)
    with pytest.raises(SettingsError, match=rf"{name} belongs to user id {OTHER}, so it is not written"):
        Journal(part, **arguments)
    tmp_path.chmod(0o755)
    # In a directory that nobody else can write to, there is only the question of --resume.
    with nullcontext() if options else pytest.raises(SettingsError, match="--resume"):
        Journal(part, **arguments).close()
