"""Checks of the network: proxies, the servers of downloads, and the clock by theirs."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from runed.bootstrap.audit import Installed
from runed.bootstrap.hub import Hub
from runed.bootstrap.manifest import current_platform, manifest_source, read_local_manifest
from runed.bootstrap.network import Transport
from runed.bootstrap.proxies import Proxies
from runed.doctor.engine import program_of
from runed.doctor.finding import Finding, Patient, failed, ok, warning
from runed.errors import RunedError
from runed.files import read_record
from runed.settings import ONNX
from runed.urls import printable_url

_SECONDS = 3.0
"""Seconds that each server may take."""

_CLOCK_SECONDS = 300.0
"""Seconds by which this machine and a server may differ. Certificates are valid for days."""

_WAYS = "set HTTPS_PROXY if this network has a proxy, and HF_ENDPOINT or RUNED_MANIFEST for a mirror"
"""How a server of downloads can be reached where the network does not let it be."""

_BROKEN = 500
"""The lowest status of a server that fails. A lower one, such as 403, tells that the server is reached."""


@dataclass(frozen=True, slots=True)
class _Reached:
    url: str
    problem: str = ""
    skew: float = 0.0


def proxies(patient: Patient) -> Iterator[Finding]:
    """Check that the proxies of the environment can be read."""
    known = Proxies()
    ways = {str(proxy) for url in _urls(patient) or ["https://example.invalid/"] if (proxy := known.choose(url)) is not None}
    if known.warnings:
        yield warning("proxy", "; ".join(known.warnings), "correct the variable; such a value is written http://host:port")
    else:
        yield ok("proxy", ", ".join(sorted(ways)) or "none")


def servers(patient: Patient) -> Iterator[Finding]:
    """Check that the servers of downloads are reached, each within 3 seconds, and compare clocks with them."""
    try:
        urls = _urls(patient)
    except RunedError as error:
        yield failed("network", error.message, "correct RUNED_MANIFEST, or unset it")
        return
    if not urls:
        yield ok("network", "nothing is downloaded with these settings")
        return
    reached = asyncio.run(_reach(urls))
    bad = [each for each in reached if each.problem]
    skew = max((each.skew for each in reached if not each.problem), key=abs, default=0.0)
    if bad:
        told = "; ".join(f"{_origin(each.url)}: {each.problem}" for each in bad)
        if _has_all(patient):
            yield warning("network", f"not reached: {told}", f"nothing has to be fetched now; before you need more, {_WAYS}")
        else:
            own = "without a network, set RUNED_LLAMA_SERVER and RUNED_MODEL to files of your own"
            yield failed("network", f"not reached: {told}", f"{_WAYS}; {own}")
    else:
        yield ok("network", f"reached: {', '.join(_origin(each.url) for each in reached)}")
    if abs(skew) > _CLOCK_SECONDS:
        told = f"this machine is {abs(skew) / 60:,.0f} minutes {'ahead of' if skew > 0 else 'behind'} a server of downloads"
        yield warning("clock", told, "set the clock: `timedatectl set-ntp true`, or `wsl --shutdown` in WSL")


def _has_all(patient: Patient) -> bool:
    """Return whether engine and model are here, so that nothing has to be fetched."""
    info, health, settings = patient.info, patient.health, patient.settings
    if info is not None and info.model_identity and health is not None and not health.is_degraded:
        return True
    installed = read_record(patient.paths.installed, Installed)
    program = program_of(patient)
    models = (
        [settings.model] if settings.model else [patient.paths.model(name) for name in (installed.models if installed else ())]
    )
    has_engine = settings.engine == ONNX or (program is not None and program.is_file())
    return has_engine and any(path.is_file() for path in models)


def _urls(patient: Patient) -> list[str]:
    """Return a URL of each server that downloads come from."""
    settings = patient.settings
    if (settings.llama_server or settings.backend) and (settings.model or settings.backend):
        return []
    source, hub = manifest_source(settings), Hub.of(settings)
    if source.is_url:
        found = [source.location]
    else:
        manifest = read_local_manifest(source)
        found = [manifest.model(settings.model_variant).source.url]
        if not settings.llama_server:
            found.append(manifest.engine(current_platform()).artefact.url)
    web = [hub.address(url) for url in found if urlsplit(url).scheme in {"http", "https"}]
    return list({_origin(url): url for url in web}.values())


def _origin(url: str) -> str:
    parts = urlsplit(printable_url(url))
    return f"{parts.scheme}://{parts.netloc}"


async def _reach(urls: list[str]) -> list[_Reached]:
    timeout = httpx.Timeout(_SECONDS)
    async with httpx.AsyncClient(transport=Transport(Proxies()), timeout=timeout, trust_env=False) as client:
        return await asyncio.gather(*(_ask(client, url) for url in urls))


async def _ask(client: httpx.AsyncClient, url: str) -> _Reached:
    try:
        async with asyncio.timeout(_SECONDS):
            response = await client.head(url)
    except (TimeoutError, httpx.TimeoutException):
        return _Reached(url, f"no answer within {_SECONDS:g} s")
    except (httpx.HTTPError, RunedError, OSError) as error:
        return _Reached(url, str(error) or type(error).__name__)
    if response.status_code >= _BROKEN:
        return _Reached(url, f"it answers with status {response.status_code}")
    try:
        return _Reached(url, skew=time.time() - email.utils.parsedate_to_datetime(response.headers["date"]).timestamp())
    except (KeyError, ValueError):
        return _Reached(url)
