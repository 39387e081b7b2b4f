"""`runed use`: choose the default model."""

from __future__ import annotations

import argparse

from runed.bootstrap.shelf import held, use
from runed.cli.boundary import ExitCode, complain, tell, tell_json
from runed.cli.catalog import megabytes, open_catalog, tell_of_daemon
from runed.cli.completing import completes_models
from runed.cli.install import open_home
from runed.cli.options import add_json
from runed.settings import SETTINGS, load_settings

DESCRIPTION = """\
Choose the model of requests that name none: write default_model into
config.json, and leave all else there as it is, but for model and model_variant,
which would name another one. The file of model stays there, as a model of its
own. The daemon takes the new default model at its next start.
"""

EPILOG = """\
examples:
  runed use bge-m3
  runed use mine && runed stop     the next client starts a daemon with it

with --json, standard output is one JSON object: default_model, installed, and
removed, the keys of config.json that named another model
"""

_OTHERS = ("backend", "model", "model_variant", "default_model")
"""The settings that can name another default model."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    completes_models(parser.add_argument("name", metavar="NAME", help="a name or an alias of `runed models`"))
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the setting, and print what follows."""
    settings, paths = open_home()
    catalog = open_catalog(settings, paths)
    spec = catalog.find(arguments.name)
    removed, kept = use(settings, paths, catalog, spec)
    installed = held(paths, spec).size is not None or spec.path is not None or spec.remote is not None
    if arguments.json:
        tell_json({"default_model": spec.name, "installed": installed, "removed": removed})
    else:
        for key in removed:
            tell(f"removed {key} from config.json, which named another model")
        if kept and kept != spec.name:
            tell(f"that model stays as {kept}: `runed use {kept}` goes back to it")
        tell(f"the default model is {spec.name}")
    if not (installed or arguments.json):
        size = f" ({megabytes(spec.size)})" if spec.size else ""
        tell(f"it is not installed: the next start of the daemon fetches it{size}, or `runed pull {spec.name}` does it now")
    now = load_settings()
    if now.default_model != spec.name:
        variables = [SETTINGS[key].variable for key in _OTHERS if now.written.get(key, ("", ""))[1] == "environment"]
        if variables:
            complain(f"the environment names another model: unset {' and '.join(variables)}")
        else:
            complain("backend in config.json goes before default_model: remove it there")
    if not arguments.json:
        tell_of_daemon(paths)
    return ExitCode.OK
