"""A step of a set-up: nothing is silent for over a second, failures are shown whole, and Ctrl-C ends it without a word."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import wait_until
from tools import step


def start(*argv: str) -> subprocess.Popen[str]:
    """Start a step in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, step.__file__, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_output_of_a_command_that_works_is_not_shown() -> None:
    process = start("Do it", "sh", "-c", "echo noise; echo noise >&2")

    output, errors = process.communicate(timeout=60)
    assert re.fullmatch(r"Do it( \.)* ✓ \d+ s\n", output)
    assert errors == ""
    assert process.returncode == 0


def test_the_output_of_a_command_that_fails_is_shown_whole() -> None:
    process = start("Do it", "sh", "-c", "echo first; echo second >&2; exit 3")

    output, errors = process.communicate(timeout=60)
    assert re.fullmatch(r"Do it( \.)* ✗ \d+ s\n", output)
    assert errors == "first\nsecond\n"
    assert process.returncode == 3


def test_a_command_that_is_missing_is_told() -> None:
    process = start("Do it", "no-such-program")

    assert process.communicate(timeout=60)[1] == "no-such-program: No such file or directory\n"
    assert process.returncode == 127


def test_a_log_gets_a_dot_each_second() -> None:
    process = start("Do it", "sleep", "2.5")

    assert re.fullmatch(r"Do it( \.){2,} ✓ \d+ s\n", process.communicate(timeout=60)[0])


def test_a_terminal_shows_seconds_and_last_words_in_one_line() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [sys.executable, step.__file__, "Do it", "sh", "-c", "printf 'one\\n\\033[31mtwo\\r\\n'; sleep 1"]
        )
    seen = b""
    while select.select([terminal], [], [], 20.0)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the end, on Linux
            break
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0

    assert re.search("\r\x1b\\[KDo it … \\d+ s  two\r", seen.decode())
    assert re.search("\r\x1b\\[K✓ Do it \\(\\d+ s\\)\r\n$", seen.decode())
    assert seen.count(b"\n") == 1


def test_the_output_of_a_long_command_is_shown_as_it_comes() -> None:
    process = start("--show", "sh", "-c", "echo first; echo second >&2; sleep 60")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["first\n", "second\n"]

    os.killpg(process.pid, signal.SIGINT)

    assert process.communicate(timeout=60) == ("\n", "")
    assert process.returncode == -signal.SIGINT


def test_the_exit_code_of_a_long_command_is_kept() -> None:
    process = start("--show", "sh", "-c", "echo it; exit 3")

    assert process.communicate(timeout=60) == ("it\n", "")
    assert process.returncode == 3


def test_what_a_command_says_about_an_interruption_is_dropped() -> None:
    process = start("--show", sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    os.killpg(process.pid, signal.SIGINT)

    assert process.communicate(timeout=60) == ("\n", "")


@pytest.mark.parametrize(
    "command",
    [
        ": > {begun}; exec sleep 60",  # a shell that starts programs may miss a signal at that moment
        pytest.param("trap '' INT; touch {begun}; echo noise; sleep 60 & wait", marks=pytest.mark.slow),  # takes 10 s
    ],
)
def test_an_interruption_ends_the_step_by_its_signal_without_a_word(command: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    process = start("Do it", "sh", "-c", command.format(begun=begun))
    wait_until(begun.exists, what="the begin of the command")

    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a child that ignored the interruption

    assert process.returncode == -signal.SIGINT
    assert re.fullmatch(r"Do it( \.)*\n", output)
    assert errors == ""


def test_an_interruption_while_the_command_starts_ends_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step.run("Do it", ["true"])
    assert capsys.readouterr().out == "Do it\n"


def test_a_program_that_is_run_quietly_dies_of_an_interruption(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time\nfrom tools import step\nstep.quietly(lambda: print('ready', flush=True) or time.sleep(60))\n"
    )
    process = subprocess.Popen(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": os.fspath(Path(step.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGINT
