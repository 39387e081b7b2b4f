"""`runed rerank`: the documents in order, from every kind of input and in every format, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.support import RunningDaemon, Scores

QUERY = "what is tea?"


@pytest.fixture
def ranking(reranker_daemon: RunningDaemon) -> Cli:
    """The home of a daemon with a reranker."""
    # On a busy machine, the first call waits for the engine long enough to tell of it.
    return Cli(reranker_daemon.home).with_environment(RUNED_PROGRESS="0")


def test_lines_come_in_the_order_of_their_scores(ranking: Cli, scores: Scores, tmp_path: Path) -> None:
    rows = [row for row in scores.by_query()[QUERY] if row.total_tokens < 200 and "\n" not in row.document]
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{row.document}\n\n" for row in rows), encoding="utf-8")
    done = ranking.run("rerank", QUERY, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t", 1) for line in done.stdout.splitlines()]
    expected = sorted(rows, key=lambda row: -row.score)
    assert [text for _, text in lines] == [row.document for row in expected]
    assert all(0 <= float(score) <= 1 for score, _ in lines)


def test_options_may_stand_between_the_query_and_the_file(ranking: Cli, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("tea\na train\n")
    usual = ranking.run("rerank", QUERY, str(tmp_path / "lines.txt"), "--top-n", "1")
    between = ranking.run("rerank", QUERY, "--top-n", "1", str(tmp_path / "lines.txt"))
    assert (between.returncode, between.stderr, between.stdout) == (0, "", usual.stdout)


def test_json_tells_the_places_in_the_input(ranking: Cli) -> None:
    stdin = b"tea\n\nthe train\n \ncoffee\n"
    done = ranking.run("rerank", QUERY, "--format", "json", "--top-n", "2", stdin=stdin)
    rows = json.loads(done.stdout)
    assert len(rows) == 2
    texts = {0: "tea", 2: "the train", 4: "coffee"}
    assert all(texts[row["index"]] == row["document"] for row in rows)
    assert rows[0]["score"] > rows[1]["score"]


def test_rows_keep_their_ids(ranking: Cli, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": 7, "text": "tea"}\n{"id": "b", "text": "a train"}\n')
    done = ranking.run("rerank", QUERY, str(path), "--format", "jsonl", "--model", "minilm-reranker")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["index"], row["id"]) for row in rows} == {(0, 7), (1, "b")}


def test_no_document_steers_the_terminal(ranking: Cli) -> None:
    done = ranking.run("rerank", QUERY, "-", stdin=b"tea \x1b[31m red\n")
    assert done.stdout.endswith("\ttea \\x1b[31m red\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        ([QUERY, "--model", "nothing"], b"tea\n", 1, "there is no model 'nothing'"),
        ([QUERY], b"word " * 600, 1, "together with the query"),
        ([" "], b"tea\n", 1, "the query is empty"),
        ([QUERY, "/no/such/file"], b"", 2, "/no/such/file"),
        ([QUERY, "--top-n", "0"], b"tea\n", 2, "--top-n"),
        ([], b"tea\n", 2, "QUERY"),
    ],
)
def test_wrong_calls_are_explained(ranking: Cli, arguments: list[str], stdin: bytes, code: int, message: str) -> None:
    done = ranking.run("rerank", *arguments, stdin=stdin)
    assert done.stdout == ""
    assert message in done.stderr
    assert (done.returncode == 2) == (code == 2)


def test_without_a_reranker_the_ways_to_one_are_told(served: Cli) -> None:
    done = served.run("rerank", QUERY, "-", stdin=b"tea\n")
    assert done.returncode == 1
    assert "no model that reranks is installed; run `runed pull NAME`, with one of: " in done.stderr
    assert done.stderr.endswith("; or `runed add PATH` for a file of your own that reranks\n")


def test_long_documents_are_cut_on_demand_and_nothing_is_no_error(ranking: Cli) -> None:
    assert ranking.run("rerank", QUERY, "--truncate", "end", stdin=b"word " * 600).returncode == 0
    done = ranking.run("rerank", QUERY, stdin=b"\n\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("runed: standard input has no documents, so nothing is ranked")
