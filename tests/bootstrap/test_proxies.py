"""Downloads through proxies, around them, and errors that name them."""

from __future__ import annotations

import asyncio
import base64
import gc
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import psutil
import pytest
import trustme

from runed.bootstrap.manifest import Artefact
from runed.bootstrap.network import fetch
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.proxies import Proxies
from runed.errors import DownloadError
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import CONTENT, IMPATIENT, Release, Wanted
from tests.bootstrap.proxy_servers import ProxyServer, running_proxy
from tests.bootstrap.site import Site, drop_after, redirect, running_site, status
from tests.support import capture_logs

VARIABLES = [name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")]
SECRET = "pass-word"

TrustedSite = Callable[[str], AbstractContextManager[Site]]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def far(wanted: Wanted) -> Wanted:
    """A file of a host that only a proxy reaches."""
    wanted.artefact = Artefact("http://files.example/f", wanted.artefact.sha256, wanted.artefact.size)
    return wanted


@pytest.fixture
def http_proxy(wanted: Wanted) -> Iterator[ProxyServer]:
    with running_proxy("http", wanted.site.url) as proxy:
        yield proxy


@pytest.fixture
def socks_proxy(wanted: Wanted) -> Iterator[ProxyServer]:
    with running_proxy("socks", wanted.site.url) as proxy:
        yield proxy


@pytest.fixture
def trusted_site(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> TrustedSite:
    """Serve a site by https under a name, with a certificate that downloads trust."""

    def run(name: str) -> AbstractContextManager[Site]:
        authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(tls)
        file = tmp_path_factory.mktemp("ca") / "ca.pem"
        authority.cert_pem.write_to_path(str(file))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        return running_site(tls)

    return run


def closed_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("variable", "form"),
    [
        ("http_proxy", "http://{}"),
        ("HTTP_PROXY", "{}"),
        ("all_proxy", "HTTP://{}/"),
        ("ALL_PROXY", "http://me:p%40ss@{}"),
        ("http_proxy", "me:p@ss@{}"),
    ],
)
async def test_an_http_proxy_is_used(
    far: Wanted, http_proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    monkeypatch.setenv(variable, form.format(http_proxy.address))
    far.site.behaviours["/f"] = [drop_after(1000)]
    await far.download()
    far.check_complete()
    assert set(http_proxy.asked) == {"files.example"}
    login = f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert set(http_proxy.logins) == ({login} if "me" in form else set())


@pytest.mark.parametrize(
    ("variable", "form"),
    [
        ("all_proxy", "socks5://{}"),
        ("all_proxy", "socks://{}/"),
        ("http_proxy", "socks5h://{}"),
        ("ALL_PROXY", "SOCKS5://me:p%40ss@{}"),
        ("all_proxy", "socks5h://me:p@ss@{}/"),
    ],
)
async def test_a_socks_proxy_is_used_and_looks_up_the_name_itself(
    far: Wanted, socks_proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    monkeypatch.setenv(variable, form.format(socks_proxy.address))
    await far.download()
    far.check_complete()
    assert socks_proxy.asked == ["files.example:80"]
    assert socks_proxy.logins == (["me:p@ss"] if "me" in form else [])


async def test_a_failed_handshake_with_a_socks_proxy_leaves_no_connection_open(
    far: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_proxy("refusing", far.site.url) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{proxy.address}")
        await far.fail(DownloadError, "could not be downloaded")
        assert len(far.retries) > 0
        port = int(proxy.address.rpartition(":")[2])
        ours = [it for it in psutil.Process().net_connections("tcp") if getattr(it.raddr, "port", 0) == port]
        assert [it.status for it in ours if it.status == psutil.CONN_ESTABLISHED] == []


@pytest.mark.parametrize("kind", ["http", "socks"])
async def test_https_goes_through_a_proxy_and_stays_private(
    far: Wanted, trusted_site: TrustedSite, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with trusted_site("files.example") as site, running_proxy(kind, site.url) as proxy:
        site.files["/f"] = far.site.files["/f"]
        monkeypatch.setenv("HTTPS_PROXY", f"{'http' if kind == 'http' else 'socks5h'}://{proxy.address}")
        far.artefact = Artefact("https://files.example/f", far.artefact.sha256, far.artefact.size)
        await far.download()
        far.check_complete()
        assert proxy.asked == ["files.example:443"]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0", "LOCALHOST."),
        *("a.localhost", "A.b.LocalHost.", "localhost.localdomain", "LOCALHOST.LocalDomain.", "localhost4.localdomain4"),
        *("localhost6.localdomain6", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"),
    ],
)
@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
async def test_this_machine_is_never_reached_through_a_proxy(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch, host: str, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    url = wanted.artefact.url.replace("127.0.0.1", host)
    proxies = Proxies()
    assert proxies.choose(url) is None
    wanted.site.files["/m"] = b"{}"
    if host != "[::ffff:127.0.0.1]":  # the site listens on IPv4 alone
        assert await fetch(url.replace("/f", "/m"), limit=10, policy=IMPATIENT, proxies=proxies) == b"{}"


async def test_a_name_of_loopback_keeps_its_certificate(far: Wanted, trusted_site: TrustedSite) -> None:
    with trusted_site("a.localhost") as site:
        site.files["/f"] = far.site.files["/f"]
        url = f"{site.url.replace('127.0.0.1', 'a.localhost')}/f"
        far.artefact = Artefact(url, far.artefact.sha256, far.artefact.size)
        await far.download()
    far.check_complete()


@pytest.mark.parametrize(
    "host", ["notlocalhost", "localhost.example", "a.localhost.localdomain", "localdomain", "ip6-allnodes"]
)
def test_names_like_those_of_loopback_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    assert Proxies().choose(f"https://{host}:8080/") is not None


NO_PROXY = [
    ("fd00::/8", "http://[fd12::1]/", True),
    ("fd00::/8", "http://[fe80::1]/", False),
    ("[fd12::1]", "http://[fd12::1]:8080/", True),
    ("[fd12::1]:80", "http://[fd12::1]/", True),
    ("[fd12::1]:80", "http://[fd12::1]:81/", False),
    ("fd12:0::1", "http://[fd12::1]/", True),
    ("[fd00::]/8", "http://[fd12::1]/", True),
    ("10.0.0.0/8", "http://10.1.2.3/", True),
    ("10.0.0.0/8", "http://11.1.2.3/", False),
    ("10.0.0.0/8", "http://10.example/", False),
    ("10.1.2.3", "http://10.1.2.3:8080/", True),
    ("10.1.2.3:81", "http://10.1.2.3:80/", False),
    ("example.org", "http://example.org/", True),
    ("example.org", "http://EXAMPLE.org./", True),
    ("example.org", "https://a.b.example.org/", True),
    ("example.org", "http://badexample.org/", False),
    (".example.org", "http://www.example.org/", True),
    ("*.Example.org", "http://www.example.org/", True),
    ("example.org:8080", "http://example.org:8080/", True),
    ("example.org:8080", "http://example.org/", False),
    ("example.org:443", "https://example.org/", True),
    ("*", "http://anything/", True),
    ("a.example b.example,c.example", "http://b.example/", True),
    ("http://example.org", "http://example.org/", True),
    ("", "http://example.org/", False),
    (" , ,", "http://example.org/", False),
]


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(("value", "url", "exempt"), NO_PROXY)
def test_no_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, url: str, *, exempt: bool) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv(variable, value)
    proxies = Proxies()
    assert (proxies.choose(url) is None) is exempt
    assert proxies.warnings == []


@pytest.mark.parametrize(
    "entry", ["[::1", "fd00::/999", "10.0.0.0/99", "192.168.*", "a_b:c:d", "host:99999999", "<local>", "\x1b[2J"]
)
async def test_a_bad_entry_of_no_proxy_is_skipped_with_a_warning(
    far: Wanted, http_proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", http_proxy.address)
    monkeypatch.setenv("NO_PROXY", f"other.example,{entry},10.0.0.0/8")
    with capture_logs() as logs:
        await far.download()
    far.check_complete()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "of NO_PROXY is not used: it is no host, address or network" in logs[0]["problem"]
    assert Proxies().choose("http://10.1.1.1/") is None


@pytest.mark.parametrize(
    "value",
    [
        *("gopher://proxy.example", "socks4://proxy.example", "http://", "http://[::1", "http://:3128", "http://h:99999"),
        *("http://a b", "http://[v1]:1", "\x1b[2J", f"gopher://me:{SECRET}@h", f"http://me:{SECRET}@h:port", f"me:{SECRET}@"),
    ],
)
async def test_a_bad_proxy_is_skipped_with_a_warning_and_told_in_errors(
    wanted: Wanted, machine: Machine, release: Release, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with capture_logs() as logs:
        installation = await machine.install(release.publish())
    assert len(installation.warnings) == 1
    assert installation.warnings[0].startswith("ALL_PROXY is not used: its ")
    wanted.artefact = Artefact(f"http://127.0.0.1:{closed_port()}/f", wanted.artefact.sha256, wanted.artefact.size)
    with pytest.raises(DownloadError, match=r"could not be downloaded: .*ALL_PROXY is not used: its .*; check") as caught:
        await wanted.download()
    told = f"{installation.warnings}{caught.value}{logs}{wanted.retries}"
    assert SECRET not in told
    assert "\x1b" not in told


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_every_network_error_names_the_proxy_and_its_variable(
    far: Wanted, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    place = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv(variable, f"{scheme}://me:{SECRET}@{place}/{SECRET}")
    with capture_logs() as logs:
        await far.fail(
            DownloadError,
            rf"files.example/f could not be downloaded: .* \(through the proxy {scheme}://{place} of {variable}\); check",
        )
    assert f"through the proxy {scheme}://{place} of {variable}" in far.retries[0]
    assert SECRET not in f"{far.retries}{logs}"


@pytest.mark.parametrize("code", [403, 404, 407, 502, 503, 504])
async def test_a_refusal_of_the_proxy_names_it(
    far: Wanted, http_proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@{http_proxy.address}")
    far.site.always["/f"] = status(code)
    with pytest.raises(DownloadError, match=rf"\(through the proxy http://{http_proxy.address} of http_proxy\)") as caught:
        await far.download()
    assert str(code) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_does_not_speak_socks_is_told(far: Wanted, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with running_proxy("hanging up", far.site.url) as proxy:
        monkeypatch.setenv("all_proxy", f"socks5h://me:{SECRET}@{proxy.address}")
        far.artefact = Artefact(f"{scheme}://files.example/f", far.artefact.sha256, far.artefact.size)
        told = f"does not speak SOCKS5 .through the proxy socks5h://{proxy.address} of all_proxy"
        with pytest.raises(DownloadError, match=told) as caught:
            await far.download()
    assert SECRET not in f"{caught.value}{far.retries}"


@pytest.mark.parametrize("kind", ["login", "socks login"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("login", [f"me:{SECRET}@", ""])
async def test_a_proxy_that_wants_another_login_is_told_at_once(
    far: Wanted, monkeypatch: pytest.MonkeyPatch, kind: str, scheme: str, login: str
) -> None:
    with running_proxy(kind, far.site.url) as proxy:
        place = f"{'socks5h' if kind == 'socks login' else 'http'}://{{}}{proxy.address}"
        monkeypatch.setenv("all_proxy", place.format(login))
        far.artefact = Artefact(f"{scheme}://files.example/f", far.artefact.sha256, far.artefact.size)
        with pytest.raises(DownloadError, match="check user and password of the proxy") as caught:
            await far.download()
    assert f"through the proxy {place.format('')} of all_proxy" in str(caught.value)
    assert far.retries == []
    assert SECRET not in str(caught.value)


async def test_wrong_sizes_and_hashes_name_the_proxy_too(
    far: Wanted, http_proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", http_proxy.address)
    for content in (b"short", b"x" * len(CONTENT)):
        far.site.files["/f"] = content
        with pytest.raises(Exception, match="through the proxy"):
            await far.download()


async def test_after_a_redirect_the_way_of_the_last_request_is_told(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    wanted.site.always["/f"] = redirect("http://files.example/f")
    await wanted.fail(DownloadError, "could not be downloaded: .*through the proxy http://127.0.0.1")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # httpcore leaves a broken connection to the garbage collector
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_never_answers_does_not_hang_the_download(
    far: Wanted, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with running_proxy("silent", far.site.url) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{proxy.address}")
        began = time.monotonic()
        with pytest.raises(
            DownloadError, match=f"no answer in time .*through the proxy {scheme}://{proxy.address} of ALL_PROXY"
        ):
            await far.download(DownloadPolicy(attempts=1, connect_timeout=0.2, stall_timeout=0.2))
        assert time.monotonic() - began < 25
    await asyncio.sleep(0.2)  # the event loop learns that the connection has ended
    gc.collect()


@pytest.mark.parametrize("url", ["http://a..b/f", f"http://{'a' * 64}.example/f", "http://xn--a.example\u3002/f"])
async def test_a_host_that_cannot_be_is_told(wanted: Wanted, url: str) -> None:
    wanted.artefact = Artefact(url, wanted.artefact.sha256, wanted.artefact.size)
    await wanted.fail(DownloadError, "a URL that cannot be fetched|could not be downloaded")


@pytest.mark.parametrize("variable", VARIABLES[::2])
def test_an_empty_small_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:1")
    monkeypatch.setenv("NO_PROXY", "near.example")
    monkeypatch.setenv(variable, "")
    proxies = Proxies()
    for scheme in ("http", "https"):
        proxy = proxies.choose(f"{scheme}://files.example/f")
        assert proxy is not None
        assert proxy.variable == f"{scheme.upper()}_PROXY"
        assert proxies.choose(f"{scheme}://near.example/f") is None
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:2")
    proxy = Proxies().choose("http://files.example/f")
    assert proxy is not None
    assert proxy.variable == "ALL_PROXY"
