"""Choices from a manifest, and the error texts for a manifest that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runed.bootstrap.manifest import (
    Manifest,
    ManifestSource,
    current_platform,
    manifest_source,
    parse_manifest,
    read_local_manifest,
)
from runed.domain.model import ModelTraits
from runed.errors import ManifestError, SettingsError, UnsupportedPlatformError
from runed.settings import Settings
from runed.urls import printable_url
from tests.bad_files import BAD_FILES, put_bad_file

SOURCE = ManifestSource("https://example.org/r/manifest.json", is_url=True)
HASH = "ab" * 32


def document(**changes: object) -> dict[str, Any]:
    engine = {"url": "e.tar.gz", "sha256": HASH, "size": 10, "extract": "tar.gz", "exec": "x/llama-server"}
    base: dict[str, Any] = {
        "version": 1,
        "platforms": {"linux-amd64": {"llama_server": engine, "other_engine": 1}},
        "models": {
            "m.q8_0": {"url": "https://example.com/m.gguf", "sha256": HASH.upper(), "size": 20},
            "m.q6_K": {"derive": {"from": "m.q8_0", "type": "Q6_K"}},
        },
        "default_model": "m.q6_K",
    }
    return base | changes


def parse(content: dict[str, Any] | bytes) -> Manifest:
    return parse_manifest(content if isinstance(content, bytes) else json.dumps(content).encode(), SOURCE)


def test_the_packaged_manifest_pins_every_platform_and_variant() -> None:
    manifest = read_local_manifest(manifest_source(Settings(home=Path("/h"))))
    for platform, size in {
        "linux-amd64": 17014362,
        "linux-arm64": 13608309,
        "darwin-arm64": 11767333,
        "darwin-amd64": 11250068,
    }.items():
        engine = manifest.engine(platform)
        assert engine.artefact.size == size
        assert engine.artefact.url.startswith("https://github.com/ggml-org/llama.cpp/releases/download/b11194/")
        assert (engine.is_archive, str(engine.executable)) == (True, "llama-b11194/llama-server")
    default = manifest.model(None)
    assert (default.variant, default.quantization) == ("qwen3-embedding-0.6b.q6_K", "Q6_K")
    assert default.source.sha256 == "06507c7b42688469c4e7298b0a1e16deff06caf291cf0a5b278c308249c3e439"
    assert default.source.size == 639150592
    assert manifest.model("qwen3-embedding-0.6b.f16").source.size == 1197629632
    for variant in ("q5_K_M", "q4_K_M"):
        assert manifest.model(f"qwen3-embedding-0.6b.{variant}").source_variant == "qwen3-embedding-0.6b.q8_0"


def test_the_packaged_manifest_pins_engines_for_accelerators() -> None:
    """Each hash and size is that of two independent files or more, none of them checked by a download."""
    manifest = read_local_manifest(manifest_source(Settings(home=Path("/h"))))
    release = "https://github.com/ggml-org/llama.cpp/releases/download/b11194"
    engines = manifest.accelerators("linux-amd64")
    assert [(engine.accelerator, engine.driver) for engine in engines] == [
        ("cuda", "580"),
        ("cuda", "525"),
        ("rocm", "10"),
        ("vulkan", ""),
    ]
    expected = {
        "llama-b11194-bin-ubuntu-cuda-13.4-x64": (
            "d4c637a0c8fd7bdca68d140c9a36cc6038067a7aa29f7b1994f52f2dafede8fd",
            151252143,
        ),
        "cudart-llama-b11194-bin-ubuntu-cuda-13.4-x64": (
            "df147535ca08a49cb9be1ced3241e0a043dbedc8a0138b847f0c2e09012ac54c",
            440236666,
        ),
        "llama-b11194-bin-ubuntu-cuda-12.8-x64": (
            "d415b688f353fcb5a387f272a5b6d783b8f09267b3b73e5e8920de6df9bffac9",
            170498826,
        ),
        "cudart-llama-b11194-bin-ubuntu-cuda-12.8-x64": (
            "3ef39066810c3375bd2e30f418a8b7be7042a4e553e69ca0f9d8132c4fba4ca4",
            594377795,
        ),
        "llama-b11194-bin-ubuntu-rocm-10.0-x64": (
            "b364ae02badfba6feb47931978b06aaf9c939a49f4f31d80290517fd4bacd604",
            240223282,
        ),
        "llama-b11194-bin-ubuntu-vulkan-x64": ("e4f8163eaf2e4d45639238a6fbc09f559e4ff5c0e7d612088a282ed128359c5e", 30955864),
    }
    files = [artefact for engine in engines for artefact in engine.artefacts]
    assert {file.url: (file.sha256, file.size) for file in files} == {
        f"{release}/{name}.tar.gz": facts for name, facts in expected.items()
    }
    [vulkan] = manifest.accelerators("linux-arm64")
    assert vulkan.artefact.sha256 == "1aa413dda941b31f58ff40205dcd9bad200eb569ef82623b8bc3adf8115162ef"
    assert vulkan.artefact.size == 24776725
    assert not manifest.accelerators("darwin-arm64")  # Metal is in its archive
    for engine in (*engines, vulkan):
        assert (engine.is_archive, str(engine.executable)) == (True, "llama-b11194/llama-server")


def with_accelerators(*engines: object) -> dict[str, Any]:
    content = document()
    content["platforms"]["linux-amd64"]["accelerators"] = list(engines)
    return content


VULKAN = {"name": "vulkan", "url": "v.tar.gz", "sha256": HASH, "extract": "tar.gz", "exec": "x/llama-server"}


def test_sizes_may_be_missing() -> None:
    content = with_accelerators(VULKAN | {"libraries": [{"url": "l.tar.gz", "sha256": HASH.upper()}]})
    del content["platforms"]["linux-amd64"]["llama_server"]["size"]
    del content["models"]["m.q8_0"]["size"]
    manifest = parse(content)
    assert manifest.engine("linux-amd64").artefact.size is None
    assert manifest.model("m.q6_K").source.size is None
    [engine] = manifest.accelerators("linux-amd64")
    assert [(file.url, file.size) for file in engine.artefacts] == [
        ("https://example.org/r/v.tar.gz", None),
        ("https://example.org/r/l.tar.gz", None),
    ]
    assert engine.build == f"{HASH}\n{HASH}"


def test_a_manifest_without_accelerators_and_a_platform_without_any_entry_have_none() -> None:
    assert parse(document()).accelerators("linux-amd64") == ()
    assert parse(document()).accelerators("linux-arm64") == ()


def test_an_accelerator_of_a_later_manifest_is_left_out() -> None:
    engines = parse(with_accelerators(VULKAN | {"name": "npu", "exec": "../x", "added": 1}, VULKAN)).accelerators("linux-amd64")
    assert [engine.accelerator for engine in engines] == ["vulkan"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"exec": "/bin/sh"}, r"'/bin/sh' at \$.platforms\['linux-amd64'\].accelerators\[0\].exec is not a relative path"),
        ({"extract": "zip"}, r"'zip' at \$.platforms\['linux-amd64'\].accelerators\[0\].extract is not known"),
        ({"url": "ftp://x/y"}, r"the url at \$.platforms\['linux-amd64'\].accelerators\[0\].url is no http"),
        ({"libraries": [{"url": "file:///x", "sha256": HASH}]}, r"accelerators\[0\].libraries\[0\].url is no http"),
        ({"driver": "latest"}, r"`\$.platforms\[...\].accelerators\[0\].driver`"),
        ({"libraries": {}}, r"Expected `array`"),
        ({"sha256": "ab"}, r"accelerators\[0\].sha256`"),
    ],
)
def test_an_engine_for_an_accelerator_that_makes_no_sense_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ManifestError, match=expected):
        parse(with_accelerators(VULKAN | change)).accelerators("linux-amd64")


class _OldEngine(msgspec.Struct):
    url: str
    sha256: str
    size: int
    exec: str
    extract: str = ""


class _OldPlatform(msgspec.Struct):
    llama_server: _OldEngine | None = None


class _OldDocument(msgspec.Struct):
    platforms: dict[str, _OldPlatform]
    default_model: str


def test_an_older_runed_reads_the_engines_of_the_processors_in_the_packaged_manifest() -> None:
    """These are the types that version 0.1.0 read. It ignored unknown keys, and refused a `llama_server` without a size."""

    data = Path("runed/bootstrap/default_manifest.json").read_bytes()
    document = msgspec.json.decode(data, type=_OldDocument)
    assert all(platform.llama_server for platform in document.platforms.values())


def test_relative_urls_resolve_against_the_manifest_and_unknown_keys_are_ignored() -> None:
    engine = parse(document(added_later=1)).engine("linux-amd64")
    assert engine.artefact.url == "https://example.org/r/e.tar.gz"


def test_hashes_in_capitals_are_the_same_hashes() -> None:
    assert parse(document()).model("m.q8_0").source.sha256 == HASH


def test_a_models_traits_hold_for_what_is_derived_from_it_unless_that_has_its_own() -> None:
    models = document()["models"]
    assert parse(document()).model("m.q8_0").traits is None
    models["m.q8_0"]["traits"] = {"query_prompt": "query: ", "min_dimensions": 64, "added_later": 1}
    traits = ModelTraits(query_prompt="query: ", min_dimensions=64)
    manifest = parse(document(models=models))
    assert manifest.model("m.q8_0").traits == traits
    assert manifest.model("m.q6_K").traits == traits
    assert manifest.model("m.q6_K").source_only().traits == traits
    models["m.q6_K"]["traits"] = {"document_prompt": "passage: "}
    assert parse(document(models=models)).model("m.q6_K").traits == ModelTraits(document_prompt="passage: ")
    models["m.q6_K"]["traits"] = {"min_dimensions": -1}
    with pytest.raises(ManifestError, match="min_dimensions"):
        parse(document(models=models))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html>Please log in</html>", "is not JSON"),
        (b"", "is not JSON"),
        (b'{"version": 1', "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"<html>Please log in</html>", "it is a web page, such as the login page of a network; check RUNED_MANIFEST"),
        (b'{"version": 1, "more": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "are nested too deeply"),
        (b'{"version": 1, "models": ' + b'{"a":' * 10_000, "are nested too deeply"),
        (document(models={"m\n": {"url": "u", "sha256": HASH, "size": 1}}), r"at `key` in `\$.models`"),
        (document(models={"m": {"url": "u", "sha256": HASH + "\n", "size": 1}}), r"at `\$.models\[...\].sha256`"),
        (document(models={"m": {"url": "u", "sha256": HASH, "size": 10**400}}), r"at `\$.models\[...\].size`"),
        (document(models={"m": {"derive": {"from": "m", "type": "Q6_K\n"}}}), r"at `\$.models\[...\].derive.type`"),
        (b"[]", "Expected `object`"),
        (document(version=2), "has version 2, but this runed reads version 1; upgrade runed"),
        (document(platforms=[]), r"Expected `object`, got `array` - at `\$.platforms`"),
        (document(models={"m": {"url": "u", "sha256": "xyz", "size": 1}}), r"at `\$.models\[...\].sha256`"),
        (document(models={"m": {"url": "u", "sha256": HASH, "size": "1"}}), r"got `str` - at `\$.models\[...\].size`"),
        (document(models={"m": {"url": "u", "sha256": HASH, "size": 0}}), r"at `\$.models\[...\].size`"),
        (document(models={"../../etc/passwd": {"url": "u", "sha256": HASH, "size": 1}}), r"at `key` in `\$.models`"),
        (document(models={"m": {"derive": {"from": "m", "type": "--help"}}}), r"at `\$.models\[...\].derive.type`"),
        (document(default_model=".hidden"), r"at `\$.default_model`"),
        ({"version": 1}, "missing required field `platforms`"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told_with_the_place_of_the_fault(
    content: dict[str, Any] | bytes, expected: str
) -> None:
    with pytest.raises(ManifestError, match=expected) as caught:
        parse(content)
    assert "https://example.org/r/manifest.json" in str(caught.value)


def test_a_missing_platform_is_told_with_those_there_are() -> None:
    with pytest.raises(ManifestError, match="no llama_server for darwin-arm64, only for linux-amd64; set RUNED_LLAMA_SERVER"):
        parse(document()).engine("darwin-arm64")


def test_a_missing_variant_is_told_with_those_there_are() -> None:
    with pytest.raises(ManifestError, match=r"no model 'm.q3'; it has m.q6_K, m.q8_0; set RUNED_MODEL_VARIANT"):
        parse(document()).model("m.q3")


@pytest.mark.parametrize("path", ["/usr/bin/env", "../llama-server", "x/../../llama-server", "", "."])
def test_a_program_outside_of_the_engines_folder_is_refused(path: str) -> None:
    content = document()
    content["platforms"]["linux-amd64"]["llama_server"]["exec"] = path
    with pytest.raises(ManifestError, match=re.escape("$.platforms['linux-amd64'].llama_server.exec")):
        parse(content).engine("linux-amd64")


def test_an_unknown_kind_of_archive_is_refused() -> None:
    content = document()
    content["platforms"]["linux-amd64"]["llama_server"]["extract"] = "zip"
    with pytest.raises(ManifestError, match=r"'zip' at .*extract is not known"):
        parse(content).engine("linux-amd64")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"m": {}}, r"\$.models\['m'\] lacks one of url and sha256"),
        ({"m": {"url": "u", "size": 3}}, r"\$.models\['m'\] lacks one of url and sha256"),
        ({"m": {"derive": {"from": "gone", "type": "Q6_K"}}}, r"'gone' at \$.models\['m'\].derive.from"),
        ({"m": {"derive": {"from": "m", "type": "Q6_K"}}}, "lacks one of"),
        ({"m": {"url": "ftp://example.org/m", "sha256": HASH, "size": 3}}, r"\$.models\['m'\].url is no http or https URL"),
        ({"m": {"url": "file:///etc/passwd", "sha256": HASH, "size": 3}}, "no http or https URL"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_when_it_is_chosen(models: dict[str, Any], expected: str) -> None:
    manifest = parse(document(models=models))
    with pytest.raises(ManifestError, match=expected):
        manifest.model("m")


@pytest.mark.parametrize("as_url", [False, True])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("m.gguf", "{folder}/m.gguf"),
        ("../m%20#?.gguf", "{parent}/m%20#?.gguf"),
        ("/models/m 1.gguf", "/models/m 1.gguf"),
        ("~/m.gguf", "{home}/m.gguf"),
        ("file:///models/m%201.gguf", "/models/m 1.gguf"),
        ("file://localhost/m.gguf", "/m.gguf"),
        ("FILE:/m.gguf", "/m.gguf"),
        ("file:///\xff%ff.gguf", "/\xff\udcff.gguf"),
    ],
)
def test_a_manifest_file_may_name_files(tmp_path: Path, url: str, expected: str, *, as_url: bool) -> None:
    path = tmp_path / "a b" / "manifest.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document(models={"m": {"url": url, "sha256": HASH, "size": 3}}, default_model="m")))
    source = manifest_source(Settings(home=tmp_path, manifest=path.as_uri() if as_url else str(path)))
    wanted = expected.format(folder=path.parent, parent=tmp_path, home=Path.home())
    assert read_local_manifest(source).model("m").source.path == Path(wanted)


@pytest.mark.parametrize("url", ["file:m.gguf", "file://other/m.gguf", "file://", "~nobody-here/m", "/m\0", "file:///m%00"])
def test_a_manifest_file_that_names_no_file_of_this_machine_is_refused(tmp_path: Path, url: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(document(models={"m": {"url": url, "sha256": HASH, "size": 3}})))
    manifest = read_local_manifest(manifest_source(Settings(home=tmp_path, manifest=str(path))))
    with pytest.raises(ManifestError, match=r"the url at \$.models\['m'\].url cannot be read: "):
        manifest.model("m")


@pytest.mark.parametrize("source", [SOURCE, ManifestSource("", is_url=False)])
@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://[::1",
            "https://[::1]x/m",
            "https://h:99999/m",
            "https://h:p/m",
            "https://:80/m",
            "https://h h/m",
            "http://h/\x1b",
        ),
        *("file:///etc/passwd", "FILE:/etc/passwd", "ftp://h/m", "data:,x", "javascript:x", "//[", "https://[v1.x]/"),
    ],
)
def test_an_odd_url_is_refused_with_its_place(source: ManifestSource, url: str) -> None:
    content = json.dumps(document(models={"m": {"url": url, "sha256": HASH, "size": 3}})).encode()
    with pytest.raises(ManifestError, match=r"the url at \$.models\['m'\].url") as caught:
        parse_manifest(content, source).model("m")
    assert "\x1b" not in str(caught.value)


def test_a_missing_manifest_file_is_told(tmp_path: Path) -> None:
    source = manifest_source(Settings(home=tmp_path, manifest=str(tmp_path / "gone.json")))
    with pytest.raises(ManifestError, match=r"RUNED_MANIFEST=.*gone.json: the file cannot be read: No such file"):
        read_local_manifest(source)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_anything_in_the_place_of_a_manifest_file_is_told(tmp_path: Path, kind: str) -> None:
    put_bad_file(kind, tmp_path / "manifest.json")
    with pytest.raises(ManifestError, match=re.escape(str(tmp_path / "manifest.json"))):
        read_local_manifest(manifest_source(Settings(home=tmp_path, manifest=str(tmp_path / "manifest.json"))))


def test_a_manifest_may_begin_with_a_byte_order_mark() -> None:
    assert parse(b"\xef\xbb\xbf" + json.dumps(document()).encode()).model("m.q8_0").source.size == 20


def test_names_in_a_manifest_cannot_steer_the_terminal() -> None:
    with pytest.raises(ManifestError, match="only for ") as caught:
        parse(document(platforms={"\x1b[2J": {}})).engine("linux-amd64")
    assert "\x1b" not in str(caught.value)


def test_a_model_given_as_manifest_by_mistake_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ManifestError, match="so it is no manifest"):
        read_local_manifest(manifest_source(Settings(home=tmp_path, manifest=str(path))))


def test_the_users_manifest_beats_the_builds_which_beats_the_packages() -> None:
    plain = Settings(home=Path("/h"))
    chosen = Settings(home=Path("/h"), manifest="https://mine.example/m.json")
    assert manifest_source(plain, baked_url="").location == ""
    assert manifest_source(plain, baked_url="https://build.example/m.json").location == "https://build.example/m.json"
    assert manifest_source(chosen, baked_url="https://build.example/m.json").location == "https://mine.example/m.json"


@pytest.mark.parametrize("url", ["ftp://example.org/m.json", "http://", "https://[::1/m.json"])
def test_a_manifest_url_that_cannot_be_fetched_is_a_bad_setting(url: str) -> None:
    with pytest.raises(SettingsError, match=r"RUNED_MANIFEST=.*accepted is an https, http or file: URL, or the path of a file"):
        manifest_source(Settings(home=Path("/h"), manifest=url))


def test_secrets_of_a_url_are_never_shown() -> None:
    assert printable_url("https://me:secret@example.org:8/a/b?sig=secret#secret") == "https://example.org:8/a/b"
    for url in ("me:secret@example.org/a", "secret@example.org/a?sig=secret", "me:secr/et@example.org/a"):
        assert printable_url(url) == "example.org/a", "the scheme was forgotten"


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "linux-amd64"),
        ("linux", "aarch64", "linux-arm64"),
        ("darwin", "arm64", "darwin-arm64"),
        ("darwin", "x86_64", "darwin-amd64"),
    ],
)
def test_platforms_are_named_as_in_manifests(system: str, machine: str, expected: str) -> None:
    assert current_platform(system, machine) == expected


@pytest.mark.parametrize(("system", "machine"), [("win32", "AMD64"), ("linux", "riscv64"), ("freebsd14", "amd64")])
def test_an_unknown_platform_is_told_what_to_do(system: str, machine: str) -> None:
    with pytest.raises(
        UnsupportedPlatformError, match=f"no engine to download for {system} on {machine}; set RUNED_LLAMA_SERVER"
    ):
        current_platform(system, machine)
