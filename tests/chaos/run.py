"""A run of chaos: clients call while one fault after the other is made, and everything is checked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import psutil

from tests.chaos.clients import ChaosClient, DriverClient, GrpcClient, JobClient, Probe, ProgramClient
from tests.chaos.faults import FAULTS, Fault, Scene
from tests.chaos.ground import LEAST_COSINE, Ground
from tests.chaos.report import Report
from tests.conformance.drivers import Drivers

HOPELESS_SECONDS = 90.0
"""Seconds after which a home that does not heal is a violation, however busy the machine is."""

_ONE_SECONDS = 20.0
"""Seconds for which two daemons, or two engines, may live: one of the two is ending."""

_PAUSE = 0.5
"""Longest pause between two faults, in seconds."""


def run_chaos(
    seed: int, seconds: float, drivers: Drivers, *, faults: Sequence[Fault] = FAULTS, judge_times: bool = True
) -> Report:
    """Run.

    Args:
        seed: Decides the order of the faults, and what they and the clients do.
        seconds: The time for faults. The start and the end come on top.
        drivers: The compiled drivers.
        faults: The faults. Each comes once before any comes again.
        judge_times: Whether a healing beyond its bar is a violation. Otherwise it is only told, up to `HOPELESS_SECONDS`.

    Returns:
        What was seen.
    """
    report = Report(seed, judge_times)
    with ExitStack() as stack:
        ground = stack.enter_context(Ground())
        if (cosine := ground.learn()) < LEAST_COSINE:
            report.violated(f"the vectors of a quiet daemon have the cosine {cosine:.6f} with those of other software")
        python = drivers.command("python", "connect", None)
        probe = Probe(python, ground)
        stack.callback(probe.close)
        jobs = JobClient(ground, report)
        on_disk = {"RUNED_CACHE": "disk"}
        programs: list[ProgramClient] = [
            DriverClient("python", python, ground, report),
            DriverClient("python, cache on disk", python, ground, report, on_disk),
            DriverClient("go", drivers.command("go", "connect", None), ground, report),
            DriverClient(
                "go by gRPC, no cache", drivers.command("go", "grpc", None), ground, report, {"RUNED_CACHE_SIZE": "0"}
            ),
            jobs,
        ]
        clients: list[ChaosClient] = [*programs, GrpcClient(ground, report)]
        for client in clients:
            client.start()
        stack.callback(_stop, clients)
        scene = Scene(ground, programs, Random(seed))
        _break(scene, faults, probe, report, clients, seconds)
        _stop(clients)
        jobs.finish(HOPELESS_SECONDS)
        probe.close()
        _check_end(ground, report)
    return report


def _deal(faults: Sequence[Fault], random: Random) -> Iterator[Fault]:
    while True:
        yield from random.sample(faults, len(faults))


def _break(  # noqa: PLR0917 # the parts of a run
    scene: Scene, faults: Sequence[Fault], probe: Probe, report: Report, clients: list[ChaosClient], seconds: float
) -> None:
    """Make faults until the time is over, and wait after each until the daemon serves again."""
    until = time.monotonic() + seconds
    for fault in _deal(faults, scene.random):
        if time.monotonic() >= until:
            return
        report.say(fault.name)
        fault.act(scene)
        _heal(fault, probe, report)
        _check(scene.ground, report, fault, clients)
        scene.pause(0.0, _PAUSE)


def _heal(fault: Fault, probe: Probe, report: Report) -> None:
    """Wait until a new text gets its vector."""
    began = time.monotonic()
    reasons: list[str] = []
    while reason := probe.embed(HOPELESS_SECONDS):
        reasons.append(reason)
        if time.monotonic() - began > HOPELESS_SECONDS:
            report.violated(f"{fault.name}: not healed after {HOPELESS_SECONDS:g} s; the last reason is {reason}")
            return
        time.sleep(0.05)
    took = time.monotonic() - began
    report.healed[fault.name].append(took)
    if took > fault.bar:
        text = f"{fault.name}: healed in {took:.1f} s, more than {fault.bar:g} s" + (
            f"; before: {reasons[-1]}" if reasons else ""
        )
        report.late.append(text)
        if report.judges_times:
            report.violated(text)


def _check(ground: Ground, report: Report, fault: Fault, clients: list[ChaosClient]) -> None:
    """Check for doubles, for the bystander, and for calls that never end."""
    if ground.bystander_died():
        report.violated(f"{fault.name}: a process that has nothing to do with this home was ended")
    for what, processes in (("daemons", ground.daemons), ("engines", ground.engines)):
        until = time.monotonic() + _ONE_SECONDS
        while len(found := processes()) > 1:
            if time.monotonic() > until:
                told = ", ".join(_told(process) for process in found)
                report.violated(f"{fault.name}: {len(found)} {what} after {_ONE_SECONDS:g} s: {told}")
                break
            time.sleep(0.1)
    for client in clients:
        if client.overdue():
            report.violated(f"{fault.name}: {client.name}: a call goes on long after its time limit")
            client.since = None


def _told(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"pid {process.pid} {process.status()} for {time.time() - process.create_time():.0f} s"
    return "gone"


def _stop(clients: list[ChaosClient]) -> None:
    for client in clients:
        client.stop()
    for client in clients:
        client.join(60)


def _check_end(ground: Ground, report: Report) -> None:
    """Stop the daemon, and check that nothing is left."""
    stopped = ground.run("stop")
    if stopped.returncode:
        report.violated(f"runed stop at the end: {stopped.stderr.strip()}")
    until = time.monotonic() + 10.0
    while (left := ground.leftovers()) and time.monotonic() < until:
        time.sleep(0.1)
    for what in left:
        report.violated(f"left over: {what}")


def build_drivers(folder: Path) -> Drivers:
    """Compile the drivers that chaos uses."""
    folder.mkdir(parents=True, exist_ok=True)
    drivers = Drivers(folder.absolute())
    drivers.build_go()
    return drivers
