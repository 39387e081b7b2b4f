"""A daemon that `runed stop --for` keeps stopped is started by nobody, whatever happens to the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from runed.errors import KeptStoppedError
from runed.lifecycle.hold import LONGEST, Hold, check_hold, lift_hold, read_hold, write_hold
from runed.lifecycle.spawn import ensure_daemon
from runed.paths import Paths
from runed.settings import Settings
from tests.lifecycle.conftest import starts


def changed(paths: Paths, **values: float | str) -> None:
    """Change the mark, as if it had been written at another time or in another boot."""
    hold = msgspec.json.decode(paths.hold.read_bytes(), type=Hold)
    paths.hold.write_bytes(msgspec.json.encode(msgspec.structs.replace(hold, **values)))


def test_a_mark_counts_until_its_time_is_over(paths: Paths) -> None:
    assert read_hold(paths.hold) is None
    check_hold(paths)
    hold = write_hold(paths.hold, 600)
    assert 500 < hold.remaining <= 600
    assert read_hold(paths.hold) == hold
    changed(paths, uptime=hold.uptime - 601)
    assert read_hold(paths.hold) is None
    check_hold(paths)


def test_in_the_same_boot_a_clock_that_is_set_changes_nothing(paths: Paths) -> None:
    hold = write_hold(paths.hold, 600)
    assert hold.boot
    for shift in (-(10**9), 10**9):
        changed(paths, since=hold.since + shift)
        assert read_hold(paths.hold) is not None


def test_after_a_restart_of_the_machine_its_clock_counts(paths: Paths) -> None:
    hold = write_hold(paths.hold, 600)
    changed(paths, boot="another", uptime=10**9)
    found = read_hold(paths.hold)
    assert found is not None
    assert 500 < found.remaining <= 600
    changed(paths, since=hold.since - 601)
    assert read_hold(paths.hold) is None
    # The clock was set back by years: the mark would last as long.
    changed(paths, since=time.time() + 3600)
    assert read_hold(paths.hold) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"seconds": -1, "since": 0, "boot": "", "uptime": 0}'])
def test_a_broken_mark_does_not_count(paths: Paths, content: bytes) -> None:
    paths.hold.write_bytes(content)
    assert read_hold(paths.hold) is None


def test_no_mark_lasts_for_ever(paths: Paths) -> None:
    write_hold(paths.hold, 600)
    changed(paths, seconds=LONGEST + 1)
    assert read_hold(paths.hold) is None


def test_a_spawner_is_refused_and_starts_nothing(paths: Paths, fake: Callable[..., Settings]) -> None:
    settings = fake()
    hold = write_hold(paths.hold, 600)
    with pytest.raises(KeptStoppedError, match="runed ensure --anyway") as refused:
        ensure_daemon(settings)
    assert hold.until in str(refused.value)
    assert 500 <= int(refused.value.metadata["seconds"]) <= 600
    assert starts(paths.home) == []
    lift_hold(paths.hold)
    lift_hold(paths.hold)
    assert ensure_daemon(settings).started


def test_a_daemon_that_runs_is_found_in_spite_of_a_mark(paths: Paths, fake: Callable[..., Settings]) -> None:
    settings = fake()
    assert ensure_daemon(settings).started
    write_hold(paths.hold, 600)
    assert not ensure_daemon(settings).started


def test_the_end_is_told_with_the_date_if_it_is_another_day() -> None:
    assert len(Hold.for_seconds(10 * 86400).until) == len("2026-01-01 00:00")
    assert len(Hold.for_seconds(30).until) == len("00:00:00")
