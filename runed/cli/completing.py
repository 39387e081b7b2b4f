"""The words that a shell offers for an argument, besides those that argparse knows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def completes(action: argparse.Action, words: Callable[[], Iterable[str]]) -> None:
    """Let a shell offer words for an argument. `words` is called when a user presses Tab there."""
    vars(action)["completer"] = lambda **_context: words()  # as argcomplete wants it


def completes_models(action: argparse.Action) -> None:
    """Let a shell offer the names of models for an argument."""
    completes(action, _models)


def _models() -> list[str]:
    """Return the names of all families and models, and their aliases; none if they are not known without a network."""
    # 200 ms that a command without Tab does not spend.
    from runed.bootstrap.manifest import manifest_source  # noqa: PLC0415
    from runed.cli.catalog import open_catalog  # noqa: PLC0415
    from runed.errors import RunedError  # noqa: PLC0415
    from runed.paths import Paths  # noqa: PLC0415
    from runed.settings import load_settings  # noqa: PLC0415

    try:
        settings = load_settings()
        if manifest_source(settings).is_url:
            return []
        catalog = open_catalog(settings, Paths(settings.home))
    except (RunedError, OSError):
        return []
    return list(
        dict.fromkeys(name for spec in catalog.specs.values() for name in (spec.family, spec.name, *catalog.aliases_of(spec)))
    )
