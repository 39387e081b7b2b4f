"""All checks, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from runed.doctor import engine, home, logs, machine
from runed.doctor.finding import Finding, Patient, failed, warning
from runed.doctor.network import proxies, servers
from runed.errors import RunedError

Check: TypeAlias = Callable[[Patient], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    machine.proc,
    machine.wsl,
    machine.file_system,
    machine.disk,
    machine.memory,
    machine.limits,
    machine.clock,
    home.home,
    home.sockets,
    home.pids,
    home.token,
    home.port,
    home.installations,
    engine.engine,
    engine.libraries,
    engine.processor,
    engine.devices,
    engine.hashes,
    proxies,
    servers,
    home.daemon,
    logs.last_errors,
)


def examine(patient: Patient, *, network: bool = True) -> Iterator[Finding]:
    """Run all checks, one after another. A check that fails itself is told as a finding.

    Args:
        patient: What is examined.
        network: Whether to ask the servers of downloads.
    """
    for check in CHECKS:
        if check is servers and not network:
            continue
        try:
            yield from check(patient)
        except RunedError as error:
            yield failed(check.__name__.replace("_", " "), error.message, f"see `runed explain {error.reason}`")
        except Exception as error:  # noqa: BLE001 # one check that cannot be made must not hide the others
            name = check.__name__.replace("_", " ")
            yield warning(
                name, f"it could not be checked: {type(error).__name__}: {error}", "report it with `runed doctor --bundle`"
            )
