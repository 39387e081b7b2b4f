"""What a new user meets: help, suggestions, completion, and a log that can be read."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from runed.cli import main as program
from runed.cli.main import COMMANDS
from runed.version import __version__
from tests.cli.support import SCRIPTS, Cli, finish, press_ctrl_c
from tests.support import clean_environment


def readable(screen: str) -> list[str]:
    return screen.replace("\r\n", "\n").splitlines()


def served_and_ended(cli: Cli, *arguments: str) -> tuple[int, str, list[str]]:
    """Run a daemon in the foreground, end it as soon as it serves, and return exit code, output and the lines of its log."""
    process = cli.start(*arguments)
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or "serving" not in lines[-1]:
        lines.append(process.stderr.readline().decode())
        assert lines[-1], lines
    process.send_signal(signal.SIGTERM)
    code, output, errors = finish(process)
    return code, output, [*lines, *errors.splitlines()]


# `runed` alone


def test_a_person_gets_help_and_nothing_starts(bare: Cli) -> None:
    shown = bare.run_on_terminal(stdout_too=True)
    assert shown.returncode == 0
    assert shown.screen.startswith("usage: runed ")
    assert list(bare.home.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("serve",)])
def test_a_program_gets_the_daemon_with_a_log_in_json(bare: Cli, arguments: tuple[str, ...]) -> None:
    code, output, lines = served_and_ended(bare, *arguments)
    assert (code, output) == (0, "")
    assert {"serving", "stopped"} <= {json.loads(line)["message"] for line in lines}


def test_a_daemon_on_a_terminal_says_what_it_is_and_where_and_how_to_stop_it(bare: Cli) -> None:
    shown = bare.run_on_terminal("serve", stdout_too=True, once_shown="serving", then=press_ctrl_c)
    first, second, *lines = readable(shown.screen)
    assert shown.returncode == 0
    assert second == "the default model is model; `runed models` lists all"
    assert first == f"runed {__version__} of {bare.home}; Ctrl-C or `runed stop` ends it"
    serving = next(line for line in lines if "serving" in line)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  serving  socket=\S+  pid=\d+  version=\S+", serving)
    assert str(bare.paths.socket) in serving


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_form_of_the_log_can_be_chosen(bare: Cli, form: str) -> None:
    chosen = bare.with_environment(RUNED_LOG=form)
    if form == "json":
        lines = readable(chosen.run_on_terminal("serve", once_shown='"serving"', then=press_ctrl_c).screen)
        assert "serving" in {json.loads(line)["message"] for line in lines if line.startswith("{")}
    else:
        lines = served_and_ended(chosen, "serve")[2]
        assert any(line[8:].startswith("  stopped  uptime_seconds=") for line in lines)
    assert not [line for line in lines if line.startswith("{")] or form == "json"


def test_a_log_file_is_json_in_any_case_and_has_the_levels_that_are_wanted(bare: Cli) -> None:
    quiet = bare.with_environment(RUNED_LOG="text", RUNED_LOG_LEVEL="warning")
    assert quiet.run("ensure").returncode == 0
    assert quiet.run("ensure", "--wait").returncode == 1
    quiet.stop()
    records = [json.loads(line) for line in bare.paths.daemon_log.read_text().splitlines()]
    assert records
    assert {record["level"] for record in records} <= {"warning", "error"}


def test_a_misspelt_key_of_the_configuration_is_told_and_logged(bare: Cli) -> None:
    bare.paths.config.write_text('{"version": 1, "idel_timeout": "5m"}')
    told = f"{bare.paths.config}: there is no setting 'idel_timeout', so it is ignored; did you mean idle_timeout?"
    assert bare.run("status").stderr == f"runed: {told}\n"
    assert bare.run("ensure").returncode == 0
    bare.stop()
    records = [json.loads(line) for line in bare.paths.daemon_log.read_text().splitlines()]
    assert told in [record.get("problem") for record in records]


# Help


def test_help_is_a_command_too(bare: Cli) -> None:
    assert bare.run("help").stdout == bare.run("--help").stdout
    assert bare.run("help", "embed").stdout == bare.run("embed", "--help").stdout
    unknown = bare.run("help", "embde")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is no command 'embde'; did you mean embed?" in unknown.stderr


def examples_of(command: str) -> list[str]:
    """Return the lines of the examples in the help of a command, without the words beside them."""
    module = importlib.import_module(f"runed.cli.{command}")
    parser = argparse.ArgumentParser(prog=f"runed {command}")
    module.configure(parser)
    lines = (parser.epilog or "").partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    return [re.split(r"\s{2,}", line.strip())[0] for line in lines if line.startswith("  ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_its_parser_takes(command: str, tmp_path: Path) -> None:
    examples = examples_of(command)
    assert examples
    for example in examples:
        assert subprocess.run(["bash", "-n", "-c", example], check=False).returncode == 0, example
        calls = re.findall(r"(?<!\S)(?:\"\$\()?runed ([^|&;)>]*?)(?: 2?>|[|&;)]|$)", example)
        assert calls, example
        for call in calls:
            words = shlex.split(call)
            parser, _, module = program._parsers(words[0])
            assert module is not None, example
            assert parser.parse_known_args(words)[1] == [], example


@pytest.mark.slow
def test_the_examples_of_embed_run(served: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "1.txt").write_text("one\n")
    (tmp_path / "chapters" / "2.txt").write_text("two\n")
    (tmp_path / "table.tsv").write_text("a\tone\nb\ttwo\n")
    (tmp_path / "texts.jsonl").write_text('{"id": 7, "text": "one"}\n"two"\n')
    (tmp_path / "all.csv").write_text("id,body\n1,one\n")
    import pyarrow as pa  # noqa: PLC0415 # an optional package
    import pyarrow.parquet as pq  # noqa: PLC0415 # as above

    for name in ("rows.parquet", "in/a.parquet"):
        pq.write_table(pa.table({"text": ["one"], "stars": [5]}), tmp_path / name)
    environment = served.environment_of_a_command()
    environment["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
    for example in examples_of("embed"):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", example], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, (example, done.stderr)
    assert pq.read_table(tmp_path / "vectors.parquet")["stars"].to_pylist() == [5]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("embde", "x"), "runed: there is no command 'embde'; did you mean embed? (`runed --help` tells more)"),
        (("list",), "runed: there is no command 'list'; did you mean models? (`runed --help` tells more)"),
        (
            ("restart",),
            (
                "runed: there is no command 'restart': run `runed stop`; the next call starts the daemon again, and "
                "`runed ensure` does so at once (`runed --help` tells more)"
            ),
        ),
        (
            ("uninstall", "-y"),
            (
                "runed: there is no command 'uninstall': run `runed stop` (and `runed service remove`, if you installed one), "
                "remove the home, ~/.runed, and `pip uninstall runed` (`runed --help` tells more)"
            ),
        ),
        (
            ("help", "log"),
            "runed help: there is no command 'log'; did you mean logs? (`runed help --help` tells more)",
        ),
        (("--verson",), "runed: there is no option --verson; did you mean --version? (`runed --help` tells more)"),
        (
            ("embed", "--outptu=x.npy", "x"),
            "runed embed: there is no option --outptu; did you mean --output? (`runed embed --help` tells more)",
        ),
        (("status", "extra"), "runed status: there is no argument 'extra' (`runed status --help` tells more)"),
    ],
)
def test_a_mistake_is_answered_by_a_line_of_usage_and_what_was_meant(bare: Cli, arguments: tuple[str, ...], meant: str) -> None:
    done = bare.run(*arguments)
    usage, told = done.stderr.splitlines()
    assert (done.returncode, done.stdout, told) == (2, "", meant)
    assert usage.startswith("usage: runed ")
    assert len(usage) <= 80


def test_a_misspelt_model_is_answered_by_the_nearest_ones(bare: Cli) -> None:
    done = bare.run("show", "bge-m4")
    assert done.stderr.startswith("runed: there is no model 'bge-m4'; did you mean bge-m3")
    assert "`runed models` lists all" in done.stderr
    assert len(done.stderr) < 200


# Completion

BASH = """
source <(runed completion bash)
complete_line() {
    COMP_WORDS=($1)
    [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete runed
    echo "${COMPREPLY[@]}"
}
complete_line "$1"
"""

FISH = "runed completion fish | source; complete -C $argv[1] | string split -f1 \\t"

ZSH = """
zmodload zsh/zpty
zpty shell zsh -f
zpty -w shell "PS1=; autoload -U compinit; compinit -u -d $HOME/zcompdump"
zpty -w shell 'eval "$(runed completion zsh)"; print READY'
zpty -r shell line '*READY*READY*'
zpty -w -n shell "$1"$'\\t'
zpty -r shell line "*$2*"
zpty -d shell
print -r -- "$2"
"""

LINES = [
    ("runed stat", "status"),
    ("runed embed --outp", "--output"),
    ("runed help emb", "embed"),
    ("runed show bge-r", "bge-r"),
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(("line", "word"), LINES)
def test_a_shell_completes_commands_options_and_models(bare: Cli, tmp_path: Path, shell: str, line: str, word: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = clean_environment(RUNED_HOME=str(bare.home), HOME=str(tmp_path), TERM="xterm")
    environment["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
    script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    place = [] if shell == "fish" else [shell]  # the name of the script, before its arguments
    done = subprocess.run(
        [shell, "-c", script, *place, line, word], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert word in done.stdout, done.stderr
    assert list(bare.home.iterdir()) == []


def test_the_script_for_completion_needs_a_shell_that_is_known(bare: Cli) -> None:
    done = bare.run("completion", "csh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr


# For programs


@pytest.mark.parametrize("command", ["version", "models", "show bge-m3", "status"])
def test_json_is_one_document(bare: Cli, command: str) -> None:
    done = bare.run(*command.split(), "--json")
    assert json.loads(done.stdout)
    assert done.stderr == ""


def test_json_of_the_commands_that_change_something(bare: Cli, tiny_qwen3: Path) -> None:
    own = Cli(bare.home)
    added = json.loads(own.run("add", str(tiny_qwen3), "--name", "mine", "--json").stdout)
    assert (added["name"], added["kind"], added["dimensions"]) == ("mine", "embedding", 64)
    used = json.loads(own.run("use", "mine", "--json").stdout)
    assert used == {"default_model": "mine", "installed": True, "removed": []}
    assert own.run("use", "bge-m3", "--json").returncode == 0
    removed = json.loads(own.run("rm", "mine", "--json").stdout)
    assert removed == {"removed": "mine", "freed": 0, "kept": str(tiny_qwen3)}
