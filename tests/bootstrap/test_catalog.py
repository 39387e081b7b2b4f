"""The catalog: the models of the package, those of the user, and what installations make of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from runed.bootstrap.catalog import build_catalog, choice_of, own_default
from runed.bootstrap.manifest import Manifest, manifest_source, read_local_manifest
from runed.domain.model import ModelInfo, ModelTraits, OwnTraits
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import check_default
from runed.domain.traits import known_traits
from runed.errors import BootstrapError, ManifestError, SettingsError, UnknownModelError
from runed.own_models import Entry, own_aliases, own_models
from runed.setting_values import duration
from runed.settings import Settings, full_path
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import MODEL, Release, archive, sha256
from tests.bootstrap.site import running_site
from tests.bootstrap.test_manifest import document, parse

HOME = Settings(home=Path("/h"))


@pytest.fixture(scope="module")
def packaged() -> Manifest:
    return read_local_manifest(manifest_source(HOME))


def with_models(settings: Settings = HOME, **entries: dict[str, Any]) -> Settings:
    read = {name.replace("_", "-"): msgspec.convert(entry, Entry) for name, entry in entries.items()}
    return replace(settings, models=own_models(read, Path("config.json"), read_path=full_path, read_duration=duration))


# The package


@dataclass(frozen=True)
class Pin:
    """A file of the package, and in how many independent places its hash was found. None was checked by a download."""

    repository: str
    revision: str
    file: str
    size: int | None
    sha256: str
    sources: int


PINNED = {
    "qwen3-embedding-4b.q8_0": Pin(
        "Qwen/Qwen3-Embedding-4B-GGUF",
        "f4602530db1d980e16da9d7d3a70294cf5c190be",
        "Qwen3-Embedding-4B-Q8_0.gguf",
        4279660224,
        "b60ae5ce2dd6a0b77f82cadf21def1f310a3e10cde380ad0081b07a9d416949d",
        sources=1,
    ),
    "qwen3-embedding-8b.q4_K_M": Pin(
        "Qwen/Qwen3-Embedding-8B-GGUF",
        "69d0e58a13e463cd99a9b83e3f5fee7c10265fab",
        "Qwen3-Embedding-8B-Q4_K_M.gguf",
        None,
        "3fcd3febec8b3fd64435204db75bf0dd73b91e8d0661e0331acfe7e7c3120b85",
        sources=1,
    ),
    "embeddinggemma-300m.q8_0": Pin(
        "ggml-org/embeddinggemma-300M-GGUF",
        "0f741b5a6585bd53aeb15cd1372c56f2a0f65e12",
        "embeddinggemma-300M-Q8_0.gguf",
        333590944,
        "b5ce9d77a3fc4b3b39ccb5643c36777911cc4eb46a66962eadfa3f5f60490d63",
        sources=10,
    ),
    "embeddinggemma-2.q8_0": Pin(
        "ggml-org/embeddinggemma-2-GGUF",
        "bfcd298762cc34d0357ece5ebdd31791a3a374d8",
        "embeddinggemma-2-Q8_0.gguf",
        309855456,
        "2188ac1deca4b77dffefd603c2776a9d76d9d74ec01841392982ebb840b09135",
        sources=2,
    ),
    "nomic-embed-text-v1.5.q8_0": Pin(
        "nomic-ai/nomic-embed-text-v1.5-GGUF",
        "0188c9bf409793f810680a5a431e7b899c46104c",
        "nomic-embed-text-v1.5.Q8_0.gguf",
        146146432,
        "3e24342164b3d94991ba9692fdc0dd08e3fd7362e0aacc396a9a5c54a544c3b7",
        sources=1,
    ),
    "bge-m3.q8_0": Pin(
        "ggml-org/bge-m3-Q8_0-GGUF",
        "9eba04c5d75ba5a1595e45de734d36bef4e5cb98",
        "bge-m3-q8_0.gguf",
        634553760,
        "aa473d51f451a22f0fcf39ba3330c14bed38a385712b1113440f69df4047a173",
        sources=1,
    ),
    "qwen3-reranker-0.6b.q8_0": Pin(
        "ggml-org/Qwen3-Reranker-0.6B-Q8_0-GGUF",
        "a02f48bb4f057028298c21fa033da2b30d7742d5",
        "qwen3-reranker-0.6b-q8_0.gguf",
        639153184,
        "22c9979ce4fbcdc5acdc310c6641c32797eff1aa980b8f7a2db8a8ea23429a48",
        sources=2,
    ),
    "bge-reranker-v2-m3.q8_0": Pin(
        "gpustack/bge-reranker-v2-m3-GGUF",
        "3093af03b1a635e67b084b1d8c03c5f5e020fd05",
        "bge-reranker-v2-m3-Q8_0.gguf",
        635676416,
        "a43c7c9b11a4c1517e5bf95151960e1621d1b72f7a493364b01e386cf1aaa1d3",
        sources=3,
    ),
}


@pytest.mark.parametrize(("name", "pin"), PINNED.items())
def test_models_of_the_package_are_pinned(packaged: Manifest, name: str, pin: Pin) -> None:
    """A hash that was found in one place is marked in the manifest, too."""
    source = packaged.model(name).source
    assert source.url == f"https://huggingface.co/{pin.repository}/resolve/{pin.revision}/{pin.file}"
    assert (source.size, source.sha256) == (pin.size, pin.sha256)
    assert build_catalog(HOME, packaged).find(name).hash_sources == (1 if pin.sources == 1 else 0)


def test_each_model_of_the_package_tells_licence_context_dimensions_and_prompts(packaged: Manifest) -> None:
    catalog = build_catalog(HOME, packaged)
    assert catalog.default.name == "qwen3-embedding-0.6b.q6_K"
    assert {spec.name for spec in catalog.specs.values()} > {*PINNED}
    for spec in catalog.specs.values():
        assert spec.licence
        assert spec.context >= 2048
        if spec.kind is ModelKind.EMBEDDING:
            assert spec.dimensions >= 768
            assert spec.traits is not None
    assert [spec.name for spec in catalog.specs.values() if spec.notice] == ["embeddinggemma-300m.q8_0"]
    assert catalog.find("EmbeddingGemma-300m").notice == "Gemma, https://ai.google.dev/gemma/terms"
    assert [spec.name for spec in catalog.specs.values() if spec.engine_build] == ["embeddinggemma-2.q8_0"]
    rerankers = {spec.family for spec in catalog.specs.values() if spec.kind is ModelKind.RERANK}
    assert rerankers == {"qwen3-reranker-0.6b", "bge-reranker-v2-m3"}


def test_the_package_tells_the_same_traits_as_the_families_do(packaged: Manifest) -> None:
    """So a file of the user's own has the same prompts as the one of the manifest."""
    for spec in build_catalog(HOME, packaged).specs.values():
        if spec.kind is ModelKind.EMBEDDING:
            info = ModelInfo("", spec.family, "?", spec.dimensions, 512, "mean", "", "")
            assert known_traits(info) == spec.traits, spec.name


