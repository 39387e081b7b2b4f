"""Downloads from servers and proxies that do not continue, compress, or answer a login page; and bad files in the way."""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runed.bootstrap.manifest import Artefact
from runed.bootstrap.partial_files import partial_path
from runed.errors import DownloadError, RunedError, VerificationError
from tests.bad_files import BAD_FILES, put_bad_file
from tests.bootstrap.parts import CONTENT, HALF, IMPATIENT, Wanted, sha256
from tests.bootstrap.site import Behaviour, Exchange, drop_after, redirect, serve, status, without_length

WHOLE = len(CONTENT)
LATER = CONTENT[HALF:]
REST = f"bytes {HALF}-{WHOLE - 1}/{WHOLE}"
PAGE = b"<html>Please log in</html>"
HTML = "Text/HTML; charset=utf-8"


def answer(code: int, body: bytes, *, chunked: bool = False, **headers: str) -> Behaviour:
    """Answer with these headers and this body, whose length is told unless it is `chunked`."""

    def behave(exchange: Exchange) -> None:
        exchange.send_response(code)
        for name, value in headers.items():
            exchange.send_header(name.replace("_", "-"), value)
        exchange.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
        exchange.end_headers()
        exchange.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)

    return behave


def noting(wanted: Wanted, kept: list[int]) -> Behaviour:
    """Answer as a correct server, and note the size of the partial file before."""

    def behave(exchange: Exchange) -> None:
        kept.append(partial_path(wanted.target).stat().st_size)
        serve(exchange)

    return behave


NO_REST = {
    "200 with Content-Range and the rest": answer(200, LATER, Content_Range=REST),
    "200 with Content-Range and the whole": answer(200, CONTENT, Content_Range=f"bytes 0-{WHOLE - 1}/{WHOLE}"),
    "200 without a length": answer(200, CONTENT, chunked=True),
    "206 of another part": answer(206, CONTENT[1:], Content_Range=f"bytes 1-{WHOLE - 1}/{WHOLE}"),
    "206 of the whole": answer(206, CONTENT, Content_Range=f"bytes 0-{WHOLE - 1}/{WHOLE}"),
    "206 without Content-Range": answer(206, LATER),
    "206 with a broken Content-Range": answer(206, LATER, Content_Range="bytes -"),
    "206 with large numbers": answer(206, LATER, Content_Range=f"bytes {'9' * 5000}-{'9' * 5000}/*"),
    "206 of another total": answer(206, LATER, Content_Range=f"bytes {HALF}-{WHOLE - 1}/{WHOLE + 1}"),
    "206 of other units": answer(206, LATER, Content_Range=REST.replace("bytes", "lines")),
    "206 of another length": answer(206, LATER + b"more", Content_Range=REST),
    "206 that does not end": answer(206, LATER + b"z" * 100_000, chunked=True, Content_Range=REST),
    "206 of another version": answer(206, LATER, Content_Range=REST, ETag='"2"'),
    "206 in parts": answer(206, b"--x\r\n\r\n--x--", Content_Type="multipart/byteranges; boundary=x"),
    "206 compressed": answer(206, gzip.compress(LATER), Content_Range=REST, Content_Encoding="gzip"),
    "206 compressed without a length": answer(
        206, gzip.compress(LATER), chunked=True, Content_Range=REST, Content_Encoding="gzip"
    ),
    "206 with other bytes": answer(206, bytes(len(LATER)), Content_Range=REST),
    "416": status(416, Content_Range=f"bytes */{WHOLE}"),
    "400": status(400),
    "403": status(403),
    "404": status(404),
    "412": status(412),
    "a login page": answer(200, PAGE, Content_Type=HTML),
    "a login page of the right length": answer(200, PAGE.ljust(WHOLE), Content_Type=HTML),
    "a redirect to a login page": redirect("/login"),
}


@pytest.mark.parametrize("kind", NO_REST)
async def test_a_server_that_does_not_continue_is_asked_for_the_whole_once(wanted: Wanted, kind: str) -> None:
    kept: list[int] = []
    wanted.site.files["/login"] = PAGE
    wanted.site.behaviours["/f"] = [drop_after(HALF), NO_REST[kind], noting(wanted, kept)]
    await wanted.download()
    wanted.check_complete()
    assert [request.range for request in wanted.site.requests if request.path == "/f"] == ["", f"bytes={HALF}-", ""]
    assert kept == [HALF]


