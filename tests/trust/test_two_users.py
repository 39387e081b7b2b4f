"""Two real users of one machine. What one of them lays out is neither read, run, connected to nor signalled for the other."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runed.lifecycle.record import DaemonRecord
from runed.processes import identify
from tests.support import short_home
from tests.users import needs_root, run_as

pytestmark = needs_root

ALICE, MALLORY = 41_001, 41_002

COMMANDS = textwrap.dedent(
    """
    import sys
    from runed.cli.main import main
    for command in sys.argv[1:]:
        print(main(command.split()), flush=True)
    """
)
"""Runs commands, and prints their exit codes."""

ALL = ("embed secret", "status", "stop", "logs", "ensure", "install", "serve")


@dataclass
class Stage:
    """A directory that both users can enter, with a program of Mallory's and a process of Alice's.

    Attributes:
        place: The directory, which belongs to root.
        ran: The file that exists once the program has run.
        bystander: The process, of which Mallory's `daemon.json` tells that it is a daemon.
    """

    place: Path
    ran: Path
    bystander: subprocess.Popen[bytes]

    def home(self, name: str = "home", *, owner: int = MALLORY, mode: int = 0o755, filler: int = MALLORY) -> Path:
        """Make a home and fill it with files of a user: each of them would do harm."""
        home = self.place / name
        home.mkdir()
        program = self.place / "program"
        program.write_text(f"#!/bin/sh\nid -u >> {self.ran}\n")
        program.chmod(0o755)
        (home / "config.json").write_text(json.dumps({"version": 1, "runed_binary": str(program)}))
        identity = identify(self.bystander.pid)
        assert identity is not None
        record = DaemonRecord.of_this_process(home / "embedding.sock")
        (home / "daemon.json").write_text(
            json.dumps({"pid": identity.pid, "start_time": identity.start_time, "version": "9", "socket": record.socket})
        )
        for entry in home.iterdir():
            entry.chmod(0o644)
            os.chown(entry, filler, filler)
        os.chown(home, owner, owner)
        home.chmod(mode)
        return home

    def run(
        self, home: Path, commands: tuple[str, ...] = ALL, *, user: int = ALICE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run commands as a user."""
        return run_as(user, COMMANDS, *commands, **{"RUNED_HOME": str(home), **environment})


@pytest.fixture
def stage() -> Iterator[Stage]:
    place = short_home()
    place.chmod(0o755)
    (place / "traces").mkdir()
    (place / "traces").chmod(0o1777)
    with subprocess.Popen(["sleep", "60"], user=ALICE, group=ALICE, extra_groups=[]) as bystander:
        yield Stage(place, place / "traces" / "ran", bystander)
        bystander.kill()
    shutil.rmtree(place)


def home_of_mallory(stage: Stage) -> Path:
    return stage.home()


def home_of_mallory_open_to_all(stage: Stage) -> Path:
    return stage.home(mode=0o777)


def home_of_mallory_behind_a_link_of_alice(stage: Stage) -> Path:
    stage.home("theirs")
    (stage.place / "home").symlink_to("theirs")
    os.lchown(stage.place / "home", ALICE, ALICE)
    return stage.place / "home"


def home_of_alice_behind_a_link_of_mallory(stage: Stage) -> Path:
    stage.home("hers", owner=ALICE, mode=0o700)
    (stage.place / "home").symlink_to("hers")
    os.lchown(stage.place / "home", MALLORY, MALLORY)
    return stage.place / "home"


def home_of_alice_open_to_all(stage: Stage) -> Path:
    return stage.home(owner=ALICE, mode=0o777)


def home_of_alice_with_files_of_mallory(stage: Stage) -> Path:
    return stage.home(owner=ALICE, mode=0o700)


def home_of_alice_below_a_directory_of_mallory(stage: Stage) -> Path:
    directory = stage.place / "bait"
    directory.mkdir()
    home = stage.home("bait/home", owner=ALICE, mode=0o700, filler=ALICE)
    os.chown(directory, MALLORY, MALLORY)
    return home


def home_of_alice_below_a_directory_open_to_all(stage: Stage) -> Path:
    directory = stage.place / "shared"
    directory.mkdir()
    home = stage.home("shared/home", owner=ALICE, mode=0o700, filler=ALICE)
    directory.chmod(0o777)
    return home


LAYOUTS = [
    home_of_mallory,
    home_of_mallory_open_to_all,
    home_of_mallory_behind_a_link_of_alice,
    home_of_alice_behind_a_link_of_mallory,
    home_of_alice_open_to_all,
    home_of_alice_with_files_of_mallory,
    home_of_alice_below_a_directory_of_mallory,
    home_of_alice_below_a_directory_open_to_all,
]


def check_refused(stage: Stage, done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.stdout.split() == ["1"] * len(ALL), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(ALL)
    assert len(set(lines)) == 1, lines
    assert reason in lines[0], lines[0]
    assert not stage.ran.exists()
    assert stage.bystander.poll() is None


@pytest.mark.parametrize("lay", LAYOUTS, ids=lambda lay: lay.__name__)
def test_no_command_uses_a_home_in_which_another_user_has_a_hand(stage: Stage, lay: object) -> None:
    assert callable(lay)
    home = lay(stage)
    before = sorted((path, path.lstat().st_mode, path.lstat().st_uid) for path in stage.place.rglob("*"))
    done = stage.run(home)
    check_refused(stage, done, "set RUNED_HOME to a")
    assert sorted((path, path.lstat().st_mode, path.lstat().st_uid) for path in stage.place.rglob("*")) == before


def test_root_does_not_use_the_home_of_a_user_as_under_sudo_with_the_environment_of_that_user(stage: Stage) -> None:
    home = stage.home(".runed", owner=ALICE, mode=0o700, filler=ALICE)
    done = stage.run(home, user=0, RUNED_HOME="", HOME=str(stage.place))
    check_refused(stage, done, f"{home} belongs to user id {ALICE}, and you are user id 0; ")
    assert "`sudo -H`" in done.stderr


def test_no_command_reads_a_configuration_of_another_user(stage: Stage) -> None:
    theirs = stage.home("theirs") / "config.json"
    done = stage.run(stage.place / "traces" / "home", RUNED_CONFIG=str(theirs))
    check_refused(stage, done, f"{theirs.parent} belongs to user id {MALLORY}, who could replace {theirs}; ")


def test_a_listener_in_the_home_of_another_user_hears_nothing(stage: Stage) -> None:
    home = stage.home(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "embedding.sock"))
        (home / "embedding.sock").chmod(0o777)
        listener.listen()
        listener.setblocking(False)
        check_refused(stage, stage.run(home), "belongs to user id")
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_home_of_alice_works_for_alice(stage: Stage) -> None:
    """Show that the commands above fail for their homes alone."""
    home = stage.home(owner=ALICE, mode=0o700, filler=ALICE)
    (home / "daemon.json").unlink()
    done = stage.run(home, ("ensure",))
    assert "exited with code 0 before it listened" in done.stderr
    assert set(stage.ran.read_text().split()) == {str(ALICE)}
    assert (home / "spawn.lock").stat().st_uid == ALICE
