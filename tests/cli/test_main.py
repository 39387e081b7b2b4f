"""Every ending of a command has a documented exit code and at most one line for the user, never a stack trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runed.cli.main import COMMANDS
from runed.version import __version__
from tests.cli.support import SCRIPTS, Cli

WITHOUT_DAEMON = ("status", "stop", "logs")


@pytest.fixture
def bare(home: Path) -> Cli:
    """An empty home, for commands that start nothing."""
    return Cli(home)


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_version_is_one_line(bare: Cli, arguments: tuple[str, ...]) -> None:
    done = bare.run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"runed {__version__}\n", "")


def test_module_can_be_run_in_place_of_the_script(bare: Cli) -> None:
    done = subprocess.run([sys.executable, "-m", "runed", "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"runed {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_touches_nothing(bare: Cli, command: str) -> None:
    done = bare.with_environment(COLUMNS="80").run(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: runed {command} ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert list(bare.home.iterdir()) == []


def test_help_documents_the_exit_codes(bare: Cli) -> None:
    done = bare.run("--help")
    assert done.returncode == 0
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n  {code:<4} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("embde", "x"),
        ("--frobnicate",),
        ("embed", "--format", "csv", "x"),
        ("embed", "x", "-f", "y"),
        ("logs", "-n", "-3"),
        ("logs", "-n", "many"),
        ("stop", "--grace", "soon"),
        ("stop", "--grace", "-1"),
        ("stop", "--grace", "nan"),
        ("ensure", "--timeout", "0"),
        ("version", "extra"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_shows_the_usage(bare: Cli, arguments: tuple[str, ...]) -> None:
    done = bare.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: runed")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["embed", "ensure", "install", "models", "serve"])
def test_bad_setting_is_one_line_and_exit_2(bare: Cli, command: str) -> None:
    done = bare.with_environment(RUNED_IDLE_TIMEOUT="soon").run(command, *(["x"] if command == "embed" else []))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("runed: RUNED_IDLE_TIMEOUT='soon': accepted is ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", WITHOUT_DAEMON)
def test_bad_setting_is_a_warning_of_a_command_that_needs_the_home_alone(bare: Cli, command: str) -> None:
    usual = bare.run(command)
    done = bare.with_environment(RUNED_IDLE_TIMEOUT="soon").run(command)
    assert (done.returncode, done.stdout) == (usual.returncode, usual.stdout)
    warning, rest = done.stderr.split("\n", 1)
    assert warning.startswith("runed: RUNED_IDLE_TIMEOUT='soon': accepted is ")
    assert warning.endswith("(other commands need that; this one goes on without)")
    assert rest == usual.stderr


def test_broken_config_is_one_line_and_exit_2(bare: Cli) -> None:
    bare.paths.config.write_text('{"version": "one"}')
    done = bare.run("ensure")
    assert done.returncode == 2
    assert done.stderr == f"runed: {bare.paths.config}: version = 'one': accepted is a whole number\n"


def test_reader_that_has_seen_enough_is_no_reason_for_a_message(bare: Cli) -> None:
    bare.paths.logs.mkdir()
    bare.paths.daemon_log.write_text("line\n" * 200_000)
    done = subprocess.run(
        ["/bin/sh", "-c", f"{SCRIPTS}/runed logs -n 200000 | head -n 1"],
        env={"PATH": os.environ["PATH"], "RUNED_HOME": str(bare.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("arguments", [["version"], ["help", "embed"], ["stop", "--help"], ["--version"]], ids=" ".join)
def test_full_disk_is_an_error_and_not_a_silent_success(bare: Cli, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([SCRIPTS / "runed", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "runed: No space left on device\n")


def test_closed_standard_output_and_error_do_not_hurt(bare: Cli) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"exec {SCRIPTS}/runed version >&- 2>&-"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_windows_is_refused_in_one_sentence_before_anything_unix_is_imported() -> None:
    program = (
        "import os, sys; os.name = 'nt'; sys.modules['fcntl'] = None\n"
        "from runed.cli.{module} import main\n"
        "sys.exit(main(['status'] if '{module}' == 'main' else []))"
    )
    for module in ("main", "rundemo"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(module=module)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == "runed: Windows is not supported; run runed on Linux, on macOS or inside WSL 2\n"


def test_library_refuses_windows_in_the_same_sentence() -> None:
    program = "import os, sys; os.name = 'nt'; sys.modules['fcntl'] = None; import runed; runed.connect()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "runed.errors.UnsupportedPlatformError: Windows is not supported; run runed on Linux, on macOS or inside WSL 2"
    )


BUG = """
import sys
from runed.cli.boundary import guarded
def command():
    raise KeyError("a text of the user")
sys.exit(guarded(command))
"""


def test_bug_is_one_line_without_the_users_text() -> None:
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("runed: unexpected KeyError at <string>:5; ")
    assert "RUNED_DEBUG=1" in done.stderr
    assert "runed logs" in done.stderr
    assert "a text of the user" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_trace() -> None:
    environment = {**os.environ, "RUNED_DEBUG": "1"}
    done = subprocess.run([sys.executable, "-c", BUG], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_quick_commands_import_neither_server_nor_client() -> None:
    program = (
        "import sys; from runed.cli.main import main; main(['version'])\n"
        "heavy = {'runed.daemon', 'runed.client', 'numpy', 'connectrpc', 'rich', 'asyncio', 'msgspec', 'psutil'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "-\x1b[2J.txt"),
        ("embed", "-f", "\x1b[2J.txt", "-o", "\x1b[2J.npy"),
        ("\x1b[2J",),
        ("logs", "-n", "\x1b[2J"),
        ("status",),
        ("logs",),
        ("stop",),
    ],
)
def test_no_name_steers_the_terminal(bare: Cli, arguments: tuple[str, ...]) -> None:
    done = Cli(bare.home / "\x1b[2J").run(*arguments)
    assert done.stdout + done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout + done.stderr)


@pytest.mark.parametrize("variable", ["RUNED_MODEL", "RUNED_LLAMA_SERVER"])
def test_a_url_in_the_place_of_a_file_is_answered_with_what_to_do(bare: Cli, variable: str) -> None:
    done = bare.with_environment(**{variable: "https://me:pass-word@models.example/m.gguf"}).run("ensure")
    assert done.returncode == 2
    assert done.stderr.startswith(f"runed: {variable}='https://models.example/m.gguf': accepted is the path or the file: URL")
    assert done.stderr.count("\n") == 1


EARLY = "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(10)"


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_during_the_first_imports_shows_no_trace(bare: Cli, tmp_path: Path, *, ignored: bool) -> None:
    """A module of the standard library that the program imports first presses Ctrl-C. A shell may have it ignored."""
    (tmp_path / "argparse.py").write_text(EARLY.partition(" import time")[0] if ignored else EARLY)
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if ignored else []
    done = subprocess.run(
        [*command, sys.executable, "-m", "runed", "version"],
        env=bare.environment_of_a_command() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ignored:
        assert done.returncode not in {-signal.SIGINT, 130}
    else:
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
