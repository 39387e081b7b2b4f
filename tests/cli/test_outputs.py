"""Where `runed embed` writes: into what other programs have open, without harm to their data, or to a file in one step."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from runed.errors import SettingsError
from runed.jobs.outputs import descriptor_of
from tests.cli import jobs
from tests.cli.stand_in import Options
from tests.support import clean_environment, short_home, wait_until
from tests.users import OTHER, needs_root, run_as

COUNT = 3


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(f"text {number}") + "\n" for number in range(COUNT)))
    return path


def shell(folder: Path, script: str, *arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run a script of bash, in which $RUNED is `runed embed --format jsonl` with a stand-in and the arguments."""
    command = jobs.command("--format", "jsonl", *arguments)
    text = script.replace("$RUNED", shlex.join(os.fspath(word) for word in command))
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60
    )


def is_whole(lines: list[str]) -> bool:
    return [json.loads(line)["index"] for line in lines] == list(range(COUNT))


STDOUT = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "link"]


@pytest.mark.parametrize("output", STDOUT)
@pytest.mark.parametrize("redirection", [">", ">>"])
def test_standard_output_by_its_path_is_written_behind_what_others_wrote(
    tmp_path: Path, texts: Path, output: str, redirection: str
) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "log").write_text("yesterday\n")
    script = f"(echo before; $RUNED; echo after) {redirection} log"
    done = shell(tmp_path, script, "--batch", texts, "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "log").read_text().splitlines()
    head = ["yesterday", "before"] if redirection == ">>" else ["before"]
    assert (lines[: len(head)], lines[-1]) == (head, "after")
    assert is_whole(lines[len(head) : -1])
    assert (tmp_path / "link").is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "log", "texts.jsonl"]


@pytest.mark.parametrize("output", STDOUT)
def test_standard_output_by_its_path_may_be_a_pipe(tmp_path: Path, texts: Path, output: str) -> None:
    (tmp_path / "link").symlink_to("/dev/fd/1")
    done = shell(tmp_path, "$RUNED | cat", "--batch", texts, "-o", output)
    assert done.stderr == ""
    assert is_whole(done.stdout.splitlines())


def test_process_substitution_and_other_descriptors_are_written_to(tmp_path: Path, texts: Path) -> None:
    command = shlex.join(os.fspath(word) for word in jobs.command("--format", "jsonl", "--batch", texts))
    done = shell(tmp_path, f"{command} -o >(cat > substituted); wait $!; {command} -o /dev/fd/7 7> seventh; echo $?")
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert is_whole((tmp_path / "substituted").read_text().splitlines())
    assert is_whole((tmp_path / "seventh").read_text().splitlines())


def test_descriptor_of_another_process_is_written_behind_what_it_wrote(tmp_path: Path, texts: Path) -> None:
    command = shlex.join(os.fspath(word) for word in jobs.command("--format", "jsonl", "--batch", texts))
    done = shell(tmp_path, f"exec 7>>log; echo before >&7; {command} -o /proc/$$/fd/7; echo after >&7")
    assert done.stderr == ""
    before, *lines, after = (tmp_path / "log").read_text().splitlines()
    assert (before, after, is_whole(lines)) == ("before", "after", True)


