"""`runed show`: tell everything about a model."""

from __future__ import annotations

import argparse
import json

from runed.bootstrap.shelf import held, recorded_sha256
from runed.cli.boundary import ExitCode, tell
from runed.cli.catalog import megabytes, open_catalog, origin_of, pooling_of, quoted, read_file
from runed.cli.completing import completes_models
from runed.cli.models import as_dict, next_engine
from runed.domain.model import ModelInfo, ModelTraits
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames
from runed.domain.traits import traits_of
from runed.paths import Paths
from runed.settings import Settings, load_settings

DESCRIPTION = """\
Tell everything about a model: its names, its file and hash, its licence, the
dimensions of its vectors, and the prompts that the roles of a text put in front
of it. No daemon is started or asked.
"""

EPILOG = """\
examples:
  runed show bge-m3
  runed show bge-m3 --json | jq -r .sha256

with --json, standard output is the object of `runed models --json`, and:
  sha256               "" if it is not known yet
  pooling              "" if only the file tells
  query_prompt, document_prompt, default_instruction, min_dimensions
  problem              why its file cannot be used; "" if it can or is missing
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    completes_models(parser.add_argument("name", metavar="NAME", help="a name or an alias of `runed models`"))
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts about a model."""
    settings = load_settings()
    paths = Paths(settings.home)
    catalog = open_catalog(settings, paths)
    spec = catalog.find(arguments.name)
    info, problem = read_file(paths, spec)
    traits = traits_of(info, spec.traits, spec.own) if info else spec.own.over(spec.traits or ModelTraits())
    if arguments.json:
        more = {
            "sha256": recorded_sha256(settings, paths, spec),
            "pooling": info.pooling if info else spec.pooling,
            "dimensions": info.dim if info else spec.dimensions,
            "query_prompt": traits.query_prompt,
            "document_prompt": traits.document_prompt,
            "default_instruction": traits.default_instruction,
            "min_dimensions": traits.min_dimensions,
            "problem": problem,
        }
        print(json.dumps(as_dict(settings, paths, catalog, spec) | more, indent=2, ensure_ascii=False))
    else:
        lines = _lines(settings, paths, catalog, spec) | {"problem": problem}
        if spec.kind is ModelKind.EMBEDDING:
            lines |= _vectors(spec, info, traits)
        elif info:
            lines |= {"context": f"{info.max_tokens:,} tokens of query and document together"}
        tell("\n".join(f"{name:<9} {value}" for name, value in lines.items() if value))
    return ExitCode.OK


def _lines(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec) -> dict[str, str]:
    there = held(paths, spec)
    licence = f"{spec.licence}, {spec.licence_url}" if spec.licence_url else spec.licence
    once = ", found in one place only" if spec.hash_sources == 1 else ""
    sha256 = recorded_sha256(settings, paths, spec)
    lines = {
        "name": f"{spec.name}, the default model" if spec is catalog.default else spec.name,
        "aliases": ", ".join(catalog.aliases_of(spec)),
        "kind": "gives vectors" if spec.kind is ModelKind.EMBEDDING else "reranks documents",
        "origin": origin_of(settings, spec),
        "file": f"{there.path}, {megabytes(there.size)}" if there.size else "",
        "sha256": f"{sha256}{once}" if sha256 else "",
        "licence": licence or "not known",
        "context": f"{spec.context:,} tokens" if spec.context else "",
        "engine": ", ".join(filter(None, next_engine(settings, paths, spec))) if there.size else "",
        "needs": f"llama-server b{spec.engine_build} or newer" if spec.engine_build else "",
        "sleeps": f"after {spec.keep_alive:,.0f} s without a text" if spec.keep_alive else "",
    }
    if spec.remote is not None:
        lines["file"] = "none here"
    elif there.size is None and spec.path:
        lines["file"] = f"{there.path}, which is missing"
    elif there.size is None:
        size = f" ({megabytes(spec.size)})" if spec.size else ""
        half = f"; {megabytes(there.partial)} of it are here" if there.partial else ""
        lines["file"] = f"not installed{half}; `runed pull {spec.name}` fetches it{size}"
    return lines


def _vectors(spec: ModelSpec, info: ModelInfo | None, traits: ModelTraits) -> dict[str, str]:
    dim = info.dim if info else spec.dimensions
    least = traits.min_dimensions
    shorter = f", or fewer down to {least}" if least and least < dim else ""
    lines = {
        "vectors": f"{dim:,} dimensions{shorter}" if dim else "",
        "pooling": pooling_of(info) if info else spec.pooling,
        "query": quoted(traits.query_prompt),
        "document": quoted(traits.document_prompt),
        "default": traits.default_instruction and f"the instruction {traits.default_instruction!r}",
    }
    if traits.prompts_unknown:
        lines["query"] = "none, since the family of the model is not known; see `runed add --help`"
    return lines
