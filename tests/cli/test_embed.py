"""`runed embed`: the right vectors, from every kind of input and in every format, or a clear refusal."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bootstrap.parts import Release
from tests.bootstrap.site import Exchange, running_site, serve
from tests.cli.support import SCRIPTS, Cli, finish, interrupt
from tests.support import Golden, wait_until

MANY = 70
"""Texts of a job, more than fit into one request."""

TOO_LONG = "word " * 3000


def embed(cli: Cli, *arguments: str | bytes, stdin: bytes = b"") -> dict[str, Any]:
    done = cli.run("embed", *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def rows(document: dict[str, Any]) -> NDArray[np.float32]:
    return np.array([entry["embedding"] for entry in document["embeddings"]], dtype=np.float32)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"this is the text of line number {number}\n" for number in range(1, MANY + 1)))
    return path


def test_vectors_are_those_of_the_reference_implementation(served: Cli, tiny_qwen3: Path) -> None:
    golden = Golden.load("tiny-qwen3.golden.json")
    batch = "".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(golden.texts))
    document = embed(served, "--batch", "-", stdin=batch.encode())
    assert document["model_identity"] == f"sha256:{hashlib.sha256(tiny_qwen3.read_bytes()).hexdigest()[:16]}"
    assert document["dim"] == 64
    assert [entry["id"] for entry in document["embeddings"]] == list(range(len(golden.texts)))
    assert golden.cosines(rows(document)).min() >= 0.9999


def test_one_text_and_many_have_the_same_shape(served: Cli) -> None:
    one = embed(served, "first")
    two = embed(served, "first", "second")
    assert one.keys() == two.keys() == {"model_identity", "fingerprint", "dim", "embeddings"}
    assert [entry["index"] for entry in two["embeddings"]] == [0, 1]
    assert one["embeddings"][0].keys() == {"index", "token_count", "embedding"}


def test_all_formats_hold_the_same_bits(served: Cli, tmp_path: Path) -> None:
    from_json = rows(embed(served, "one", "two", "three"))
    jsonl = served.run("embed", "--format", "jsonl", "one", "two", "three").stdout.splitlines()
    from_jsonl = np.array([json.loads(line)["embedding"] for line in jsonl], dtype=np.float32)
    assert served.run("embed", "-o", str(tmp_path / "x.npy"), "one", "two", "three").returncode == 0
    from_npy = np.load(tmp_path / "x.npy")
    assert (from_npy.shape, from_npy.dtype, from_npy.flags["C_CONTIGUOUS"]) == ((3, 64), np.dtype("float32"), True)
    assert np.array_equal(from_json, from_npy)
    assert np.array_equal(from_jsonl, from_npy)
    assert np.allclose(np.linalg.norm(from_npy, axis=1), 1, atol=1e-5)


def test_numbers_are_no_longer_than_a_float32_needs(served: Cli) -> None:
    done = served.run("embed", "one")
    numbers = done.stdout.split('"embedding":[')[1].split("]")[0].split(",")
    assert all(str(np.float32(number)) == number for number in numbers)


def test_every_jsonl_line_names_its_model(served: Cli) -> None:
    done = served.run("embed", "--format", "jsonl", "one", "two")
    for index, line in enumerate(done.stdout.splitlines()):
        record = json.loads(line)
        assert list(record) == ["index", "model_identity", "fingerprint", "token_count", "embedding"]
        assert record["index"] == index
        assert record["model_identity"].startswith("sha256:")


def test_files_standard_input_and_arguments_agree(served: Cli, tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_bytes(b"first line\r\nsecond line")
    expected = embed(served, "first line", "second line")
    assert embed(served, "-f", str(path)) == expected
    assert embed(served, stdin=path.read_bytes()) == expected
    assert embed(served, "-", stdin=b"first line\nsecond line\n") == expected
    assert embed(served, "--file", "-", stdin=b"\xef\xbb\xbffirst line\nsecond line\n") == expected
    assert embed(served, "--batch", "-", stdin=b'"first line"\n{"text": "second line", "other": 1}\n') == expected


def test_files_are_read_in_the_order_given(served: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n")
    (tmp_path / "b").write_text("two\nthree\n")
    document = embed(served, "-f", str(tmp_path / "b"), "-f", str(tmp_path / "a"))
    assert document == embed(served, "two", "three", "one")


def test_whole_takes_a_file_as_one_text(served: Cli, tmp_path: Path) -> None:
    (tmp_path / "poem").write_text("two\nlines\n")
    (tmp_path / "other").write_text("a line\n")
    paths = [str(tmp_path / name) for name in ("poem", "other")]
    document = embed(served, "--whole", "-f", *paths)
    assert [row.pop("id") for row in document["embeddings"]] == paths
    assert document == embed(served, "two\nlines\n", "a line\n")
    assert embed(served, "--whole", stdin=b"two\nlines\n") == embed(served, "two\nlines\n")


def test_the_id_of_a_file_whose_name_is_not_utf8_can_be_written(served: Cli, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(path).write_text("tea\n")
    [row] = embed(served, "--whole", "-f", path)["embeddings"]
    assert row["id"] == f"{tmp_path}/caf\ufffd"


def test_files_of_a_shell_pattern_follow_one_option(served: Cli, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"{name}\n")
    assert embed(served, "-f", str(tmp_path / "a"), str(tmp_path / "b"), "-f", str(tmp_path / "c")) == embed(served, *"abc")


def test_texts_may_stand_on_both_sides_of_an_option(served: Cli) -> None:
    assert embed(served, "a", "--dimensions", "32", "b") == embed(served, "--dimensions", "32", "a", "b")
    both = embed(served, "--", "a", "--dimensions")
    assert embed(served, "a", "--", "--dimensions") == both
    assert embed(served, "a", "--role", "document", "--", "--dimensions") == both


def test_a_directory_is_no_file_of_lines(served: Cli, tmp_path: Path) -> None:
    done = served.run("embed", "-f", str(tmp_path))
    assert done.returncode == 2
    assert f"is a directory; name its files, or embed them all: --batch {tmp_path} -o DIRECTORY" in done.stderr


def test_text_with_separators_of_unicode_is_one_line(served: Cli) -> None:
    text = "one\u2028two\x0bthree\x85four"
    assert embed(served, stdin=text.encode() + b"\n") == embed(served, text)


def test_ids_come_back_as_they_were_written(served: Cli) -> None:
    ids = ['"a\\u0041"', "12345678901234567890123", "null", '{"x": [1]}']
    batch = "".join(f'{{"id": {name}, "text": "t"}}\n' for name in ids)
    done = served.run("embed", "--batch", "-", "--format", "jsonl", stdin=batch.encode())
    assert [line.split(',"model_identity"')[0] for line in done.stdout.splitlines()] == [
        f'{{"index":{index},"id":{name}' for index, name in enumerate(ids)
    ]


def test_many_texts_keep_their_order_over_several_requests(served: Cli, lines: Path, tmp_path: Path) -> None:
    texts = lines.read_text().splitlines()
    backwards = tmp_path / "backwards.txt"
    backwards.write_text("\n".join(reversed(texts)))
    for source, name in ((lines, "a.npy"), (backwards, "b.npy")):
        assert served.run("embed", "-f", str(source), "-o", str(tmp_path / name)).returncode == 0
    forth, back = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")[::-1]
    assert forth.shape == (MANY, 64)
    # Another order makes other batches, which changes the last digits.
    assert np.sum(forth * back, axis=1).min() > 0.999
    assert np.sum(forth * np.roll(back, 1, axis=0), axis=1).min() < 0.999


@pytest.mark.parametrize("extension", ["json", "jsonl", "npy"])
def test_format_follows_the_extension_and_an_option_beats_it(served: Cli, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out.{extension}"
    assert served.run("embed", "-o", str(path), "x").returncode == 0
    start = {"json": b'{"model_identity":', "jsonl": b'{"index":0', "npy": b"\x93NUMPY"}[extension]
    assert path.read_bytes().startswith(start)
    assert served.run("embed", "--format", "npy", "-o", str(path), "--overwrite", "x").returncode == 0
    assert path.read_bytes().startswith(b"\x93NUMPY")


def test_output_file_keeps_its_mode_and_its_link(served: Cli, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    assert served.run("embed", "-o", str(link), "--overwrite", "x").returncode == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert json.loads(target.read_text())["dim"] == 64


def test_output_to_a_device_does_not_replace_it(served: Cli) -> None:
    assert served.run("embed", "-o", os.devnull, "x").returncode == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        ([""], b"", 1, "argument 1 is empty or only white space"),
        (["good", " \t\n"], b"", 1, "argument 2 is empty or only white space"),
        ([b"bad \xff"], b"", 1, "argument 1: byte 4 of it is not valid UTF-8"),
        ([], b"", 1, 'the input holds no text; give at least one, as in: runed embed "hello world", or runed embed -f FILE'),
        ([], b"good\n\ngood\n", 1, "standard input, line 2 is empty"),
        ([], b"good\nbad \xff\n", 1, "standard input, line 2: byte 4 of it is not valid UTF-8"),
        ([], b"good\nno \x00 text\n", 1, "standard input, line 2: "),
        (["--whole"], b"", 1, "standard input is empty"),
        (["--whole"], b"word " * 7_000_000, 1, "standard input: the text has 350000"),
        (["-f", "/nonexistent/file"], b"", 2, "/nonexistent/file cannot be read: No such file or directory"),
        (["--batch", "-"], b'"good"\n5\n', 1, "standard input, line 2: Expected `str | object`, got `int`"),
        (["--batch", "-"], b'{"id": 1}\n', 1, "standard input, line 1: Object missing required field `text`"),
        (["--batch", "-"], b'{"text": 5}\n', 1, "standard input, line 1: Expected `str`, got `int` - at `$.text`"),
        (["--batch", "-"], b'"good"\n\n{\n', 1, "standard input, line 3: JSON ends too early"),
        (["--batch", "-"], b'"bad \xff"\n', 1, "standard input, line 1: "),
        (["--batch", "-"], b'"bad \\ud800"\n', 1, "standard input, line 1: "),
        (["--batch", "-"], b'{"text": ""}\n', 1, "standard input, line 1 is empty"),
        (["-o", "/nonexistent/out.json", "x"], b"", 2, "--output /nonexistent/out.json cannot be written: No such file"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_named_by_its_place(
    served: Cli, arguments: list[str | bytes], stdin: bytes, code: int, message: str
) -> None:
    done = served.run("embed", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"runed: {message}")
    assert done.stderr.count("\n") == 1


def test_a_text_that_is_too_long_is_refused_with_the_option_that_cuts_it(served: Cli) -> None:
    done = served.run("embed", "--whole", stdin=b"word " * 40_000)
    assert (done.returncode, done.stdout) == (1, "")
    assert "split or shorten it, or let its end be cut off: `--truncate end` on the command line" in done.stderr


@pytest.mark.parametrize("output_format", ["json", "jsonl", "npy"])
def test_text_refused_in_the_middle_is_named_and_output_is_visibly_incomplete(
    served: Cli, lines: Path, output_format: str
) -> None:
    texts = lines.read_text().splitlines()
    texts[59] = TOO_LONG
    lines.write_text("\n".join(texts))
    done = subprocess.run(
        [SCRIPTS / "runed", "embed", "--format", output_format, "-f", lines],
        env={**os.environ, "RUNED_HOME": str(served.home)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    errors = done.stderr.decode()
    assert errors.startswith(f"runed: {lines}, line 60: the text has 12001 tokens, the limit is ")
    assert errors.count("\n") == 1
    if output_format == "jsonl":
        *complete, last = [json.loads(line) for line in done.stdout.splitlines()]
        assert [record["index"] for record in complete] == list(range(59))
        assert last == {"error": {"reason": "TEXT_TOO_LONG", "message": errors.removeprefix("runed: ").rstrip("\n")}}
    elif output_format == "json":
        with pytest.raises(json.JSONDecodeError):
            json.loads(done.stdout)
    else:
        with pytest.raises((ValueError, EOFError)):
            np.load(io.BytesIO(done.stdout))


def test_output_file_of_a_failed_run_is_as_before(served: Cli, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("the result of yesterday")
    done = served.run("embed", "-o", str(path), "--overwrite", "good", TOO_LONG)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("runed: argument 2: the text has 12001 tokens")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "the result of yesterday"


def test_daemon_says_why_it_cannot_embed(cli: Cli) -> None:
    done = cli.with_environment(RUNED_LLAMA_SERVER="/nonexistent/llama-server").run("embed", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/nonexistent/llama-server" in done.stderr
    assert "Traceback" not in done.stderr


def test_role_dimensions_and_truncation_reach_the_model(served: Cli) -> None:
    plain = embed(served, "what is a daemon?")
    query = embed(served, "--role", "query", "--dimensions", "32", "what is a daemon?")
    assert (plain["dim"], query["dim"]) == (64, 32)
    assert not np.allclose(rows(plain)[0, :32], rows(query)[0], atol=0.1)
    assert query["embeddings"][0]["token_count"] > plain["embeddings"][0]["token_count"]
    (cut,) = embed(served, "--truncate", "end", TOO_LONG)["embeddings"]
    assert cut["token_count"] < cut["total_token_count"] == 12001


def test_refusal_of_an_option_names_no_text(served: Cli) -> None:
    done = served.run("embed", "--dimensions", "65", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "65" in done.stderr
    assert "argument 1" not in done.stderr
    done = served.run("embed", "--dimensions", "0", "x")
    assert (done.returncode, "'0' is not a whole number of at least 1" in done.stderr) == (2, True)


# On a terminal


def test_nothing_to_embed_on_a_terminal_is_wrong_usage_and_no_silent_wait(served: Cli) -> None:
    shown = served.run_on_terminal("embed")
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert 'try: runed embed "hello world"' in shown.screen


def test_npy_is_not_thrown_at_a_terminal(served: Cli) -> None:
    shown = served.run_on_terminal("embed", "--format", "npy", "x", stdout_too=True)
    assert shown.returncode == 2
    assert "standard output is a terminal" in shown.screen
    assert "NUMPY" not in shown.screen


def test_quick_answer_shows_no_bar(served: Cli) -> None:
    shown = served.run_on_terminal("embed", "x")
    assert (shown.returncode, shown.screen) == (0, "")
    assert json.loads(shown.stdout)["dim"] == 64


def test_bar_counts_texts_on_the_terminal_and_leaves_the_output_alone(served: Cli, lines: Path) -> None:
    shown = served.run_on_terminal("embed", "-f", str(lines))
    assert shown.returncode == 0
    assert "embedding" in shown.screen
    assert f"/{MANY}" in shown.screen
    assert len(json.loads(shown.stdout)["embeddings"]) == MANY


def test_bar_does_not_mix_with_vectors_on_the_same_terminal(served: Cli, lines: Path) -> None:
    shown = served.run_on_terminal("embed", "--format", "jsonl", "-f", str(lines), stdout_too=True)
    assert shown.returncode == 0
    assert [json.loads(line)["index"] for line in shown.screen.splitlines()] == list(range(MANY))


def test_interrupted_job_ends_its_bar_and_says_in_one_line_how_to_go_on(served: Cli, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"this is the text of line number {number}\n" for number in range(20_000)))
    output, part = tmp_path / "vectors.npy", tmp_path / "vectors.npy.part"
    journal = part.with_name(f"{part.name}.journal")
    shown = served.run_on_terminal(
        "embed",
        "--batch",
        str(texts),
        "-o",
        str(output),
        interrupt_when=lambda: journal.exists() and journal.read_text().count("\n") > 2,
    )
    assert shown.returncode == 128 + signal.SIGINT
    assert shown.screen.endswith(f"are kept in {part}; add --resume to the same command to go on\r\n")


def test_first_run_shows_what_it_waits_for_and_gives_the_terminal_back(cli: Cli, tiny_qwen3: Path) -> None:
    def serve_late(exchange: Exchange) -> None:
        time.sleep(1)
        serve(exchange)

    with running_site() as site:
        release = Release(site, models={"tiny": tiny_qwen3.read_bytes()})
        site.always["/models/tiny.gguf"] = serve_late
        shown = cli.with_environment(RUNED_MODEL="", RUNED_MANIFEST=release.publish()).run_on_terminal("embed", "x")
    assert shown.returncode == 0
    assert "downloading tiny" in shown.screen
    hide_cursor, show_cursor = "\x1b[?25l", "\x1b[?25h"
    assert shown.screen.rfind(show_cursor) > shown.screen.rfind(hide_cursor)
    assert json.loads(shown.stdout)["dim"] == 64


# Ctrl-C


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_in_the_middle_leaves_no_file(served: Cli, tmp_path: Path, number: int, code: int) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"text {number} takes a moment\n" for number in range(20_000)))
    path = tmp_path / "out.npy"
    process = served.start("embed", "-f", str(source), "-o", str(path))
    wait_until(lambda: any(entry.stat().st_size for entry in tmp_path.glob(".out.npy.*")), what="the first vectors")
    process.send_signal(number)
    told = "runed: interrupted; nothing of out.npy is kept; --batch keeps finished vectors, and --resume goes on from there\n"
    assert finish(process) == (code, "", told)
    assert [entry.name for entry in tmp_path.iterdir()] == ["many.txt"]


def test_ctrl_c_in_the_middle_marks_the_lines_as_incomplete(served: Cli, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"text {number} takes a moment\n" for number in range(20_000)))
    process = served.start("embed", "-f", str(source), "--format", "jsonl")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'{"index":0,')
    code, rest, errors = interrupt(process)
    assert (code, errors) == (130, "")
    assert json.loads(rest.splitlines()[-1])["error"]["reason"] == "INTERRUPTED"


def test_reader_that_leaves_early_is_no_error(served: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("the same text\n" * 2000)  # many more vectors than a pipe holds
    done = subprocess.run(
        ["/bin/sh", "-c", f"{SCRIPTS}/runed embed --format jsonl -f {lines} | head -n 1"],
        env={**os.environ, "RUNED_HOME": str(served.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith('{"index":0,')
    assert done.stderr == ""
