"""A systemd that is not there, or that could not load a unit. A small program stands in for `systemctl`."""

from __future__ import annotations

from pathlib import Path

import pytest

from runed.errors import LifecycleError
from runed.lifecycle import installing
from runed.lifecycle.installing import install_service, remove_service
from runed.lifecycle.service import Systemd
from runed.settings import load_settings

STOP_FAILS = """#!/bin/sh
case "$*" in
*" stop "*) echo "Failed to stop: Unit not loaded." >&2; exit 5 ;;
*"Property=ActiveState"* | *"property=ActiveState"*) echo ActiveState={state}; echo SubState=failed ;;
esac
"""


def systemctl(user: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (user / "systemctl").write_text(script)
    (user / "systemctl").chmod(0o700)
    monkeypatch.setenv("PATH", f"{user}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.mark.parametrize(
    ("runs", "words"),
    [(False, "systemd does not run here, as in a container; let what starts"), (True, "log in at the machine or by ssh")],
)
def test_a_manager_that_cannot_be_asked_is_told_with_the_remedy(
    runs: bool,  # noqa: FBT001 # a case
    words: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    systemctl(tmp_path, monkeypatch, "#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(installing, "_SYSTEMD_RUNS", home if runs else home / "missing")
    with pytest.raises(LifecycleError, match=words):
        install_service(load_settings(home=home))


@pytest.mark.parametrize(("state", "ends"), [("inactive", True), ("active", False)])
def test_a_unit_that_could_not_be_loaded_is_removed(
    state: str,
    ends: bool,  # noqa: FBT001 # a case
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    systemctl(tmp_path, monkeypatch, STOP_FAILS.replace("{state}", state))
    service = Systemd(home)
    service.files[0].parent.mkdir(parents=True)
    service.files[0].write_text("garbage")
    if ends:
        assert remove_service(load_settings(home=home)) is not None
    else:
        with pytest.raises(LifecycleError, match="Unit not loaded"):
            remove_service(load_settings(home=home))
    assert not service.files[0].exists()
