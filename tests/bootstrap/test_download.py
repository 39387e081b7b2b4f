"""Downloads from a real server that misbehaves."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme

from runed.bootstrap import network
from runed.bootstrap.manifest import Artefact
from runed.bootstrap.network import Web, fetch
from runed.bootstrap.partial_files import partial_path
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.proxies import Proxies
from runed.errors import BootstrapError, DownloadError, VerificationError
from tests.bootstrap.parts import CONTENT, HALF, IMPATIENT, Wanted
from tests.bootstrap.site import (
    Behaviour,
    Exchange,
    Site,
    drop_after,
    ignore_range,
    redirect,
    running_site,
    serve,
    stall_after,
    status,
    trickle,
    without_length,
    wrong_part,
)
from tests.fakes.plain_http import patient_plain_server
from tests.support import wait_until


async def test_a_file_is_put_in_place_whole_with_progress(wanted: Wanted) -> None:
    await wanted.download()
    wanted.check_complete()
    assert wanted.bytes[0] == 0
    assert wanted.bytes[-1] == len(CONTENT)
    assert wanted.bytes == sorted(wanted.bytes)


async def test_a_dropped_connection_goes_on_where_it_broke(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF), drop_after(1000)]
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert wanted.site.requests[1].if_range == '"1"'
    assert "trying again" in wanted.retries[0]


async def test_a_line_that_breaks_more_often_than_there_are_attempts_still_gets_the_file_through(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(30_000)] * 9
    await wanted.download()
    wanted.check_complete()


async def test_a_server_that_trickles_is_given_up(wanted: Wanted) -> None:
    wanted.site.always["/f"] = drop_after(10)
    await wanted.fail(DownloadError, "could not be downloaded")
    assert len(wanted.site.requests) == IMPATIENT.attempts


async def test_a_connection_that_is_closed_early_without_a_length_is_not_taken_for_the_end(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [without_length(CONTENT[:HALF])]
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-"]


async def test_the_next_process_goes_on_where_the_last_one_gave_up(wanted: Wanted) -> None:
    wanted.site.always["/f"] = status(503)
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    await wanted.fail(
        DownloadError, "/f could not be downloaded: the server answered 503 .*: the download goes on where it stopped"
    )
    assert partial_path(wanted.target).stat().st_size == HALF
    wanted.site.always.clear()
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges()[-1] == f"bytes={HALF}-"
    assert wanted.bytes.count(HALF) >= 2  # progress begins where the file is, not at 0


async def test_a_cancel_leaves_what_is_there_for_the_next_try(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [stall_after(HALF)]
    task = asyncio.create_task(wanted.download(DownloadPolicy(stall_timeout=60)))
    await asyncio.to_thread(wait_until, lambda: wanted.bytes[-1:] == [HALF], what="the first part")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-"]


async def test_a_stalled_connection_counts_as_broken(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [stall_after(HALF)]
    await wanted.download()
    wanted.check_complete()
    assert "no answer in time" in wanted.retries[0]
    assert wanted.ranges() == ["", f"bytes={HALF}-"]


async def test_a_connection_that_only_trickles_counts_as_broken(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [trickle]
    policy = replace(IMPATIENT, slow_window=0.4, slow_bytes=1000)
    await asyncio.wait_for(wanted.download(policy), 20)
    wanted.check_complete()
    assert re.match(r"only \d+ bytes came in 0 s; trying again", wanted.retries[0])
    assert wanted.ranges()[1] != ""  # what came is kept


async def test_a_small_document_that_only_trickles_is_given_up(site: Site) -> None:
    site.files["/m"] = b"x" * 10_000
    site.always["/m"] = trickle
    policy = replace(IMPATIENT, slow_window=0.2, slow_bytes=1000)
    with pytest.raises(DownloadError, match=r"only \d+ bytes came in"):
        await asyncio.wait_for(fetch(f"{site.url}/m", limit=20_000, policy=policy, proxies=Proxies()), 20)


async def test_a_slow_disk_is_no_slow_line(site: Site) -> None:
    site.files["/m"] = b"x" * 300_000
    policy = replace(IMPATIENT, slow_window=0.2, slow_bytes=1_000_000)
    async with Web(policy, Proxies()) as web, web.get(f"{site.url}/m", {}) as response:
        count = 0
        async for piece in web.body(response):
            count += len(piece)
            await asyncio.sleep(0.1)
    assert count == 300_000


async def test_a_file_that_changed_on_the_server_is_not_glued_to_the_old_part(wanted: Wanted) -> None:
    wanted.site.files["/f"] = b"x" * len(CONTENT)
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    wanted.site.always["/f"] = status(500)
    await wanted.fail(DownloadError, "500")
    wanted.site.files["/f"], wanted.site.etags["/f"] = CONTENT, '"2"'
    wanted.site.always.clear()
    await wanted.download()
    wanted.check_complete()
    asked, last = wanted.site.requests[-2:]
    assert (asked.range, asked.if_range) == (f"bytes={HALF}-", '"1"')  # to which the server answered with all of it
    assert last.range == ""


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
async def test_without_a_strong_etag_the_size_and_the_hash_decide(wanted: Wanted, etag: str) -> None:
    wanted.site.etags["/f"] = etag
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    await wanted.download()
    wanted.check_complete()
    assert wanted.site.requests[1].if_range == ""
    assert wanted.ranges()[1] == f"bytes={HALF}-"


async def test_a_server_that_ignores_ranges_sends_all_of_it_again(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF), ignore_range]
    await wanted.download()
    wanted.check_complete()


async def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(wanted: Wanted) -> None:
    wanted.site.always["/f"] = drop_after(HALF, honour_range=False)
    await wanted.fail(DownloadError, "could not be downloaded")
    assert len(wanted.site.requests) <= 4 * IMPATIENT.attempts


async def test_a_part_that_was_not_asked_for_is_not_appended(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF), wrong_part]
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == ["", f"bytes={HALF}-", ""]


async def test_a_complete_partial_file_needs_no_request(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    wanted.site.always["/f"] = status(500)
    await wanted.fail(DownloadError, "500")
    partial_path(wanted.target).write_bytes(CONTENT)
    wanted.site.requests.clear()
    await wanted.download()
    wanted.check_complete()
    assert wanted.site.requests == []


@pytest.mark.parametrize("content", [CONTENT[:HALF], CONTENT + b"more", b""])
async def test_a_partial_file_of_unknown_origin_is_not_gone_on_with(wanted: Wanted, content: bytes) -> None:
    partial_path(wanted.target).write_bytes(content)
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges() == [""]


async def test_a_damaged_partial_file_is_noticed_and_downloaded_again(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    wanted.site.always["/f"] = status(500)
    await wanted.fail(DownloadError, "500")
    partial_path(wanted.target).write_bytes(b"y" * HALF)
    wanted.site.always.clear()
    await wanted.download()
    wanted.check_complete()
    assert wanted.ranges()[-2:] == [f"bytes={HALF}-", ""]


async def test_a_corrupt_file_is_downloaded_twice_but_never_a_third_time(wanted: Wanted) -> None:
    wanted.site.files["/f"] = b"x" * len(CONTENT)
    await wanted.fail(VerificationError, f"has SHA-256 .* but the manifest says {wanted.artefact.sha256}, twice")
    assert wanted.ranges() == ["", ""]
    assert not partial_path(wanted.target).exists()
    wanted.site.files["/f"] = CONTENT
    await wanted.download()
    wanted.check_complete()


async def test_one_corrupt_answer_is_forgiven(wanted: Wanted) -> None:
    def corrupt_once(exchange: object) -> None:
        wanted.site.files["/f"] = b"x" * len(CONTENT)
        serve(exchange)  # type: ignore[arg-type] # an Exchange, as every behaviour gets
        wanted.site.files["/f"] = CONTENT

    wanted.site.behaviours["/f"] = [corrupt_once]
    await wanted.download()
    wanted.check_complete()


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-1]])
async def test_a_file_of_another_size_is_refused_before_its_first_byte(wanted: Wanted, content: bytes) -> None:
    wanted.site.files["/f"] = content
    await wanted.fail(VerificationError, f"has {len(content)} bytes, but the manifest says {len(CONTENT)}")
    assert len(wanted.site.requests) == 1
    assert wanted.bytes == [0]


async def test_a_rest_of_another_size_is_refused(wanted: Wanted) -> None:
    wanted.site.etags["/f"] = ""
    wanted.site.behaviours["/f"] = [drop_after(HALF), status(500)]
    wanted.site.always["/f"] = status(500)
    await wanted.fail(DownloadError, "500")
    wanted.site.always.clear()
    wanted.site.files["/f"] = CONTENT + b"more"
    await wanted.fail(VerificationError, f"has {len(CONTENT) + 4} bytes")


async def test_a_body_that_does_not_end_never_fills_the_disk(wanted: Wanted) -> None:
    wanted.site.behaviours["/f"] = [without_length(CONTENT + b"z" * 1_000_000)]
    await wanted.fail(VerificationError, "has more bytes")
    assert not partial_path(wanted.target).exists()
    assert max(wanted.bytes) <= len(CONTENT)
    await wanted.download()
    wanted.check_complete()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
async def test_what_will_not_pass_fails_at_once_with_url_and_status(wanted: Wanted, code: int) -> None:
    wanted.site.always["/f"] = status(code)
    await wanted.fail(DownloadError, f"{wanted.artefact.url} answered {code} ")
    assert len(wanted.site.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
async def test_what_can_pass_is_tried_again(wanted: Wanted, code: int) -> None:
    wanted.site.behaviours["/f"] = [status(code), status(code)]
    await wanted.download()
    wanted.check_complete()


async def test_what_does_not_pass_is_given_up_after_the_attempts_of_the_policy(wanted: Wanted) -> None:
    wanted.site.always["/f"] = status(503)
    await wanted.fail(DownloadError, "the server answered 503")
    assert len(wanted.site.requests) == IMPATIENT.attempts


@pytest.mark.parametrize(
    ("header", "least"),
    [
        (lambda: "0", 0),
        (lambda: "1000", 0.3),  # no longer than the policy's bound, 0.3 s
        (lambda: formatdate(time.time() + 1000), 0.3),
        (lambda: "soon", 0),
    ],
)
async def test_retry_after_is_honoured_within_bounds(wanted: Wanted, header: object, least: float) -> None:
    assert callable(header)
    wanted.site.behaviours["/f"] = [status(429, Retry_After=header())]
    started = time.monotonic()
    await wanted.download()
    assert least <= time.monotonic() - started < 30


@pytest.mark.parametrize("years", [-30, 30])
async def test_a_date_in_retry_after_counts_by_the_servers_clock(wanted: Wanted, years: int) -> None:
    """Beside a clock that is wrong by years, each try waited for the longest time."""
    theirs = time.time() + years * 365 * 86400

    def busy(exchange: Exchange) -> None:
        exchange.send_response_only(503)
        for name, seconds in (("Date", 0), ("Retry-After", 1)):
            exchange.send_header(name, formatdate(theirs + seconds, usegmt=True))
        exchange.send_header("Content-Length", "0")
        exchange.end_headers()

    wanted.site.behaviours["/f"] = [busy]
    started = time.monotonic()
    await wanted.download(replace(IMPATIENT, max_retry_after=20))
    assert 0.9 <= time.monotonic() - started < 15


async def test_nobody_listening_is_told_with_the_url(wanted: Wanted) -> None:
    with running_site() as gone:
        url = gone.url
    wanted.artefact = Artefact(f"{url}/f", wanted.artefact.sha256, wanted.artefact.size)
    await wanted.fail(DownloadError, f"{url}/f could not be downloaded: .*; check the network")


async def test_redirects_are_followed_and_ranges_with_them(wanted: Wanted) -> None:
    wanted.site.files["/real"] = CONTENT
    wanted.site.always["/f"] = redirect("/real")
    wanted.site.behaviours["/real"] = [drop_after(HALF)]
    await wanted.download()
    wanted.check_complete()
    assert [request.range for request in wanted.site.requests if request.path == "/real"] == ["", f"bytes={HALF}-"]


async def test_an_error_names_the_server_that_a_redirect_led_to(wanted: Wanted, secure_site: Site) -> None:
    """Behind a firewall, the hub was called unreachable instead of the server that holds its files."""
    with running_site() as gone:
        place = gone.url.removeprefix("http://")
    wanted.site.always["/f"] = redirect(f"http://me:pass-word@{place}/f?sig=nature")
    await wanted.fail(DownloadError, rf"{wanted.site.url}/f could not be downloaded: .* \(redirected to {place}\); check")
    wanted.site.always["/f"] = redirect(f"{secure_site.url}/f")
    place = secure_site.url.removeprefix("https://")
    await wanted.fail(DownloadError, rf"the server of {wanted.site.url}/f \(redirected to {place}\) cannot be trusted")


async def test_a_redirect_loop_ends(wanted: Wanted) -> None:
    wanted.site.always["/f"] = redirect("/f")
    await wanted.fail(DownloadError, "redirects more than 10 times")
    assert len(wanted.site.requests) == 11


@pytest.mark.parametrize("location", ["ftp://example.org/f", "file:///etc/passwd", "ws://127.0.0.1:1/f", "wss://127.0.0.1:1/f"])
async def test_a_redirect_to_what_is_no_web_page_is_refused(wanted: Wanted, location: str) -> None:
    wanted.site.always["/f"] = redirect(location)
    await wanted.fail(DownloadError, "is, or redirects to, a URL that cannot be fetched")


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """A certificate authority that is not trusted yet."""
    return trustme.CA()


@pytest.fixture
def secure_site(authority: trustme.CA) -> Iterator[Site]:
    """A site by https."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with running_site(tls) as site:
        yield site


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the authority, as users behind a company's proxy do."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