def test_a_family_means_its_first_variant_and_that_of_the_default_model_its_default(packaged: Manifest) -> None:
    catalog = build_catalog(HOME, packaged)
    assert catalog.find("qwen3-embedding-0.6b").name == "qwen3-embedding-0.6b.q6_K"
    assert catalog.find("BGE-M3").name == "bge-m3.q8_0"
    for near in ("../bge-m3", "models/bge-m3", "bge-m3.", "bge", "bge-m3.q8_0.gguf"):
        with pytest.raises(UnknownModelError, match=r"there is no model .*; did you mean bge-.*\? `runed models` lists all"):
            catalog.find(near)
    with pytest.raises(
        UnknownModelError, match=r"there is no model .*; there are qwen3-embedding-0.6b.q6_K, .* others; "
    ) as error:
        catalog.find("x" * 1000)
    assert len(error.value.message) < 400
    assert error.value.metadata["models"].count(", ") == len(catalog.specs) - 1


# Versions


class _OldModel(msgspec.Struct, frozen=True):
    """The entry of a model as version 0.1 of runed reads it."""

    url: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")] | None = None
    size: Annotated[int, msgspec.Meta(gt=0, le=2**62)] | None = None
    derive: dict[str, str] | None = None
    traits: ModelTraits | None = None


