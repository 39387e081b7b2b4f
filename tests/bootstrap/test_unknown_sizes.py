"""Downloads whose size the manifest does not tell. The hash decides alone."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from runed.bootstrap.download import download
from runed.bootstrap.manifest import Artefact
from runed.bootstrap.partial_files import partial_path
from runed.bootstrap.progress import Phase, Progress, ProgressReporter
from runed.bootstrap.proxies import Proxies
from runed.errors import DownloadError, VerificationError
from tests.bootstrap.parts import CONTENT, HALF, IMPATIENT, Wanted, sha256
from tests.bootstrap.site import Behaviour, Exchange, drop_after, ignore_range, status, without_length, wrong_part
from tests.bootstrap.test_odd_servers import HTML, NO_REST, PAGE, answer


@pytest.fixture
def unsized(wanted: Wanted) -> Wanted:
    """A file of the site whose size nobody tells but the site."""
    wanted.artefact = replace(wanted.artefact, size=None)
    return wanted


@pytest.mark.parametrize("behaviours", [
    [],
    [drop_after(HALF)],
    [drop_after(HALF), drop_after(HALF // 2)],
    [drop_after(HALF), ignore_range],
    [drop_after(HALF), wrong_part],
    [status(503), drop_after(HALF), status(503)],
    [without_length(CONTENT)],
    [without_length(CONTENT[:HALF])],  # a short file cannot be told from a whole one, but by its hash
    [without_length(CONTENT + b"more")],
    [answer(200, CONTENT[:HALF])],
    [answer(200, CONTENT + b"more")],
    [answer(200, PAGE, Content_Type=HTML)],
    [drop_after(HALF), answer(200, PAGE.ljust(len(CONTENT)), Content_Type=HTML)],
    [answer(200, gzip.compress(CONTENT), Content_Encoding="gzip")],
])  # fmt: skip
async def test_a_file_of_unknown_size_comes_whole(unsized: Wanted, behaviours: list[Behaviour]) -> None:
    unsized.site.behaviours["/f"] = behaviours
    await unsized.download()
    unsized.check_complete()


@pytest.mark.parametrize("kind", NO_REST)
async def test_a_file_of_unknown_size_comes_whole_from_a_server_that_cannot_go_on(unsized: Wanted, kind: str) -> None:
    unsized.site.behaviours["/f"] = [drop_after(HALF), NO_REST[kind]]
    await unsized.download()
    unsized.check_complete()


async def test_a_drop_of_a_file_of_unknown_size_costs_no_byte_twice(unsized: Wanted) -> None:
    unsized.site.behaviours["/f"] = [drop_after(HALF)]
    await unsized.download()
    assert unsized.ranges() == ["", f"bytes={HALF}-"]


async def test_a_whole_partial_file_of_unknown_size_needs_no_request(unsized: Wanted) -> None:
    unsized.site.behaviours["/f"] = [drop_after(HALF)]
    unsized.site.always["/f"] = status(404)
    with pytest.raises(DownloadError):
        await unsized.download()
    unsized.site.requests.clear()
    partial_path(unsized.target).write_bytes(CONTENT)
    await unsized.download()
    unsized.check_complete()
    assert unsized.site.requests == []


async def test_a_wrong_file_of_unknown_size_is_refused(unsized: Wanted) -> None:
    unsized.site.always["/f"] = answer(200, b"another file")
    await unsized.fail(VerificationError, r"has SHA-256 .*, but the manifest says .*, twice")


@pytest.mark.parametrize("length", [2**40, 10**17])
async def test_a_length_that_no_file_has_is_refused_before_its_first_byte(unsized: Wanted, length: int) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.wfile.write(exchange.begin(length=length))

    unsized.site.always["/f"] = behave
    await unsized.fail(VerificationError, r"has \d+ bytes, but at most 68719476736 are expected")


async def test_an_archive_is_no_encoding_of_another_file(unsized: Wanted, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    unsized.site.behaviours["/f.tar.gz"] = [answer(200, packed, Content_Encoding="gzip")]
    unsized.artefact = Artefact(f"{unsized.site.url}/f.tar.gz", sha256(packed), None)
    await unsized.download()
    assert unsized.target.read_bytes() == packed


async def test_a_copy_needs_no_size(unsized: Wanted, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    artefact = Artefact(source.as_uri(), sha256(CONTENT), None)
    await download(artefact, unsized.target, policy=IMPATIENT, proxies=Proxies(), on_bytes=unsized.bytes.append, on_retry=print)
    unsized.check_complete()


async def test_progress_without_a_total_is_reported() -> None:
    seen: list[Progress] = []
    reporter = ProgressReporter(seen.append)
    reporter.begin(Phase.FETCHING_MODEL, "downloading", downloading=True)
    reporter.advance(0)
    reporter.advance(5)
    assert seen[0] == Progress(Phase.FETCHING_MODEL, 0, 0, "downloading", downloading=True)


async def test_the_last_bytes_before_a_stall_are_told_once() -> None:
    seen: list[Progress] = []
    reporter = ProgressReporter(seen.append)
    reporter.begin(Phase.FETCHING_MODEL, "downloading", total=100, downloading=True)
    reporter.advance(30)
    reporter.advance(50)
    assert [each.bytes_done for each in seen] == [0]
    await asyncio.sleep(0.5)
    assert [each.bytes_done for each in seen] == [0, 50]
    reporter.advance(60)
    reporter.advance(70)
    reporter.pause()
    await asyncio.sleep(0.5)
    assert [each.bytes_done for each in seen] == [0, 50, 60], "a step that has ended is told of"
