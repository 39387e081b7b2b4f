"""`runed rm`: remove a model."""

from __future__ import annotations

import argparse

from runed.backends.onnx.graph_folder import remove_graphs
from runed.bootstrap.shelf import remove, served_sha256
from runed.cli.boundary import ExitCode, tell, tell_json
from runed.cli.catalog import megabytes, open_catalog
from runed.cli.completing import completes_models
from runed.cli.install import open_home
from runed.cli.options import add_json
from runed.cli.waiting import ANSWER_SECONDS
from runed.client.look import models_in_use
from runed.domain.model_spec import ModelSpec
from runed.errors import BootstrapError, DaemonUnavailableError, DeadlineExceededError, UnimplementedError
from runed.lifecycle.presence import Condition, observe
from runed.paths import Paths

DESCRIPTION = """\
Remove a model: the file that runed has fetched, the graph that was made of it
for ONNX Runtime, and for a model of your own its entry in config.json. A file
of your own stays where it is. A model that the daemon has loaded is not
removed.
"""

EPILOG = """\
examples:
  runed rm bge-m3

with --json, standard output is one JSON object: removed (its name), freed (in
bytes), and kept, the path of a file of your own
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    completes_models(parser.add_argument("name", metavar="NAME", help="a name or an alias of `runed models`"))
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove the model, and print what became free."""
    settings, paths = open_home()
    catalog = open_catalog(settings, paths)
    spec = catalog.find(arguments.name)
    _refuse_loaded(paths, spec)
    sha256 = served_sha256(settings, paths, spec)
    freed = remove(settings, paths, catalog, spec)
    if sha256:
        freed += remove_graphs(paths, sha256)
    if arguments.json:
        tell_json({"removed": spec.name, "freed": freed, "kept": str(spec.path or "")})
        return ExitCode.OK
    kept = f"; the file {spec.path} stays" if spec.path else ""
    tell(f"removed {spec.name}{f', {megabytes(freed)}' if freed else ''}{kept}")
    if spec is catalog.default:
        tell("it is the default model: the next start of the daemon fetches it again; `runed use NAME` chooses another one")
    return ExitCode.OK


def _refuse_loaded(paths: Paths, spec: ModelSpec) -> None:
    """Refuse to remove a model that a daemon uses, or may use: its engine reads the file again after a pause or a crash."""
    try:
        used = models_in_use(paths.home, timeout=ANSWER_SECONDS)
    except UnimplementedError:
        raise BootstrapError("an older daemon runs, which does not tell its models; end it by `runed stop`") from None
    except (DaemonUnavailableError, DeadlineExceededError):
        presence = observe(paths)
        if presence.condition is Condition.ABSENT:
            return
        raise BootstrapError(f"{presence}, so nobody knows whether it uses {spec.name}") from None
    if spec.name.lower() in used:
        raise BootstrapError(f"the daemon uses {spec.name}; end it by `runed stop`, and try again")