class _OldDocument(msgspec.Struct, frozen=True):
    version: int
    models: dict[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")], _OldModel]
    default_model: str


def test_versions_before_the_catalog_read_the_manifest_with_all_prompts(packaged: Manifest) -> None:
    path = Path(__file__).parents[2] / "runed" / "bootstrap" / "default_manifest.json"
    old = msgspec.json.decode(path.read_bytes(), type=_OldDocument)
    assert (old.version, old.default_model) == (1, "qwen3-embedding-0.6b.q6_K")
    for spec in build_catalog(HOME, packaged).specs.values():
        entry = old.models[spec.name]
        source = old.models[entry.derive["from"]] if entry.derive else entry
        assert (source.url, source.sha256) == (packaged.model(spec.name).source.url, packaged.model(spec.name).source.sha256)
        assert (entry.traits or source.traits) == spec.traits


def test_a_manifest_from_before_the_catalog_has_the_same_models() -> None:
    catalog = build_catalog(HOME, parse(document()))
    assert list(catalog.specs) == ["m.q6_K", "m.q8_0"]
    assert catalog.default == ModelSpec(family="m", variant="q6_K")
    assert build_catalog(replace(HOME, model_variant="m.q8_0"), parse(document())).default.name == "m.q8_0"


def test_models_of_a_later_manifest_that_are_not_known_are_left_out() -> None:
    content = document()
    content["models"] |= {"speech": {"url": "u", "kind": "speech"}, "odd..name": {"url": "u"}}
    assert list(build_catalog(HOME, parse(content)).specs) == ["m.q6_K", "m.q8_0"]


async def test_an_installation_tells_all_variants_of_its_family(machine: Machine, release: Release, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(MODEL)
    release.models = dict.fromkeys(("m.q8_0", "m.f16", "m-large.f16"), MODEL)
    release.default = "m.f16"
    url = release.publish()
    assert (await machine.install(url)).variants == ("m.f16", "m.q8_0")
    assert (await machine.install(url, model=own)).variants == ()


async def test_a_home_from_before_the_catalog_needs_no_download(machine: Machine, release: Release) -> None:
    """The files, `installed.json` and the markers are those that version 0.1 wrote."""
    release.models = {"qwen3-embedding-0.6b.q8_0": MODEL}
    release.default = "qwen3-embedding-0.6b.q8_0"
    url = release.publish()
    first = await machine.install(url)
    newer = release.document()
    newer["models"]["qwen3-embedding-0.6b.q8_0"] |= {"license": "Apache-2.0", "context": 32768, "sources": 1}
    newer["models"]["other.q8_0"] = {"url": "nowhere", "sha256": "0" * 64}
    release.site.files["/manifest.json"] = json.dumps(newer).encode()
    release.site.requests.clear()
    again = await machine.install()
    assert (again.model, again.model_sha256, again.variant) == (first.model, first.model_sha256, first.variant)
    assert {request.path for request in release.site.requests} <= {"/manifest.json"}


# The user's own


def test_a_model_of_the_user_has_its_name_aliases_traits_and_time(packaged: Manifest) -> None:
    entry = {"path": "/m.gguf", "pooling": "mean", "query_prompt": "q: ", "min_dimensions": 64, "keep_alive": "30m"}
    settings = replace(with_models(mine=entry | {"aliases": ["e5"]}), default_model="MINE", aliases={"small": "e5"})
    catalog = build_catalog(settings, packaged)
    spec = catalog.default
    assert spec is catalog.find("E5") is catalog.find("small")
    assert (spec.path, spec.pooling, spec.keep_alive, spec.traits) == (Path("/m.gguf"), "mean", 1800, None)
    assert spec.own == OwnTraits(query_prompt="q: ", min_dimensions=64)
    assert own_default(settings) == spec


def test_a_model_of_the_user_is_of_the_kind_that_its_file_tells(packaged: Manifest) -> None:
    entries = {"one": {"path": "/1"}, "other": {"path": "/2"}, "said": {"path": "/2", "kind": "embedding"}}
    hub = {"source": "hf:a/b/c.gguf", "sha256": "0" * 64}
    settings = replace(with_models(HOME, **entries, hub=hub), model=Path("/x/mine.gguf"))
    rerankers = {"mine", "other", "said", "hub"}
    catalog = build_catalog(settings, packaged, lambda spec: spec.name in rerankers)
    kinds = {name: catalog.find(name).kind.value for name in ("mine", "one", "other", "said", "hub", "bge-m3")}
    assert [name for name, kind in kinds.items() if kind == "rerank"] == ["mine", "other", "hub"]
    with pytest.raises(SettingsError, match="mine is a reranker and gives no vectors"):
        check_default(catalog.default)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("bge-m3", {"kind": "rerank"}, 'has the kind "rerank", but bge-m3.q8_0 is of the kind "embedding"'),
        ("bge-reranker-v2-m3", {"kind": "embedding"}, 'but bge-reranker-v2-m3.q8_0 is of the kind "rerank"; remove the kind'),
        ("bge-reranker-v2-m3", {"pooling": "mean"}, "is a reranker, which has its own; remove the pooling"),
    ],
)
def test_an_entry_that_contradicts_the_manifest_is_told(
    packaged: Manifest, name: str, entry: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        build_catalog(with_models(HOME, **{name: entry}), packaged)


def test_an_entry_without_a_model_changes_that_of_the_manifest(packaged: Manifest) -> None:
    settings = with_models(bge_m3={"keep_alive": "0", "aliases": ["bge"]}, qwen3_embedding_4b={"query_prompt": "q"})
    catalog = build_catalog(settings, packaged)
    assert catalog.find("bge").name == "bge-m3.q8_0"
    assert catalog.find("bge").keep_alive == 0
    assert catalog.find("bge").path is None
    changed = catalog.find("qwen3-embedding-4b")
    assert changed.traits is not None
    assert changed.own.over(changed.traits).query_prompt == "q"
    with pytest.raises(SettingsError, match=r"models.nobody in config.json has no path, and the built-in manifest"):
        build_catalog(with_models(nobody={"keep_alive": "1m"}), packaged)


def test_a_model_of_the_user_takes_the_place_of_one_of_the_manifest(packaged: Manifest) -> None:
    settings = with_models()
    settings = replace(
        settings, models=own_models({"BGE-M3.q8_0": Entry(path="/b")}, Path(), read_path=full_path, read_duration=duration)
    )
    catalog = build_catalog(settings, packaged)
    assert catalog.find("bge-m3.q8_0").path == catalog.find("bge-m3").path == Path("/b")
    assert sum(name.lower() == "bge-m3.q8_0" for name in catalog.specs) == 1
    named = build_catalog(replace(HOME, model=Path("/x/bge-m3.q8_0.gguf")), packaged)
    assert named.default is named.find("bge-m3")


@pytest.mark.parametrize(
    ("models", "aliases", "why"),
    [
        (
            {"a": {"path": "/a", "aliases": ["x"]}, "b": {"path": "/b", "aliases": ["X"]}},
            {},
            "two models are called 'X'",
        ),
        ({"a": {"path": "/a", "aliases": ["bge-m3"]}}, {}, "two models are called 'bge-m3'"),
        ({"a": {"path": "/a", "aliases": ["../x"]}}, {}, "'../x' cannot be the name of a model"),
        ({}, {"small": "nobody"}, "the alias 'small' stands for 'nobody', which is no model"),
        ({}, {"a/b": "bge-m3"}, "'a/b' cannot be the name of a model"),
        ({}, {"bge-m3": "nomic-embed-text-v1.5"}, "two models are called 'bge-m3'"),
    ],
)
def test_names_that_cannot_be_used_are_told(
    packaged: Manifest, models: dict[str, Any], aliases: dict[str, str], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        build_catalog(replace(with_models(**models), aliases=aliases), packaged)


def test_a_default_model_that_does_not_exist_is_told(packaged: Manifest) -> None:
    with pytest.raises(SettingsError, match="default_model: there is no model 'nobody'; there are qwen3-embedding"):
        build_catalog(replace(HOME, default_model="nobody"), packaged)
    with pytest.raises(ManifestError, match=r"has no model 'nobody'; .* set RUNED_MODEL_VARIANT"):
        build_catalog(replace(HOME, model_variant="nobody"), packaged)


@pytest.mark.parametrize(
    ("fallback", "why"),
    [
        ("nope", "there is no model 'nope'; there are big, far, qwen3-embedding"),
        ("far", "far is on another machine, too"),
        ("text-embedding-3-small", "big is on another machine, too"),
        ("bge-reranker-v2-m3", "is a reranker and gives no vectors"),
        ("bge-m3", ""),
    ],
)
def test_a_fallback_that_can_never_compute_is_told(packaged: Manifest, fallback: str, why: str) -> None:
    url = {"url": "https://gpu.example/v1"}
    settings = replace(with_models(big=url | {"fallback": fallback}, far=url), default_model="big", aliases=own_aliases())
    if not why:
        assert build_catalog(settings, packaged).default.name == "big"
        return
    with pytest.raises(SettingsError, match=f"^fallback of models.big in config.json: .*{why}"):
        build_catalog(settings, packaged)


def test_a_reranker_of_the_user_is_never_the_default_model(packaged: Manifest) -> None:
    settings = replace(with_models(mine={"path": "/m", "kind": "rerank", "aliases": ["Best"]}), default_model="best")
    for look in (own_default, lambda settings: check_default(build_catalog(settings, packaged).default)):
        with pytest.raises(SettingsError, match="mine is a reranker and gives no vectors"):
            look(settings)


def test_a_file_of_the_hub_is_a_download_with_its_pinned_hash(packaged: Manifest) -> None:
    settings = with_models(mine={"source": "hf:o/r/f.gguf@1", "sha256": "ab" * 32})
    choice = choice_of(build_catalog(settings, packaged).find("mine"), packaged)
    assert (choice.variant, choice.quantization) == ("mine", None)
    assert choice.source.url == "https://huggingface.co/o/r/resolve/1/f.gguf"
    assert (choice.source.sha256, choice.source.size) == ("ab" * 32, None)


# Installations


async def test_each_model_of_the_catalog_can_be_installed(machine: Machine, release: Release) -> None:
    release.models["other.q8_0"] = MODEL[::-1]
    url = release.publish()
    assert (await machine.install(url)).variant == "tiny"
    installation = await machine.install(wanted=ModelSpec(family="other", variant="q8_0"))
    assert (installation.variant, installation.model_sha256) == ("other.q8_0", sha256(MODEL[::-1]))
    assert installation.spec.name == "other.q8_0"
    assert set(machine.audit()["models"]) == {"tiny", "other.q8_0"}
    assert machine.paths.model("tiny").exists()


async def test_half_a_download_survives_the_installation_of_another_model(machine: Machine, release: Release) -> None:
    release.models["other.q8_0"] = MODEL
    url = release.publish()
    half = machine.paths.model("other.q8_0").with_name("other.q8_0.gguf.partial")
    machine.paths.models.mkdir()
    half.write_bytes(b"GG")
    await machine.install(url)
    assert half.exists()


async def test_the_own_default_model_needs_no_manifest(machine: Machine, tmp_path: Path) -> None:
    own = tmp_path / "m.gguf"
    own.write_bytes(MODEL)
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho 'version: 1 (x)' >&2\n")
    engine.chmod(0o700)
    models = own_models({"mine": Entry(path=str(own))}, Path(), read_path=full_path, read_duration=duration)
    with running_site() as site:
        gone = f"{site.url}/manifest.json"
        installation = await machine.install(gone, llama_server=engine, models=models, default_model="mine")
        assert site.requests == []
    assert (installation.model, installation.spec.name, installation.variant) == (own, "mine", "")
    own.unlink()
    with pytest.raises(SettingsError, match=r"m.gguf does not exist; correct its path in config.json, or .*`runed rm mine`"):
        await machine.install()


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("11194 (abc1234)", True),
        ("11457 (abc1234)", False),
        ("0.6.0-dev (build 11194, commit x)", True),
        ("0.6.0-dev (build 11500, commit x)", False),
        ("0.6.0-dev (build 0, commit unknown)", False),
        ("none of ours", False),
    ],
)
async def test_a_model_that_needs_a_newer_engine_is_refused_before_its_download(
    machine: Machine, release: Release, version: str, *, refused: bool
) -> None:
    release.engine = archive(("llama-b1/llama-server", f"#!/bin/sh\necho 'version: {version}' >&2\n"))
    release.publish()
    content = release.document()
    content["models"]["tiny"]["engine_build"] = 11457
    release.site.files["/manifest.json"] = json.dumps(content).encode()
    url = f"{release.site.url}/manifest.json"
    if refused:
        with pytest.raises(BootstrapError, match=r"tiny needs llama-server b11457 or newer, and this one is .*11194"):
            await machine.install(url)
        assert release.site.count("/models/tiny.gguf") == 0
    else:
        assert (await machine.install(url)).variant == "tiny"


async def test_a_licence_that_is_not_permissive_is_told_with_the_download(machine: Machine, release: Release) -> None:
    release.publish()
    content = release.document()
    content["models"]["tiny"] |= {"license": "Gemma", "license_url": "https://ai.google.dev/gemma/terms"}
    release.site.files["/manifest.json"] = json.dumps(content).encode()
    await machine.install(f"{release.site.url}/manifest.json")
    told = [progress.message for progress in machine.progress if "under the licence" in progress.message]
    assert told[0] == "downloading tiny, under the licence Gemma, https://ai.google.dev/gemma/terms (0 MB)"