NO_WHOLE: dict[str, tuple[Behaviour, type[RunedError], str]] = {
    "a busy server": (status(503), DownloadError, "answered 503"),
    "a missing file": (status(404), DownloadError, "answered 404"),
    "nothing": (status(204), DownloadError, "answered 204"),
    "a login page": (answer(200, PAGE, Content_Type=HTML), DownloadError, "a web page instead of the file, such as the login"),
    "a login page without a length": (answer(200, PAGE, chunked=True, Content_Type=HTML), DownloadError, "a web page"),
    "a long login page": (answer(200, PAGE.ljust(2 * WHOLE), Content_Type=HTML), DownloadError, "a web page"),
    "a login page of the right length": (answer(200, PAGE.ljust(WHOLE), Content_Type=HTML), VerificationError, "twice"),
    "a redirect to a login page": (redirect("/login"), DownloadError, "a web page"),
    "another file": (answer(200, b"x" * WHOLE), VerificationError, "has SHA-256"),
    "a file of another size": (answer(200, b"x" * 10), VerificationError, "has 10 bytes"),
    "no end": (answer(200, b"z" * 3 * WHOLE, chunked=True), VerificationError, "has more bytes"),
    "an early end": (drop_after(HALF - 1, honour_range=False), DownloadError, "could not be downloaded"),
    "an early end without a length": (without_length(b"x" * (HALF + 10)), DownloadError, "the connection was closed after"),
    "an unknown encoding": (
        answer(200, b"?", Content_Encoding="br"),
        DownloadError,
        "compressed by 'br', although told not to",
    ),
    "another encoding than told": (answer(200, PAGE, Content_Encoding="gzip"), DownloadError, "could not be downloaded"),
    "half an encoding": (answer(200, gzip.compress(CONTENT)[:999], Content_Encoding="gzip"), DownloadError, "could not be"),
    "another file compressed": (
        answer(200, gzip.compress(bytes(WHOLE)), Content_Encoding="gzip"),
        VerificationError,
        "SHA-256",
    ),
    "a bomb": (answer(200, gzip.compress(bytes(WHOLE * 9)), Content_Encoding="gzip"), VerificationError, "has more bytes"),
    "a part": (answer(206, LATER, Content_Range=f"bytes 1-2/{WHOLE}"), DownloadError, "answers 206 to a request for the whole"),
    "416": (status(416), DownloadError, "answers 416 to a request for the whole file"),
}


@pytest.mark.parametrize("kind", NO_WHOLE)
async def test_the_good_half_stays_until_there_is_something_better(wanted: Wanted, kind: str) -> None:
    behave, error, match = NO_WHOLE[kind]
    wanted.site.always |= {"/f": behave, "/login": answer(200, PAGE, Content_Type=HTML)}
    wanted.site.behaviours["/f"] = [drop_after(HALF), *[status(416), behave] * 3] if kind == "416" else [drop_after(HALF)]
    await wanted.fail(error, match)
    assert partial_path(wanted.target).read_bytes() == CONTENT[:HALF]
    assert wanted.files() == ["f.partial", "f.partial.json"]
    wanted.site.always.clear()
    wanted.site.behaviours.clear()
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges()[-1] == f"bytes={HALF}-"


async def test_a_fresh_start_that_came_further_is_gone_on_with(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF), status(416), drop_after(HALF + 1000, honour_range=False)]
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-", "", f"bytes={HALF + 1000}-"]


async def test_any_number_of_fresh_starts_ends_with_the_right_file(wanted: Wanted) -> None:
    broken = [drop_after(HALF + place, honour_range=False) for place in (1000, 2000, 3000)]
    wanted.site.behaviours["/f"] = [drop_after(HALF), *(each for one in broken for each in (status(416), one))]
    await wanted.download(replace(IMPATIENT, attempts=9))
    wanted.check_complete()
    assert wanted.ranges()[-1] == f"bytes={HALF + 3000}-"


async def test_a_changed_etag_does_not_keep_a_flaky_line_from_going_on(wanted: Wanted) -> None:
    def change(exchange: Exchange) -> None:
        wanted.site.etags["/f"] = '"2"'
        serve(exchange)

    wanted.site.behaviours["/f"] = [drop_after(HALF), change, drop_after(10, honour_range=False)]
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-", "", f"bytes={HALF}-"]
    assert [request.if_range for request in wanted.site.requests] == ["", '"1"', "", ""]


