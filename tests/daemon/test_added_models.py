"""Models that are added to `config.json` are known to the daemon that runs, and clients tell of no difference."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runed.daemon.added_models import AddedModels
from runed.errors import RunedError
from runed.lifecycle.asking import Asker
from runed.lifecycle.marks import differences
from runed.lifecycle.record import DaemonRecord
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from runed.settings import load_settings
from tests.support import clean_environment


def write(home: Path, **values: object) -> None:
    (home / "config.json").write_text(json.dumps({"models": {"mine": {"path": "/m.gguf"}}} | values))


def test_what_is_added_is_taken_and_nothing_else(home: Path) -> None:
    write(home)
    settings = load_settings(home=home)
    added = AddedModels(settings)
    before = added.state()
    assert added.state() == before
    write(home, aliases={"small": "mine"})
    assert added.state() != before
    more = added.add_to(settings)
    assert more is not None
    assert (more.aliases["small"], more.models) == ("mine", settings.models)
    assert added.add_to(more) is None
    write(home, models={"mine": {"path": "/m.gguf"}, "other": {"path": "/o.gguf"}}, profile="memory")
    found = added.add_to(settings)
    assert found is not None
    assert set(found.models) == {"mine", "other"}
    assert found.profile == "balanced"


@pytest.mark.parametrize(
    "models", [{"other": {"path": "/o.gguf"}}, {"mine": {"path": "/n.gguf"}, "other": {"path": "/o.gguf"}}]
)
def test_a_model_that_is_changed_or_removed_waits_for_the_next_daemon(models: dict[str, Any], home: Path) -> None:
    write(home)
    settings = load_settings(home=home)
    write(home, models=models)
    assert AddedModels(settings).add_to(settings) is None


def test_a_running_daemon_finds_a_model_that_was_added(home: Path) -> None:
    paths = Paths(home)
    environment = clean_environment(RUNED_HOME=str(home), RUNED_MODEL="/missing.gguf")
    subprocess.run([sys.executable, "-m", "runed", "ensure"], env=environment, capture_output=True, timeout=120, check=True)
    try:
        with Asker(paths, timeout=60) as asker, pytest.raises(RunedError, match="there is no model 'mine'"):
            asker.health("mine")
        (home / "config.json").write_text('{"models": 7')
        with Asker(paths, timeout=60) as asker, pytest.raises(RunedError, match="there is no model 'mine'"):
            asker.health("mine")
        write(home, aliases={"small": "mine"})
        with Asker(paths, timeout=60) as asker:
            asker.health("mine")
            asker.health("SMALL")
        # Each of several calls that come while the file is read waits for it. All but the first one were refused.
        models = {"mine": {"path": "/m.gguf"}} | {f"other-{number}": {"path": "/o.gguf"} for number in range(1000)}
        write(home, models=models, aliases={"small": "mine"})

        def ask(number: int) -> None:
            with Asker(paths, timeout=60) as asker:
                asker.health(f"other-{number}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        record = DaemonRecord.read(paths.daemon_record)
        assert record is not None
        assert record.settings is not None
        assert differences(load_settings(home=home, environ={"RUNED_MODEL": "/missing.gguf"}), record.settings) == ()
    finally:
        stop_daemon(paths)