@pytest.mark.usefixtures("trusted")
async def test_a_private_authority_is_trusted_by_ssl_cert_file(secure_site: Site, tmp_path: Path) -> None:
    wanted = Wanted(secure_site, tmp_path)
    await wanted.download()
    wanted.check_complete()


async def test_a_server_that_cannot_be_trusted_is_not_tried_again(secure_site: Site, tmp_path: Path) -> None:
    wanted = Wanted(secure_site, tmp_path)
    await wanted.fail(DownloadError, "cannot be trusted: .*set SSL_CERT_FILE")
    assert wanted.retries == []


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(("begins", "ends"), [(1000, 2000), (-2000, -1000)])
async def test_a_certificate_that_is_not_valid_today_points_to_the_clock(
    authority: trustme.CA, tmp_path: Path, begins: int, ends: int
) -> None:
    """A machine without a battery for its clock was told to set SSL_CERT_FILE."""
    now = datetime.now(UTC)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begin, end = (now + timedelta(days) for days in (begins, ends))
    authority.issue_cert("127.0.0.1", not_before=begin, not_after=end).configure_cert(tls)
    with running_site(tls) as site:
        wanted = Wanted(site, tmp_path)
        await wanted.fail(DownloadError, f"cannot be trusted: .*; check the clock of this machine: by it, today is {now:%Y}-")