async def test_without_room_for_both_the_half_goes_first(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    usage = shutil.disk_usage(wanted.target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=WHOLE - 1))
    wanted.site.behaviours["/f"] = [drop_after(HALF), status(416), noting(wanted, kept)]
    await wanted.download()
    wanted.check_complete()
    assert kept == [0]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_proxy_that_compresses_although_told_not_to_is_understood(
    wanted: Wanted, encoding: str, compress: Callable[[bytes], bytes], *, chunked: bool
) -> None:
    whole = answer(200, compress(CONTENT), chunked=chunked, Content_Encoding=encoding)
    rest = answer(206, compress(LATER), chunked=chunked, Content_Encoding=encoding, Content_Range=REST)
    wanted.site.always["/f"] = lambda exchange: (rest if exchange.headers.get("Range") else whole)(exchange)
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    await wanted.download()
    wanted.check_complete()
    wanted.target.unlink()
    await wanted.download()
    wanted.check_complete()


async def test_a_server_that_calls_a_packed_file_an_encoding_is_understood(wanted: Wanted) -> None:
    packed = gzip.compress(bytes(range(256)) * 400, mtime=0)
    half = len(packed) // 2
    wanted.artefact = Artefact(wanted.artefact.url, sha256(packed), len(packed))

    def broken(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(packed)))
        exchange.send_header("Content-Encoding", "x-gzip")
        exchange.end_headers()
        exchange.wfile.write(packed[:half])
        exchange.close_connection = True

    place = f"bytes {half}-{len(packed) - 1}/{len(packed)}"
    rest = answer(206, packed[half:], Content_Range=place, Content_Encoding="x-gzip", ETag='"1"')
    wanted.site.behaviours["/f"] = [broken, rest]
    await wanted.download()
    assert wanted.target.read_bytes() == packed
    assert wanted.ranges() == ["", f"bytes={half}-"]


async def test_a_servers_words_cannot_steer_the_terminal(wanted: Wanted) -> None:
    wanted.site.always["/f"] = answer(200, b"?", Content_Encoding="\x9b2J\x1b[2J")
    with pytest.raises(DownloadError) as caught:
        await wanted.download()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", str(caught.value) + "".join(wanted.retries))


# Files in the way


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("ending", ["partial", "partial.json", "partial.new"])
async def test_anything_in_the_place_of_a_partial_file_counts_as_missing(wanted: Wanted, ending: str, kind: str) -> None:
    put_bad_file(kind, wanted.target.with_name(f"f.{ending}"))
    wanted.site.behaviours["/f"] = [drop_after(HALF), status(416)]
    await wanted.download()
    assert wanted.target.read_bytes() == CONTENT
    assert [name for name in wanted.files() if not name.endswith(".aside")] == ["f"]


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_anything_in_the_place_of_the_file_itself_is_replaced(wanted: Wanted, kind: str) -> None:
    put_bad_file(kind, wanted.target)
    await wanted.download()
    wanted.check_complete()
    assert not wanted.target.is_symlink()


# Files of this machine


async def test_a_file_of_this_machine_is_copied_and_verified(wanted: Wanted, tmp_path: Path) -> None:
    source = tmp_path / "a source"
    source.write_bytes(CONTENT)
    wanted.artefact = Artefact(source.as_uri(), sha256(CONTENT), WHOLE)
    await wanted.download()
    wanted.check_complete()
    assert wanted.bytes[-1] == WHOLE
    assert wanted.site.requests == []
    wanted.target.unlink()
    source.write_bytes(b"x" * WHOLE)
    await wanted.fail(VerificationError, f"{source} has SHA-256 .*, but the manifest says")
    source.write_bytes(CONTENT[1:])
    await wanted.fail(VerificationError, f"{source} has {WHOLE - 1} bytes, but the manifest says {WHOLE}")
    assert wanted.files() == ["a source"]


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a socket", "a link to nothing", "a link to itself", "a device"])
async def test_a_file_of_this_machine_that_is_none_is_told(wanted: Wanted, tmp_path: Path, kind: str) -> None:
    put_bad_file(kind, tmp_path / "source")
    wanted.artefact = Artefact((tmp_path / "source").as_uri(), sha256(CONTENT), WHOLE)
    await wanted.fail(DownloadError, r"/source cannot be read: .*; check RUNED_MANIFEST")
