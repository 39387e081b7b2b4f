"""The names of models: `family-size` or `family-size.variant`, in letters of any case, and aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from runed.domain.model_spec import ModelKind, ModelSpec
from runed.errors import SettingsError, UnknownModelError, quoted
from runed.model_names import MAX_NAME, check_name
from runed.suggesting import near

_FOREIGN = re.compile(r"[^a-z0-9_-]+", re.IGNORECASE | re.ASCII)

_VARIANT = re.compile(r"(.+)\.((?:bf|f|iq|mxfp|q|tq)[0-9][a-z0-9_]*)", re.IGNORECASE | re.ASCII)
"""A full name: the family, a dot, and a quantization, such as "q6_K"."""

_FEW = 5
"""The most models that an error names."""


def split_name(name: str) -> tuple[str, str]:
    """Return family and variant of a full name; the variant is "" if the name does not end with a quantization."""
    found = _VARIANT.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def name_of_file(path: Path) -> str:
    """Return a name for a model that the user brings as a file: that of the file in small letters, without the known suffix."""
    stem = path.stem if path.suffix.lower() in {".gguf", ".onnx"} else path.name
    parts = (_FOREIGN.sub("-", part).strip("-_") for part in stem.lower().split("."))
    return ".".join(filter(None, parts))[:MAX_NAME].strip(".-_") or "model"


def check_default(spec: ModelSpec) -> ModelSpec:
    """Return a model that is to be the default one.

    Raises:
        SettingsError: It gives no vectors, which requests that name no model expect.
    """
    if spec.kind is ModelKind.EMBEDDING:
        return spec
    raise SettingsError(
        f"{spec.name} is a reranker and gives no vectors, so it cannot be the default model; choose another one by "
        "`runed use NAME`"
    )


class ModelNames:
    """The models that requests may name.

    A name that is not full, as in "qwen3-embedding-0.6b", means the first model of its family.

    Args:
        specs: The models. Of each family, the default variant comes first.
        default: The name of the model that "" means; "" means the first model that embeds.
        aliases: Further names, each with the name that it stands for; "" means the default model, unless a model has that name.

    Attributes:
        specs: The models by their full names.
        default: The model that "" means.

    Raises:
        SettingsError: A name cannot be used, or two models have the same name, or an alias stands for no model, or the default
            model gives no vectors.
    """

    def __init__(self, specs: Iterable[ModelSpec], *, default: str = "", aliases: Mapping[str, str] | None = None) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self._by_name: dict[str, ModelSpec] = {}
        for spec in specs:
            self._add(spec.name, spec)
            self.specs[spec.name] = spec
        for spec in self.specs.values():
            # A family that is called like a model is that model.
            self._by_name.setdefault(spec.family.lower(), spec)
        for spec in self.specs.values():
            for alias in spec.aliases:
                self._add(alias, spec)
        named = {alias: target for alias, target in (aliases or {}).items() if target}
        self._add_aliases(named)
        self.default = self._default(default)
        for alias in (aliases or {}).keys() - named.keys():
            self._by_name.setdefault(check_name(alias, "an alias").lower(), self.default)

    def named(self, name: str) -> ModelSpec | None:
        """Return the model of a name or an alias; None if there is none."""
        return self._by_name.get(name.lower())

    def extends(self, earlier: ModelNames) -> bool:
        """Return whether each name of an earlier version still means the model that it meant, also ""."""
        names = {"": earlier.default} | earlier._by_name
        return all(name in {"", *self._by_name} and self.find(name).name == spec.name for name, spec in names.items())

    def find(self, name: str) -> ModelSpec:
        """Return the model of a name, an alias or, for "", the default model.

        Raises:
            UnknownModelError: There is none.
        """
        if not name:
            return self.default
        if (spec := self.named(name)) is None:
            raise UnknownModelError(
                f"there is no model {quoted(name)}; {self._known(name)}", metadata={"models": ", ".join(self.specs)}
            )
        return spec

    def rerankers(self) -> list[ModelSpec]:
        """Return the models that rerank."""
        return [spec for spec in self.specs.values() if spec.kind is ModelKind.RERANK]

    def aliases_of(self, spec: ModelSpec) -> list[str]:
        """Return the further names of a model, in small letters and in order, without that of its family."""
        own = {spec.name.lower(), spec.family.lower()}
        return sorted(name for name, found in self._by_name.items() if found is spec and name not in own)

    def variants_of(self, spec: ModelSpec) -> list[str]:
        """Return the full names of all models of a family, the default one first."""
        family = spec.family.lower()
        return [other.name for other in self.specs.values() if other.family.lower() == family]

    def _add_aliases(self, targets: Mapping[str, str]) -> None:
        """Add aliases in any order. One may stand for another, but not for itself by others."""
        while targets:
            found = {alias: spec for alias, target in targets.items() if (spec := self.named(target))}
            if not found:
                alias, target = next(iter(targets.items()))
                raise SettingsError(
                    f"the alias {quoted(alias)} stands for {quoted(target)}, which is no model; {self._known(target)}"
                )
            for alias, spec in found.items():
                self._add(alias, spec)
            targets = {alias: target for alias, target in targets.items() if alias not in found}

    def _add(self, name: str, spec: ModelSpec) -> None:
        check_name(name, f"the model {quoted(spec.name)}")
        if (other := self._by_name.setdefault(name.lower(), spec)) is not spec:
            raise SettingsError(f"two models are called {quoted(name)}: {other.name} and {spec.name}; rename one of them")

    def _default(self, name: str) -> ModelSpec:
        if name:
            try:
                return self.find(name)
            except UnknownModelError as error:
                raise SettingsError(f"default_model: {error.message}") from None
        return next(spec for spec in self.specs.values() if spec.kind is ModelKind.EMBEDDING)

    def _known(self, name: str) -> str:
        """Return which models there are: those that an unknown name may mean, and the first ones."""
        names = {each: spec for spec in self.specs.values() for each in (spec.family, spec.name, *spec.aliases)}
        meant = {names[each].name: each for each in reversed(near(name, names))}  # one name of each model
        asked = f"did you mean {' or '.join(reversed(meant.values()))}? " if meant else ""
        first, others = list(self.specs)[:_FEW], len(self.specs) - _FEW
        if others <= 0:
            return f"{asked}there are {', '.join(first)}"
        if asked:
            return f"{asked}`runed models` lists all {len(self.specs)}"
        return f"there are {', '.join(first)} and {others} others; `runed models` lists all"