@pytest.mark.usefixtures("trusted")
async def test_a_redirect_from_https_to_http_is_not_followed(wanted: Wanted, secure_site: Site) -> None:
    secure_site.always["/f"] = redirect(wanted.artefact.url)
    wanted.artefact = Artefact(f"{secure_site.url}/f", wanted.artefact.sha256, wanted.artefact.size)
    await wanted.fail(DownloadError, "redirects from https to an insecure URL")
    assert wanted.site.requests == []


async def test_a_server_without_tls_is_told_at_the_first_try(wanted: Wanted, site: Site) -> None:
    wanted.artefact = Artefact(f"{site.url.replace('http:', 'https:')}/f", wanted.artefact.sha256, wanted.artefact.size)
    await wanted.fail(DownloadError, "does not speak TLS, as https needs it; correct what names it")


async def test_a_server_without_tls_that_waits_for_more_is_told(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SILENCE", 0.1)
    async with patient_plain_server() as url:
        wanted.artefact = Artefact(f"{url}/f", wanted.artefact.sha256, wanted.artefact.size)
        await wanted.fail(DownloadError, "speaks http, not https; correct what names it")


@pytest.mark.usefixtures("trusted")
async def test_a_slow_handshake_is_waited_for(wanted: Wanted, secure_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SILENCE", 0.0)
    secure_site.files |= wanted.site.files
    wanted.artefact = Artefact(
        wanted.artefact.url.replace(wanted.site.url, secure_site.url), wanted.artefact.sha256, wanted.artefact.size
    )
    await wanted.download()


async def test_secrets_of_a_url_stay_out_of_errors(wanted: Wanted) -> None:
    secret = wanted.artefact.url.replace("http://", "http://me:pass-word@") + "?sig=sig-nature"
    wanted.artefact = Artefact(secret, wanted.artefact.sha256, wanted.artefact.size)
    with pytest.raises(DownloadError) as caught:
        await wanted.download()
    assert "pass-word" not in str(caught.value)
    assert "sig-nature" not in str(caught.value)


async def test_a_folder_that_is_gone_is_told(wanted: Wanted, tmp_path: Path) -> None:
    wanted.target = tmp_path / "gone" / "f"
    await wanted.fail(BootstrapError, "cannot write f: No such file or directory")


async def test_certificates_that_cannot_be_used_are_told(
    secure_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    wanted = Wanted(secure_site, tmp_path)
    await wanted.fail(DownloadError, "the certificates of the environment cannot be used: .*; check SSL_CERT_FILE")


async def test_certificates_that_cannot_be_used_are_not_needed_without_encryption(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    await wanted.download()
    wanted.check_complete()


async def test_a_redirect_to_https_is_checked_by_the_certificates(wanted: Wanted, secure_site: Site) -> None:
    wanted.site.always["/f"] = redirect(f"{secure_site.url}/f")
    await wanted.fail(DownloadError, "cannot be trusted: .*set SSL_CERT_FILE")
    assert secure_site.requests == []


async def test_a_small_document_has_a_limit(site: Site) -> None:
    site.files["/m"] = b"x" * 2000
    assert await fetch(f"{site.url}/m", limit=2000, policy=IMPATIENT, proxies=Proxies()) == site.files["/m"]
    with pytest.raises(DownloadError, match="is larger than 1999 bytes"):
        await fetch(f"{site.url}/m", limit=1999, policy=IMPATIENT, proxies=Proxies())


@pytest.mark.parametrize("behaviour", [status(500), drop_after(10), stall_after(10)])
async def test_a_small_document_is_tried_again_too(site: Site, behaviour: Behaviour) -> None:
    site.files["/m"] = b"x" * 2000
    site.behaviours["/m"] = [behaviour]
    assert await fetch(f"{site.url}/m", limit=5000, policy=IMPATIENT, proxies=Proxies()) == site.files["/m"]
