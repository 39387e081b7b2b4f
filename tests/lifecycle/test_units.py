"""The units please systemd itself, and the agent keeps the rules of property lists, for homes with any name."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from runed.errors import SettingsError
from runed.lifecycle.units import (
    Plan,
    agent,
    command_of_agent,
    command_of_unit,
    environment_file,
    service_unit,
    socket_unit,
)
from tests.support import clean_environment

NAMES = ["runed", """a b%h$HOME"'\\é*[x]?"""]


FORMS = {"integer": r"[+-]?\d+", "true": "", "false": "", "string": ".*"}
"""The text of the elements of a property list, of those that an agent has."""


def plan_for(home: Path, *, http: tuple[str, int] | None = None) -> Plan:
    return Plan(
        name="runed-1234",
        home=home,
        socket=home / "embedding.sock",
        http=http,
        command=[sys.executable, "-P", "-m", "runed"],
        log=home / "logs" / "daemon.log",
        environment={"PATH": "/bin", "RUNED_MODEL": """a "b" `c` $d \\e 'f' %h"""},
        environment_file=home / "service.env",
    )


@pytest.mark.parametrize("name", ["a\nExecStart=/bin/false", "a\r", "\x1b[2J", "a\tb"])
def test_a_path_that_would_be_another_line_of_a_unit_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="has a line end or another control character, which no path of a service can have"):
        plan_for(Path("/nowhere") / name)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("http", [None, ("127.0.0.1", 8321), ("::1", 8321), ("127.0.0.1", 0)])
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_to_complain_about(name: str, http: tuple[str, int] | None, tmp_path: Path) -> None:
    plan = plan_for(Path("/nowhere") / name, http=http)
    files = [tmp_path / "runed-1234.socket", tmp_path / "runed-1234.service"]
    files[0].write_text(socket_unit(plan))
    files[1].write_text(service_unit(plan))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *files],
        env=clean_environment(XDG_RUNTIME_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # It loads the other units of the machine, too, which may have faults.
    assert "runed" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_socket_unit_has_the_port_that_the_settings_name(tmp_path: Path) -> None:
    def ports(http: tuple[str, int] | None) -> list[str]:
        return re.findall(r"^ListenStream=(.*)$", socket_unit(plan_for(tmp_path, http=http)), re.MULTILINE)[1:]

    assert ports(("127.0.0.1", 8321)) == ["127.0.0.1:8321"]
    assert ports(("::1", 8321)) == ["[::1]:8321"]
    assert ports(("127.0.0.1", 0)) == ports(None) == [], "the daemon chooses one by itself"


def test_program_of_a_unit_is_read_back(tmp_path: Path) -> None:
    plan = plan_for(tmp_path / NAMES[1])
    assert command_of_unit(service_unit(plan)) == plan.command
    assert command_of_agent(agent(plan, "a")) == plan.command
    for broken in ("", "X-RunedCommand=", "X-RunedCommand=[1]", "X-RunedCommand={}", "ExecStart=runed"):
        assert command_of_unit(broken) == []
    for data in (
        b"",
        b"<plist",
        b"bplist00",
        plistlib.dumps({}),
        plistlib.dumps({"ProgramArguments": ["a"]}),
        plistlib.dumps([]),
    ):
        assert command_of_agent(data) == []


def test_environment_is_read_by_a_shell_as_it_was(tmp_path: Path) -> None:
    """systemd reads double quotes as a shell does, but for commands and variables, which are escaped."""
    variables = plan_for(tmp_path).environment
    (tmp_path / "env").write_text(environment_file(variables))
    done = subprocess.run(
        ["sh", "-c", '. "$1"; printf %s "$RUNED_MODEL"', "sh", tmp_path / "env"], capture_output=True, text=True, check=True
    )
    assert done.stdout == variables["RUNED_MODEL"]


@pytest.mark.parametrize("name", NAMES)
def test_agent_keeps_the_rules_of_property_lists(name: str, tmp_path: Path) -> None:
    plan = plan_for(tmp_path / name)
    data = agent(plan, "dev.runed.daemon")
    assert b'<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN"' in data
    root = ET.fromstring(data)
    assert (root.tag, root.attrib, len(root)) == ("plist", {"version": "1.0"}, 1)
    assert list(faults(root[0])) == []
    found = plistlib.loads(data)
    assert found["ProgramArguments"] == [*plan.command, "serve", "--log-file", str(plan.log)]
    assert found["EnvironmentVariables"] == {**plan.environment, "RUNED_HOME": str(plan.home)}
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["Label"] == "dev.runed.daemon"


def faults(element: ET.Element) -> Iterator[str]:
    """Yield what `plutil -lint` would complain about: the rules of Apple's PropertyList-1.0.dtd, and the forms of values."""
    children, text = list(element), element.text or ""
    if element.tag == "dict":
        keys = children[::2]
        if len(children) % 2 or any(key.tag != "key" or len(key) for key in keys):
            yield "a dictionary is not made of keys with values"
        if len({key.text for key in keys}) != len(keys):
            yield "a key comes twice"
        children = children[1::2]
    elif element.tag in FORMS:
        if children or re.fullmatch(FORMS[element.tag], text, re.DOTALL) is None:
            yield f"{element.tag} cannot hold {text!r}"
    elif element.tag != "array":
        yield f"unknown element {element.tag}"
    for child in children:
        yield from faults(child)


def test_faults_of_property_lists_are_found() -> None:
    for text in (
        "<dict><string>a</string></dict>",
        "<dict><key>a</key></dict>",
        "<dict><key>a</key><true/><key>a</key><true/></dict>",
        "<array><integer>x</integer></array>",
        "<array><true>1</true></array>",
        "<array><number/></array>",
    ):
        assert list(faults(ET.fromstring(text))), text
