"""Reads the manifest, which lists the engines and the models with their URLs and hashes.

A manifest is JSON:

    {"version": 1,
     "platforms": {"linux-amd64": {"llama_server": {"url", "sha256", "size", "extract", "exec"},
                                   "accelerators": [{"name", "driver", "url", ..., "exec",
                                                     "libraries": [{"url", "sha256", "size"}]}]}},
     "models": {"<name>": {"url", "sha256", "size"}, "<name>": {"derive": {"from", "type"}}},
     "default_model": "<name>"}

Each size may be missing, and each file may have further URLs in a list "mirrors". Older versions of runed ignore `accelerators`
and `mirrors`, but refuse a `llama_server` without a size.

A model may have "traits": {"query_prompt", "document_prompt", "default_instruction", "min_dimensions"}; see `ModelTraits`.

It may also have facts: "kind" ("embedding" or "rerank"), "license", "license_url", "context" and "dimensions" (numbers),
"engine_build" (the first release of llama.cpp that runs it) and "sources" (in how many independent places its hash was found,
if that is one). Older versions ignore these, so all that changes vectors belongs into the traits.

A derived model has the facts of its source, and its traits unless it has some of its own.

All types are checked. Values are checked only in the entries that are used, since a later manifest may have platforms and
models that this version does not know.
"""

from __future__ import annotations

import codecs
import errno
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urljoin

import msgspec

from runed.bootstrap.baked import MANIFEST_URL
from runed.domain.model import ModelTraits
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import split_name
from runed.errors import ManifestError, SettingsError, UnsupportedPlatformError, quoted
from runed.files import read_regular
from runed.model_names import is_name
from runed.settings import ENGINES, Settings, full_path
from runed.urls import is_web_url, path_of_file_url, printable_url, scheme_of

VERSION = 1
"""Version of the format that this module reads."""

_CORRECT = "correct it, or unset RUNED_MANIFEST"
"""The remedy for a manifest that cannot be used."""

MAX_MANIFEST_BYTES = 1024 * 1024
"""Most bytes of a manifest. The pinned one has 10 KB, so a larger document is not a manifest."""

_OPERATING_SYSTEMS = {"linux": "linux", "darwin": "darwin"}
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

_KINDS = frozenset(kind.value for kind in ModelKind)

