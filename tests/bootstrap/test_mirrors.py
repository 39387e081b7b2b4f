"""Files from mirrors and from the model hub: the next URL after a failure, the token for its own host, hashes at first use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from runed.bootstrap.hub import Hub, hub_file
from runed.bootstrap.partial_files import partial_path, sidecar_path
from runed.errors import DownloadError, ManifestError, SettingsError, VerificationError
from tests.bootstrap.parts import CONTENT, HALF, Wanted, sha256
from tests.bootstrap.site import Site, drop_after, ignore_range, redirect, running_site, status, without_length
from tests.bootstrap.test_manifest import document, parse

HUB = "https://huggingface.co"
TOKEN = "hf_secret"


@pytest.fixture
def mirror() -> Iterator[Site]:
    """A second web server, which has the file of `wanted`."""
    with running_site() as site:
        site.files["/f"] = CONTENT
        yield site


def mirrored(wanted: Wanted, *mirrors: Site) -> None:
    wanted.artefact = replace(wanted.artefact, mirrors=tuple(f"{site.url}/f" for site in mirrors))


async def test_a_mirror_is_not_asked_while_the_first_url_answers(wanted: Wanted, mirror: Site) -> None:
    mirrored(wanted, mirror)
    assert await wanted.download() == sha256(CONTENT)
    wanted.check_complete()
    assert mirror.requests == []


@pytest.mark.parametrize("behaviour", [status(404), status(503), drop_after(0)], ids=["gone", "busy", "broken"])
async def test_a_mirror_is_asked_when_the_first_url_fails(wanted: Wanted, mirror: Site, behaviour: object) -> None:
    mirrored(wanted, mirror)
    wanted.site.always["/f"] = behaviour  # type: ignore[assignment] # a Behaviour
    await wanted.download()
    wanted.check_complete()
    assert wanted.site.count("/f") <= 2  # the patience is for the last one
    assert "trying the next mirror" in wanted.retries[-1]


async def test_a_mirror_goes_on_with_the_half_of_the_first_url(wanted: Wanted, mirror: Site) -> None:
    mirrored(wanted, mirror)
    wanted.site.behaviours["/f"] = [drop_after(HALF)]
    wanted.site.always["/f"] = status(500)
    await wanted.download()
    wanted.check_complete()
    assert [request.range for request in mirror.requests] == [f"bytes={HALF}-"]


async def test_a_mirror_with_another_file_is_not_believed(wanted: Wanted, mirror: Site) -> None:
    with running_site() as third:
        third.files["/f"] = CONTENT
        mirror.files["/f"] = b"x" * len(CONTENT)
        mirrored(wanted, mirror, third)
        wanted.site.always["/f"] = status(404)
        await wanted.download()
        wanted.check_complete()
    mirrored(wanted, mirror)
    wanted.target.unlink()
    await wanted.fail(VerificationError, f"{mirror.url}/f has SHA-256 .*, but the manifest says .*, twice")


async def test_the_error_of_the_last_mirror_is_told(wanted: Wanted, mirror: Site) -> None:
    mirrored(wanted, mirror)
    wanted.site.always["/f"] = status(404)
    mirror.always["/f"] = status(410)
    await wanted.fail(DownloadError, f"{mirror.url}/f answered 410 Gone")
    assert f"{wanted.site.url}/f answered 404 Not Found" in wanted.retries[0]


def test_mirrors_of_a_manifest_are_urls_like_its_first_one() -> None:
    content = document()
    content["models"]["m.q8_0"]["mirrors"] = ["m.gguf", "https://other.example/m"]
    content["platforms"]["linux-amd64"]["llama_server"]["mirrors"] = ["/e"]
    manifest = parse(content)
    assert manifest.model("m.q6_K").source.mirrors == ("https://example.org/r/m.gguf", "https://other.example/m")
    assert manifest.engine("linux-amd64").artefact.mirrors == ("https://example.org/e",)
    content["models"]["m.q8_0"]["mirrors"] = ["ftp://other.example/m"]
    with pytest.raises(ManifestError, match=r"the url at \$.models\['m.q8_0'\].mirrors is no http or https URL"):
        parse(content).model("m.q8_0")


# The hub


def test_only_urls_of_the_hub_are_those_of_its_mirror() -> None:
    hub = Hub("https://mirror.example/hf")
    assert hub.address(f"{HUB}/o/r/resolve/1/f") == "https://mirror.example/hf/o/r/resolve/1/f"
    for other in (f"{HUB}.evil.example/f", "https://github.com/f", "file:///f"):
        assert hub.address(other) == other


async def test_files_of_the_hub_come_from_its_mirror(wanted: Wanted) -> None:
    wanted.artefact = replace(wanted.artefact, url=f"{HUB}/f")
    await wanted.download(hub=Hub(wanted.site.url))
    wanted.check_complete()


async def test_the_token_goes_to_the_hub_alone(wanted: Wanted, mirror: Site) -> None:
    hub = Hub(wanted.site.url, TOKEN)
    wanted.site.always["/f"] = redirect(f"{mirror.url}/f")
    await wanted.download(hub=hub)
    assert [request.authorization for request in wanted.site.requests] == [f"Bearer {TOKEN}"]
    assert [request.authorization for request in mirror.requests] == [""]
    wanted.target.unlink()
    wanted.artefact = replace(wanted.artefact, url=f"{mirror.url}/f")
    await wanted.download(hub=hub)
    assert [request.authorization for request in mirror.requests] == ["", ""]


async def test_the_token_goes_on_to_another_path_of_the_hub(wanted: Wanted) -> None:
    wanted.site.files["/g"] = CONTENT
    wanted.site.always["/f"] = redirect("/g")
    await wanted.download(hub=Hub(wanted.site.url, TOKEN))
    assert [request.authorization for request in wanted.site.requests] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://hub.example", "http://hub.example/f"),  # anybody on the way could read it
        ("https://hub.example", "http://hub.example/f"),
        ("https://hub.example", "https://hub.example:8443/f"),
        ("https://hub.example", "https://hub.example.evil.example/f"),
        ("https://hub.example", "https://hub.example@evil.example/f"),
        ("https://hub.example", "https://cdn.hub.example/f"),
    ],
)
def test_the_token_is_for_no_other_url(endpoint: str, url: str) -> None:
    assert Hub(endpoint, TOKEN).headers(url) == {}
    assert Hub("https://hub.example", TOKEN).headers("https://hub.example/f") == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("code", [401, 403])
async def test_a_file_that_needs_a_token_is_answered_with_what_to_do(wanted: Wanted, code: int) -> None:
    wanted.site.always["/f"] = status(code)
    with pytest.raises(DownloadError, match=r"accept the terms .* and set HF_TOKEN") as caught:
        await wanted.download(hub=Hub(wanted.site.url, TOKEN))
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize(
    ("source", "url", "name"),
    [
        ("hf:o/r/f.gguf@abc", f"{HUB}/o/r/resolve/abc/f.gguf", "f.gguf"),
        ("hf:o-1/r.x/sub/f 1.gguf", None, ""),
        ("hf:o/r/sub/f-1.gguf", f"{HUB}/o/r/resolve/main/sub/f-1.gguf", "f-1.gguf"),
        ("hf:o/r/f.gguf@refs/pr/1", f"{HUB}/o/r/resolve/refs%2Fpr%2F1/f.gguf", "f.gguf"),
        ("hf:o/r/ä%.gguf@1", f"{HUB}/o/r/resolve/1/%C3%A4%25.gguf", "ä%.gguf"),
        ("hf:o/r", None, ""),
        ("hf:o/r/", None, ""),
        ("hf:o/../f.gguf", None, ""),
        ("hf:o/r/../../x@1", None, ""),
        ("hf:o/r/f@..", None, ""),
        ("hf:o/r/f@", None, ""),
        ("hf:o/r/a//b", None, ""),
        ("hf:o/r/f?x=1", None, ""),
        ("hf:o/r/f\n", None, ""),
        ("hf:https://o/r/f", None, ""),
    ],
)
def test_names_of_files_of_the_hub(source: str, url: str | None, name: str) -> None:
    if url:
        assert hub_file(source, "x") == (url, name)
    else:
        with pytest.raises(SettingsError, match=r'^x: .* accepted is "hf:owner/repository/file.gguf@revision"$'):
            hub_file(source, "x")


# A hash that is not known yet


@pytest.fixture
def unknown(wanted: Wanted) -> Wanted:
    wanted.artefact = replace(wanted.artefact, sha256="", size=None)
    return wanted


async def test_a_file_without_a_hash_is_taken_and_its_hash_is_told(unknown: Wanted) -> None:
    assert await unknown.download() == sha256(CONTENT)
    unknown.check_complete()


@pytest.mark.parametrize("tenth", range(1, 10))
async def test_a_download_without_a_hash_that_is_cut_goes_on_with_the_same_file_only(unknown: Wanted, tenth: int) -> None:
    cut = len(CONTENT) * tenth // 10
    unknown.site.behaviours["/f"] = [drop_after(cut)]
    unknown.site.always["/f"] = status(404)
    await unknown.fail(DownloadError, "404")
    assert partial_path(unknown.target).stat().st_size == cut
    changed = bytes(reversed(CONTENT))
    unknown.site.always.clear()
    if tenth % 2:
        assert await unknown.download() == sha256(CONTENT)
        assert unknown.ranges()[-1] == f"bytes={cut}-"
    else:  # the branch has moved on meanwhile
        unknown.site.files["/f"], unknown.site.etags["/f"] = changed, '"2"'
        assert await unknown.download() == sha256(changed)
        assert unknown.target.read_bytes() == changed


@pytest.mark.parametrize("etag", ["", 'W/"1"'], ids=["none", "weak"])
async def test_without_hash_and_etag_a_download_begins_anew(unknown: Wanted, etag: str) -> None:
    unknown.site.etags["/f"] = etag
    unknown.site.behaviours["/f"] = [drop_after(HALF)]
    assert await unknown.download() == sha256(CONTENT)
    assert unknown.ranges() == ["", ""]


async def test_a_server_that_cannot_continue_sends_the_whole_file_again(unknown: Wanted) -> None:
    unknown.site.behaviours["/f"] = [drop_after(HALF), ignore_range]
    assert await unknown.download() == sha256(CONTENT)
    unknown.check_complete()
    assert not sidecar_path(unknown.target).exists()


async def test_a_server_that_tells_no_length_ends_the_file_with_the_connection(unknown: Wanted) -> None:
    unknown.site.always["/f"] = without_length(CONTENT)
    assert await unknown.download() == sha256(CONTENT)


def test_a_hash_of_the_manifest_is_never_left_out() -> None:
    with pytest.raises(ManifestError, match="matching regex"):
        parse(document(models={"m": {"url": "m", "sha256": "", "size": 1}}, default_model="m"))
