"""`runed pull`: fetch a model ahead of its first text."""

from __future__ import annotations

import argparse
from dataclasses import replace

from runed.bootstrap.hub import is_hub_file
from runed.bootstrap.shelf import add_entry, held, hub_spec, remove_file
from runed.cli.boundary import ExitCode, complain, tell, tell_json
from runed.cli.catalog import kind_of, megabytes, open_catalog, tell_of_daemon, tell_of_use
from runed.cli.completing import completes_models
from runed.cli.install import install_shown, open_home
from runed.cli.options import add_json
from runed.cli.progress import ProgressDisplay
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames
from runed.errors import ModelFileError
from runed.own_models import Entry
from runed.paths import Paths
from runed.settings import Settings

DESCRIPTION = """\
Fetch a model, and the engine if it is missing, and verify them. The daemon need
not run, and a daemon that runs is not disturbed. An interrupted download is
resumed by the same command.

NAME is a model of `runed models`, or a GGUF of the model hub:
hf:owner/repository/file.gguf@revision. The hash of such a file is recorded in
config.json, with its name, at this first use. Every later download must have
it.
"""

EPILOG = """\
HF_ENDPOINT names a mirror of the hub. HF_TOKEN is a token for files that not
everybody may read; it is sent to the hub alone.

examples:
  runed pull bge-m3
  runed pull hf:owner/repository/model.Q8_0.gguf@main --name mine

with --json, standard output is one JSON object: name, path, size (in bytes),
sha256, default (whether requests that name no model mean it)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    completes_models(
        parser.add_argument("model", metavar="NAME", help="a model of the list, or hf:owner/repository/file.gguf@revision")
    )
    add_json(parser)
    parser.add_argument("--name", default="", help="what to call a file of the hub (default: as the file, in small letters)")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Fetch the model, and print where it is."""
    from_hub = is_hub_file(arguments.model)
    if arguments.name and not from_hub:
        arguments.usage_error("--name is for a file of the hub; other models have names already")
    settings, paths = open_home("pull.log")
    catalog = open_catalog(settings, paths)
    spec = hub_spec(catalog, arguments.model, arguments.name) if from_hub else catalog.find(arguments.model)
    missing = held(paths, spec).size is None
    say = complain if arguments.json else tell
    if missing and spec.notice:
        say(f"{spec.name} is under the licence {spec.notice}; whoever uses the model accepts it")
    elif missing and from_hub:
        say(f"the page of its repository tells the licence of {spec.source}")
    with ProgressDisplay(keep=True) as display:
        installation = install_shown(settings, paths, display, spec)
    for warning in installation.warnings:
        complain(warning)
    if from_hub and not spec.sha256:
        spec = _record(settings, paths, catalog, spec, installation.model_sha256)
        if not arguments.json:
            tell(f"recorded  {installation.model_sha256} as its SHA-256; every later download must have it")
            tell_of_daemon(paths, spec.name)
    if arguments.json:
        place, default = installation.model, spec is catalog.default
        facts = {"name": spec.name, "path": str(place), "size": place.stat().st_size, "sha256": installation.model_sha256}
        tell_json(facts | {"default": default})
        return ExitCode.OK
    tell(f"model     {installation.model}, {megabytes(installation.model.stat().st_size)}")
    tell(f"sha256    {installation.model_sha256}")
    if spec is catalog.default:
        tell("use       it is the default model")
    else:
        tell_of_use(spec.name, spec.kind.value)
    return ExitCode.OK


def _record(settings: Settings, paths: Paths, catalog: ModelNames, spec: ModelSpec, sha256: str) -> ModelSpec:
    """Check a file of the hub, and write its entry. A file that cannot be served is removed again. Return what is known now."""
    from runed.backends.model_info import read_model_info  # noqa: PLC0415 # NumPy, which `runed pull --help` does not need

    try:
        kind = kind_of(read_model_info(held(paths, spec).path))
    except ModelFileError:
        remove_file(settings, paths, spec)
        raise
    add_entry(
        settings,
        paths,
        catalog,
        spec.name,
        Entry(source=spec.source, sha256=sha256, kind=None if kind == "embedding" else kind),
    )
    return replace(spec, kind=ModelKind(kind))