_ACCELERATORS = frozenset(ENGINES) - {"auto", "cpu"}

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]
ByteCount = Annotated[int, msgspec.Meta(gt=0, le=2**62)]
VariantName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""Name of a variant. It becomes a file name, so it has no separator and does not begin with a dot or a dash."""
QuantizationType = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,32}\Z")]
"""Name of a quantization. It becomes an argument of `llama-quantize`, so it must not look like an option."""


DriverVersion = Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,9}([.][0-9]{1,9})*)?\Z")]


class _File(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    sha256: Sha256
    size: ByteCount | None = None
    mirrors: list[str] = []


class _Engine(_File, frozen=True, kw_only=True):
    exec: str
    extract: str = ""


class _Accelerator(_Engine, frozen=True, kw_only=True):
    name: str
    driver: DriverVersion = ""
    libraries: list[_File] = []


class _Platform(msgspec.Struct, frozen=True):
    llama_server: _Engine | None = None
    accelerators: list[_Accelerator] = []


class _Derive(msgspec.Struct, frozen=True, rename={"source": "from"}):
    source: VariantName
    type: QuantizationType


class _Model(msgspec.Struct, frozen=True):
    url: str | None = None
    sha256: Sha256 | None = None
    size: ByteCount | None = None
    mirrors: list[str] = []
    derive: _Derive | None = None
    traits: ModelTraits | None = None
    kind: str = "embedding"
    license: str = ""
    license_url: str = ""
    context: ByteCount | None = None
    dimensions: ByteCount | None = None
    engine_build: ByteCount | None = None
    sources: ByteCount | None = None


class _Document(msgspec.Struct, frozen=True):
    platforms: dict[str, _Platform]
    models: dict[VariantName, _Model]
    default_model: VariantName


class _Versioned(msgspec.Struct, frozen=True):
    version: int


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file to download or copy.

    Attributes:
        url: An absolute http, https or file URL.
        sha256: The hash as 64 lower-case hexadecimal digits; "" if it is not known yet.
        size: The size in bytes; None if it is not known.
        mirrors: Further URLs, for the time when the first one fails.
    """

    url: str
    sha256: str
    size: int | None
    mirrors: tuple[str, ...] = ()

    @property
    def path(self) -> Path | None:
        """The path of a file to copy; None for a file to download."""
        return Path(path_of_file_url(self.url)) if scheme_of(self.url) == "file" else None


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine for a platform.

    Attributes:
        artefact: The archive, or the program itself.
        is_archive: Whether the artefact is a tar.gz to extract.
        executable: The relative path of `llama-server` in the folder of the engine, without "..".
        accelerator: What the engine computes with besides the processors: "cuda", "rocm" or "vulkan"; "cpu" for nothing.
        driver: The lowest version of the driver that it works with, or "".
        libraries: Further archives. Their files belong beside the program.
    """

    artefact: Artefact
    is_archive: bool
    executable: PurePosixPath
    accelerator: str = "cpu"
    driver: str = ""
    libraries: tuple[Artefact, ...] = ()

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """All files of the engine."""
        return (self.artefact, *self.libraries)

    @property
    def build(self) -> str:
        """The name of this build: the hashes of all its files, one a line."""
        return "\n".join(artefact.sha256 for artefact in self.artefacts)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A variant of the model.

    Attributes:
        variant: Its name, which is a plain file name.
        source_variant: The name of the variant that is downloaded: `variant` itself, or the one that it is derived from.
        source: The file that is downloaded.
        quantization: The type that `llama-quantize` makes from the source, or None if the source is the model.
        traits: Its prompts and dimensions, or None if the manifest does not tell.
    """

    variant: str
    source_variant: str
    source: Artefact
    quantization: str | None
    traits: ModelTraits | None = None

    def source_only(self) -> ModelChoice:
        """Return the choice of the source without a quantization."""
        return ModelChoice(self.source_variant, self.source_variant, self.source, None, self.traits)


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """The place of a manifest: a URL, the path of a file, or "" for the pinned manifest in the package."""

    location: str
    is_url: bool

    def __str__(self) -> str:
        return printable_url(self.location) if self.is_url else self.location or "the built-in manifest"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest with checked types. `parse_manifest` makes it.

    Attributes:
        source: Its place, against which relative URLs resolve.
    """

    source: ManifestSource
    _document: _Document

    def engine(self, platform_name: str) -> EngineChoice:
        """Choose the engine for a platform, such as "linux-amd64".

        Raises:
            ManifestError: There is none, or its entry is invalid.
        """
        entry = self._document.platforms.get(platform_name)
        engine = entry.llama_server if entry else None
        if engine is None:
            raise ManifestError(
                f"{self.source} has no llama_server for {platform_name}, only for {_names(self._document.platforms)}; "
                "set RUNED_LLAMA_SERVER to a llama-server of your own"
            )
        return self._engine_choice(engine, f"$.platforms['{platform_name}'].llama_server")

    def accelerators(self, platform_name: str) -> tuple[EngineChoice, ...]:
        """Return the engines of a platform for accelerators, those to prefer first.

        Raises:
            ManifestError: An entry is invalid.
        """
        entry = self._document.platforms.get(platform_name)
        return tuple(
            replace(
                self._engine_choice(engine, where),
                accelerator=engine.name,
                driver=engine.driver,
                libraries=tuple(self._artefact(file, f"{where}.libraries[{n}]") for n, file in enumerate(engine.libraries)),
            )
            for number, engine in enumerate(entry.accelerators if entry else [])
            # A later manifest may name accelerators that this version does not know.
            if engine.name in _ACCELERATORS
            for where in [f"$.platforms['{platform_name}'].accelerators[{number}]"]
        )

    def _engine_choice(self, engine: _Engine, where: str) -> EngineChoice:
        if engine.extract not in {"", "tar.gz"}:
            raise self._error(f'{quoted(engine.extract)} at {where}.extract is not known; accepted are "" and "tar.gz"')
        executable = PurePosixPath(engine.exec)
        if not executable.name or executable.is_absolute() or ".." in executable.parts or "\0" in engine.exec:
            raise self._error(f"{quoted(engine.exec)} at {where}.exec is not a relative path inside the engine's folder")
        return EngineChoice(self._artefact(engine, where), is_archive=engine.extract == "tar.gz", executable=executable)

    def model(self, variant: str | None) -> ModelChoice:
        """Choose a variant of the model, or with None the manifest's default.

        Raises:
            ManifestError: There is no model of this name, or its entry is invalid.
        """
        name = variant or self._document.default_model
        entry = self._document.models.get(name)
        if entry is None:
            hint = "set RUNED_MODEL_VARIANT (or model_variant in config.json) to one of these"
            raise ManifestError(f"{self.source} has no model {quoted(name)}; it has {_names(self._document.models)}; {hint}")
        if entry.derive is None:
            return ModelChoice(name, name, self._download(name), None, entry.traits)
        source = entry.derive.source
        if source not in self._document.models:
            raise self._error(f"{quoted(source)} at $.models['{name}'].derive.from is not among its models")
        traits = entry.traits or self._document.models[source].traits
        return ModelChoice(name, source, self._download(source), entry.derive.type, traits)

    def default(self, name: str | None) -> str:
        """Return the full name of a model, of which the family or the case may be another, or with None the manifest's default.

        Raises:
            ManifestError: There is no such model.
        """
        wanted = name or self._document.default_model
        same = (each for each in self._document.models if wanted.lower() in {each.lower(), split_name(each)[0].lower()})
        return wanted if wanted in self._document.models else next(same, None) or self.model(wanted).variant

    def specs(self) -> list[ModelSpec]:
        """Return the models that requests may name. Of the family of the default model, that one comes first."""
        default = self._document.default_model
        names = sorted(self._document.models, key=lambda name: name != default)
        # A later manifest may have models of a kind that this version does not know.
        return [spec for name in names if is_name(name) and (spec := self._spec(name))]

    def _spec(self, name: str) -> ModelSpec | None:
        entry = self._document.models[name]
        origin = self._document.models.get(entry.derive.source, entry) if entry.derive else entry
        if origin.kind not in _KINDS:
            return None
        family, variant = split_name(name)
        return ModelSpec(
            family=family,
            variant=variant,
            kind=ModelKind(origin.kind),
            traits=entry.traits or origin.traits,
            licence=origin.license,
            licence_url=origin.license_url,
            context=origin.context or 0,
            dimensions=origin.dimensions or 0,
            size=entry.size or 0,
            sha256=(entry.sha256 or "").lower(),
            engine_build=origin.engine_build or 0,
            hash_sources=origin.sources or 0,
        )

    def _download(self, name: str) -> Artefact:
        model = self._document.models[name]
        where = f"$.models['{name}']"
        if model.url is None or model.sha256 is None:
            raise self._error(f"{where} lacks one of url and sha256, which a model to download must have")
        return self._artefact(_File(url=model.url, sha256=model.sha256, size=model.size, mirrors=model.mirrors), where)

    def _artefact(self, file: _File, where: str) -> Artefact:
        mirrors = tuple(self._absolute_url(url, f"{where}.mirrors") for url in file.mirrors)
        return Artefact(self._absolute_url(file.url, f"{where}.url"), file.sha256.lower(), file.size, mirrors)

    def _absolute_url(self, url: str, where: str) -> str:
        """Resolve a URL or path against the place of the manifest. Only a manifest of this machine may name files of it."""
        try:
            if self.source.location and not self.source.is_url and scheme_of(url) in {"", "file"}:
                return self._local_file(url).as_uri()
            absolute = urljoin(self.source.location, url) if self.source.is_url else url
        except (ValueError, SettingsError) as error:
            raise self._error(f"the url at {where} cannot be read: {error}") from None
        if not is_web_url(absolute):
            hint = " (only a manifest file may hold paths and file: URLs)" if self.source.is_url else ""
            raise self._error(f"the url at {where} is no http or https URL{hint}")
        return absolute

    def _local_file(self, location: str) -> Path:
        path = path_of_file_url(location) if scheme_of(location) else location
        return full_path(path if path.startswith(("/", "~")) else str(Path(self.source.location).parent / path))

    def _error(self, problem: str) -> ManifestError:
        return ManifestError(f"{self.source} cannot be used: {problem}")


def parse_manifest(data: bytes, source: ManifestSource) -> Manifest:
    """Read a manifest and check its types.

    Args:
        data: The JSON document.
        source: Its place, for errors and relative URLs.

    Raises:
        ManifestError: It is not JSON, has another version, or has a value of a wrong type. The error tells the path of the
            value.
    """
    try:
        data = data.removeprefix(codecs.BOM_UTF8)
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise ManifestError(f"{source} has version {version}, but this runed reads version {VERSION}; upgrade runed")
        document = msgspec.json.decode(data, type=_Document)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{source} cannot be used: {error}; {_CORRECT}") from None
    except RecursionError:
        raise ManifestError(f"{source} cannot be used: lists or objects in it are nested too deeply; {_CORRECT}") from None
    except ValueError as error:  # a DecodeError, or bytes that are not UTF-8
        hint = "it is a web page, such as the login page of a network; " if data.lstrip()[:1] == b"<" else ""
        raise ManifestError(f"{source} is not JSON: {error}; {hint}check RUNED_MANIFEST") from None
    return Manifest(source, document)


def manifest_source(settings: Settings, *, baked_url: str = MANIFEST_URL) -> ManifestSource:
    """Return the place of the manifest: `RUNED_MANIFEST`, or else the URL of the build, or else the package.

    Raises:
        SettingsError: `RUNED_MANIFEST` is a URL that is neither http nor https.
    """
    location = settings.manifest or baked_url
    if scheme_of(location) in {"", "file"}:
        path = path_of_file_url(location) if scheme_of(location) else location
        return ManifestSource(str(full_path(path)) if path else "", is_url=False)
    if not is_web_url(location):
        raise SettingsError(
            f"RUNED_MANIFEST={printable_url(location)}: accepted is an https, http or file: URL, or the path of a file"
        )
    return ManifestSource(location, is_url=True)


def read_local_manifest(source: ManifestSource) -> Manifest:
    """Read a manifest from a file or from the package; `source` must be no URL.

    Raises:
        ManifestError: The file cannot be read; or as `parse_manifest`.
    """
    if not source.location:
        return parse_manifest(resources.files(__package__).joinpath("default_manifest.json").read_bytes(), source)
    try:
        return parse_manifest(read_regular(Path(source.location), limit=MAX_MANIFEST_BYTES), source)
    except OSError as error:
        hint = "; so it is no manifest" if error.errno == errno.EFBIG else ""
        raise ManifestError(f"RUNED_MANIFEST={source}: the file cannot be read: {error.strerror}{hint}") from None


def current_platform(system: str = sys.platform, machine: str | None = None) -> str:
    """Return the name of this platform in manifests, such as "linux-amd64"; `machine` is by default `platform.machine()`.

    Raises:
        UnsupportedPlatformError: Manifests have no name for it.
    """
    machine = platform.machine() if machine is None else machine
    operating_system, architecture = _OPERATING_SYSTEMS.get(system), _ARCHITECTURES.get(machine.lower())
    if operating_system is None or architecture is None:
        raise UnsupportedPlatformError(
            f"there is no engine to download for {system} on {machine}; set RUNED_LLAMA_SERVER to a llama-server of your own"
        )
    return f"{operating_system}-{architecture}"


def _names(entries: Iterable[str]) -> str:
    return ", ".join(sorted(entries)) or "none"
