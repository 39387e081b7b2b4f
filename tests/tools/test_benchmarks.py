"""The page and the pictures of the benchmarks are made of the same results, and only by a whole run."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks.concurrency import CLIENT_COUNTS, client_rows
from benchmarks.peers import MIB, Peer, peer_rows
from benchmarks.picture import draw
from benchmarks.report import DOCS, write_report
from benchmarks.results import RESULTS, Curves, Results, Section, Summary, load, store

SVG = "{http://www.w3.org/2000/svg}"


def curve(rate: float, slowest: float) -> dict[int, Summary]:
    return {
        clients: Summary(rate * clients / (clients + 3), clients / rate, slowest * clients / rate) for clients in CLIENT_COUNTS
    }


CURVES = Curves(runed=curve(331.7, 1.9), best=curve(360.2, 2.3), one_slot=curve(201.4, 1.4), slots=32)


def section(curves: Curves | None = CURVES, key: str = "m") -> Section:
    return Section(key, "A <small> & fast model", "llama-server", "words", "5", client_rows(CURVES), curves)


def results(*sections: Section) -> Results:
    return Results("2026-11-28", "2 x Processor, Linux 6", "3.11.7", sections)


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_picture_has_the_figures_of_the_table(tmp_path: Path) -> None:
    write_report(results(section()), tmp_path)
    page, picture = (tmp_path / "benchmarks.md").read_text(), (tmp_path / "benchmarks-m.svg").read_text()
    described = ET.fromstring(picture).findtext(f"{SVG}desc")
    assert described is not None
    for points in (CURVES.runed, CURVES.best, CURVES.one_slot):
        assert f"16 clients {points[16]}" in described
        assert f"| {points[16]} |" in page
    assert "](benchmarks-m.svg)" in page
    assert {"runed", "raw, 32 slots", "raw, 1 slot"} < set(words(picture))
    assert words(picture)[0] == "A <small> & fast model"


def test_few_clients_are_judged_against_one_slot() -> None:
    rows = {row.name: row for row in client_rows(CURVES)}
    assert rows["2 clients, short single texts: throughput against one slot"].passed
    slower = Curves(runed=curve(200.0, 1.9), best=CURVES.best, one_slot=CURVES.one_slot, slots=32)
    assert not any(row.passed for row in client_rows(slower)[:3])


def test_runed_is_judged_against_the_best_of_the_libraries() -> None:
    def peer(name: str, rate: float, first: float, memory: int) -> Peer:
        return Peer(name, np.ones(2), first, {1: rate / 4, 32: rate}, memory * MIB)

    fast, small = peer("fast", 400.0, 9.0, 700), peer("small", 100.0, 3.0, 300)
    ahead = peer_rows(peer("runed", 440.0, 2.0, 200), [fast, small])
    assert [(row.difference, row.passed) for row in ahead] == [("x 1.10", True)] * 2 + [("x 0.67", True)] * 2
    assert ahead[1].raw == "fast 400 texts/s, small 100 texts/s"
    assert not any(row.passed for row in peer_rows(peer("runed", 399.0, 3.1, 301), [fast, small]))


@pytest.mark.parametrize("rates", [(100.0, 100.0, 100.0), (100.0, 101.0, 30.0), (1.0, 9.0, 0.2), (5000.0, 4900.0, 300.0)])
def test_no_word_covers_another_or_leaves_the_picture(rates: tuple[float, float, float]) -> None:
    picture = draw("m", "here", Curves(curve(rates[0], 2.0), curve(rates[1], 2.0), curve(rates[2], 2.0), slots=32))
    root = ET.fromstring(picture)
    places = [
        (element.get("class", ""), float(element.get("x", 0)), float(element.get("y", 0)))
        for element in root.iter(f"{SVG}text")
    ]
    assert all(0 < x < 880 and 0 < y < 400 for _, x, y in places)
    names = sorted((x, y) for kind, x, y in places if kind.startswith("name"))
    assert len(names) == 9
    assert all(lower - upper >= 13 for (left, upper), (right, lower) in pairwise(names) if left == right)
    dots = re.findall(r'c[xy]="([0-9.]+)"|points', picture)
    assert all(0 < float(place) < 880 for place in dots)


def test_results_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    store(results(section(), section(None, "n")), path)
    write_report(results(section(), section(None, "n")), tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(first) == {"results.json", "benchmarks.md", "benchmarks-m.svg"}
    write_report(load(path), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first


def test_the_page_and_the_pictures_are_those_of_the_kept_results(tmp_path: Path) -> None:
    if not RESULTS.exists():
        pytest.skip("no whole run has kept its results yet: `make bench` does")
    write_report(load(), tmp_path)
    for file in tmp_path.iterdir():
        assert (DOCS / file.name).read_bytes() == file.read_bytes(), f"`python -m benchmarks --draw` writes {file.name} anew"


@pytest.mark.slow
@pytest.mark.usefixtures("llama_server", "minilm")
def test_a_part_of_a_run_leaves_page_and_results_alone() -> None:
    files = [DOCS / "benchmarks.md", *DOCS.glob("benchmarks-*.svg"), *([RESULTS] if RESULTS.exists() else [])]
    before = {file: file.stat().st_mtime_ns for file in files}
    run = [sys.executable, "-m", "benchmarks", "--quick", "--only", "cached", "--model", "minilm"]
    done = subprocess.run(run, cwd=DOCS.parent, capture_output=True, text=True, timeout=300, check=False)
    assert "docs/benchmarks.md and its pictures stay as they are: this was not a whole run" in done.stdout, done.stderr
    assert {file: file.stat().st_mtime_ns for file in files} == before
