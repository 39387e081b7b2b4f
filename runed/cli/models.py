"""`runed models`: list the models that requests may name."""

from __future__ import annotations

import argparse
import json

from runed.bootstrap.shelf import Held, held, served_sha256
from runed.cli.boundary import ExitCode, tell
from runed.cli.catalog import megabytes, open_catalog, origin_of, read_file
from runed.cli.engines import comparison_of, engine_of, reason_for
from runed.domain.engines import ONNX_RUNTIME
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames
from runed.onnx_files import is_onnx
from runed.paths import Paths
from runed.settings import Settings, load_settings

_UNKNOWN = "unknown"

DESCRIPTION = """\
List the models that requests may name: those of the manifest, and your own. A
model that is not installed is fetched by `runed pull NAME`. The default model
is fetched by the first text, too. No daemon is started or asked. What is
unknown is told by the file of the model, or by its engine on another machine.
"""

EPILOG = """\
examples:
  runed models
  runed models --json | jq -r '.[] | select(.installed).name'

A name without its variant, as in "qwen3-embedding-0.6b", means the first
variant of its family in the list.

with --json, standard output is a JSON list with one object a model:
  name, aliases, kind ("embedding" or "rerank"), default (whether requests that
  name no model mean it), installed, path, size and partial (bytes; 0 if they
  are not known), licence, dimensions, context (0 if they are not known),
  origin, engine ("llama-server" or "ONNX Runtime": that of the next start)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="for programs: a JSON list on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Print the models."""
    settings = load_settings()
    paths = Paths(settings.home)
    catalog = open_catalog(settings, paths)
    if arguments.json:
        models = [as_dict(settings, paths, catalog, spec) for spec in catalog.specs.values()]
        print(json.dumps(models, indent=2, ensure_ascii=False))
        return ExitCode.OK
    rows: list[tuple[str, ...]] = [("name", "state", "size", "vectors", "context", "licence")]
    rows += [_row(settings, paths, catalog, spec) for spec in catalog.specs.values()]
    engines = [next_engine(settings, paths, spec)[0] for spec in catalog.specs.values()]
    if ONNX_RUNTIME in engines:  # without that, it is a column of one word
        rows = [(*row, engine) for row, engine in zip(rows, ["engine", *engines], strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return ExitCode.OK


def as_dict(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec) -> dict[str, object]:
    """Return the facts about a model, for programs."""
    there = held(paths, spec)
    dimensions, context = _size_of_vectors(settings, paths, spec, there)
    return {
        "name": spec.name,
        "aliases": catalog.aliases_of(spec),
        "kind": spec.kind.value,
        "default": spec is catalog.default,
        "installed": there.size is not None or spec.remote is not None,
        "path": "" if spec.remote else str(there.path),
        "size": there.size or spec.size,
        "partial": there.partial,
        "licence": spec.licence,
        "dimensions": dimensions,
        "context": context,
        "origin": origin_of(settings, spec),
        "engine": next_engine(settings, paths, spec)[0],
    }


def next_engine(settings: Settings, paths: Paths, spec: ModelSpec) -> tuple[str, str]:
    """Return the engine that the next start of a model uses, and why, as far as that is known without one."""
    comparison = comparison_of(paths, served_sha256(settings, paths, spec))
    engine = engine_of(settings, spec, comparison)
    return engine, reason_for(engine, comparison) if settings.engine == "auto" else ""


def _row(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec) -> tuple[str, ...]:
    there = held(paths, spec)
    size = there.size or spec.size
    state = "remote" if spec.remote else "your file" if spec.path else "installed"
    if there.size is None and not spec.remote:
        state = "file is missing" if spec.path else "half fetched" if there.partial else "not installed"
    dimensions, context = _size_of_vectors(settings, paths, spec, there)
    return (
        f"{spec.name} (default)" if spec is catalog.default else spec.name,
        state,
        megabytes(size) if size else _UNKNOWN,
        "reranker" if spec.kind is ModelKind.RERANK else f"{dimensions:,}" if dimensions else _UNKNOWN,
        f"{context:,}" if context else _UNKNOWN,
        spec.licence or _UNKNOWN,
    )


def _size_of_vectors(settings: Settings, paths: Paths, spec: ModelSpec, there: Held) -> tuple[int, int]:
    """Return the dimensions of a model and its context in tokens; 0 for what is not known.

    A file is asked if nothing else tells. An ONNX file that was never served is not asked: it would take seconds.
    """
    known = spec.dimensions, spec.context
    if (
        (spec.context and (spec.dimensions or spec.kind is ModelKind.RERANK))
        or there.size is None
        or (is_onnx(there.path) and not served_sha256(settings, paths, spec))
    ):
        return known
    info, _ = read_file(paths, spec)
    if info is None:
        return known
    dimensions = 0 if spec.kind is ModelKind.RERANK else info.dim
    return spec.dimensions or dimensions, spec.context or info.max_tokens