@pytest.mark.parametrize(
    ("descriptor", "message"), [("/dev/fd/9", "Bad file descriptor"), ("/dev/fd/0", "it is open for reading alone")]
)
def test_descriptor_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, texts: Path, descriptor: str, message: str
) -> None:
    (tmp_path / "in").write_text("")
    done = shell(tmp_path, f"$RUNED -o {descriptor} < in", "--batch", texts)
    assert (done.returncode, done.stderr) == (2, f"runed: --output {descriptor} cannot be written: {message}\n")


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/null", "pipe"])
def test_what_is_no_file_cannot_be_resumed(tmp_path: Path, texts: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for option in ("--resume", "--overwrite"):
        with pytest.raises(jobs.WrongUsageError, match="only a job with --output FILE can be resumed"):
            jobs.here("--batch", texts, "-o", output, option)


def test_named_pipe_waits_for_its_reader_and_says_so(tmp_path: Path, texts: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = jobs.start("--batch", texts, "-o", pipe, "--format", "jsonl")
    assert process.stderr is not None
    assert process.stderr.readline().decode() == f"runed: waiting for a program that reads {pipe}\n"
    assert is_whole(pipe.read_text().splitlines())
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize("path", ["file", "dangling", "/dev/null", "/dev/fd", "/dev/fd/x", "/proc/self/fd", "1", "", "/", "a"])
def test_other_paths_name_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    assert descriptor_of(path) is None


def test_links_to_a_descriptor_name_it(tmp_path: Path) -> None:
    (tmp_path / "fd").symlink_to("/proc/self/fd")
    (tmp_path / "link").symlink_to("fd/5")
    assert descriptor_of(os.fspath(tmp_path / "link")) == (os.getpid(), 5)
    assert descriptor_of("/proc/1/fd/5") == (1, 5)


def test_circle_of_links_is_told(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(SettingsError, match="cannot be written: its symbolic links form a circle"):
        jobs.here("--batch", texts, "-o", tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


def test_link_stays_and_its_file_is_replaced(tmp_path: Path, texts: Path) -> None:
    for name, old in (("old", "the result of yesterday"), ("new", None)):
        target, link = tmp_path / "folder" / name, tmp_path / f"link to {name}"
        target.parent.mkdir(exist_ok=True)
        if old:
            target.write_text(old)
        link.symlink_to(target)
        assert jobs.here("--batch", texts, "-o", link, "--format", "jsonl", "--overwrite") == 0
        assert link.is_symlink()
        assert is_whole(target.read_text().splitlines())


@pytest.mark.parametrize("keep", [True, False])
def test_device_that_takes_the_place_of_the_output_is_not_replaced(tmp_path: Path, texts: Path, *, keep: bool) -> None:
    output = tmp_path / "out.jsonl"
    texts.write_text(texts.read_text() * 50)
    process = jobs.start("--batch" if keep else "-f", texts, "-o", output, options=Options(pause=0.5, in_flight=1))
    wait_until(lambda: len(list(tmp_path.iterdir())) > 1)
    os.mkfifo(output)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"{output} is not a file any more; move it away, and try again" in errors.decode()
    assert output.is_fifo()
    if keep:
        output.unlink()
        assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
        assert len(output.read_text().splitlines()) == 50 * COUNT


def test_write_protected_file_is_not_replaced(tmp_path: Path, texts: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    output.chmod(0o444)
    powerless = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []  # root may write to every file
    command = [*powerless, *jobs.command("--batch", texts, "-o", output, "--overwrite")]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60)
    message = f"runed: --output {output} cannot be written: the file is write-protected\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert output.read_text() == "precious"


def test_file_that_is_mounted_gets_the_content(tmp_path: Path, texts: Path) -> None:
    """As a single file of a container. It cannot be renamed, only written into."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody mount")
    (tmp_path / "origin").write_text("the result of yesterday, which is longer than the next one" * 100)
    (tmp_path / "out.jsonl").touch()
    command = shlex.join(
        os.fspath(word) for word in jobs.command("--batch", texts, "-o", tmp_path / "out.jsonl", "--overwrite")
    )
    script = f"mount --bind {tmp_path}/origin {tmp_path}/out.jsonl && {command}"
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], env=clean_environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr
    assert is_whole((tmp_path / "origin").read_text().splitlines())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["origin", "out.jsonl", "texts.jsonl"]


@pytest.mark.parametrize("arguments", [("--batch", "-"), ("-f", "-"), ("-",), ()])
@pytest.mark.parametrize("output", ["-o texts.jsonl", ">> texts.jsonl", "-o /dev/stdout >> texts.jsonl"])
def test_redirected_input_is_not_written_over(tmp_path: Path, texts: Path, arguments: tuple[str, ...], output: str) -> None:
    before = texts.read_bytes()
    done = shell(tmp_path, f"$RUNED {output} < texts.jsonl", *arguments)
    assert done.returncode == 2
    assert "--output would take the place of the input; name another file" in done.stderr
    assert texts.read_bytes() == before


def test_foreign_journal_is_left_alone(tmp_path: Path, texts: Path) -> None:
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part.journal"
    journal.write_text("my diary\n")
    for options in ((), ("--resume",)):
        with pytest.raises(SettingsError, match="exists, and not from an interrupted job; remove it, or add --overwrite"):
            jobs.here("--batch", texts, "-o", output, *options)
    assert journal.read_text() == "my diary\n"
    assert jobs.here("--batch", texts, "-o", output, "--overwrite") == 0


def test_full_disk_names_the_output_and_keeps_what_is_done(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {number}\n" for number in range(3000)))
    command = shlex.join(os.fspath(word) for word in jobs.command("--batch", texts, "-o", tmp_path / "out.npy"))
    done = shell(tmp_path, f"ulimit -f 100; {command}")
    assert done.returncode == 1
    kept, reason = done.stderr.splitlines()
    assert "vectors are kept in" in kept
    assert reason == f"runed: {tmp_path}/out.npy: File too large"
    assert jobs.here("--batch", texts, "-o", tmp_path / "out.npy", "--resume") == 0
    assert jobs.here("--batch", texts, "-o", tmp_path / "whole.npy") == 0
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("output", "name"), [("/dev/stdout", "standard output"), ("/dev/full", "/dev/full"), ("/dev/fd/7", "/dev/fd/7")]
)
def test_full_device_is_named(tmp_path: Path, texts: Path, output: str, name: str, output_format: str) -> None:
    command = shlex.join(os.fspath(word) for word in jobs.command("--batch", texts, "--format", output_format, "-o", output))
    done = shell(tmp_path, f"{command} > /dev/full 7> /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(f"runed: {name}: No space left on device")
    assert done.stderr.count("\n") == 1


def test_a_link_in_the_place_of_the_table_to_be_converted_is_replaced_and_not_followed(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.parquet.part.tmp").symlink_to("precious")
    assert jobs.here("--batch", texts, "-o", tmp_path / "out.parquet") == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.parquet", "precious", "texts.jsonl"]


@needs_root
def test_a_file_that_its_owner_alone_can_replace_is_told_before_any_work(tmp_path: Path, texts: Path) -> None:
    """As a file of a stranger in /tmp, although its mode lets everybody write."""
    place = short_home()
    (place / "out.jsonl").touch()
    (place / "out.jsonl").chmod(0o666)
    os.chown(place / "out.jsonl", OTHER, OTHER)
    place.chmod(0o1777)
    code = "import sys, runed.cli.main; sys.exit(runed.cli.main.main(sys.argv[1:]))"
    done = run_as(OTHER + 1, code, "embed", "--batch", str(texts), "-o", str(place / "out.jsonl"), RUNED_HOME=str(place / "no"))
    shutil.rmtree(place)
    assert done.returncode == 2
    assert "out.jsonl cannot be written: the file belongs to another user" in done.stderr
