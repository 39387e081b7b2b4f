"""`runed use`: choose the default model."""

from __future__ import annotations

import argparse

from runed.bootstrap.shelf import held, use
from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.catalog import megabytes, open_catalog, tell_of_daemon
from runed.cli.install import open_home
from runed.settings import load_settings

DESCRIPTION = """\
Choose the model of requests that name none: write default_model into
config.json, and leave all else there as it is, but for model and model_variant,
which would name another one. The daemon takes it at its next start.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.add_argument("name", metavar="NAME", help="a name or an alias of `runed models`")


def run(arguments: argparse.Namespace) -> int:
    """Write the setting, and print what follows."""
    settings, paths = open_home()
    spec = open_catalog(settings, paths).find(arguments.name)
    for key in use(settings, paths, spec):
        tell(f"removed {key} from config.json, which named another model")
    tell(f"the default model is {spec.name}")
    there = held(paths, spec)
    if there.size is None and not spec.path and not spec.remote:
        size = f" ({megabytes(spec.size)})" if spec.size else ""
        tell(f"it is not installed: the next start of the daemon fetches it{size}, or `runed pull {spec.name}` does it now")
    now = load_settings()
    if now.default_model != spec.name:
        complain(
            "the environment names another model: unset RUNED_BACKEND, RUNED_MODEL, RUNED_MODEL_VARIANT and RUNED_DEFAULT_MODEL"
        )
    tell_of_daemon(paths)
    return ExitCode.OK
