"""Decides which engine serves a model: `llama-server`, or ONNX Runtime where that is faster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from runed.backends.base import BackendStatus
from runed.bootstrap import (
    DeviceFailures,
    EngineBuilds,
    EngineComparison,
    Installation,
    Phase,
    Progress,
    keep_comparison,
    read_comparison,
)
from runed.daemon.seats import Seat, Seats
from runed.domain.device import Device
from runed.domain.engines import LLAMA_SERVER, ONNX_RUNTIME
from runed.domain.model_spec import ModelKind
from runed.errors import BackendError, BackendFaultError, ModelFileError, ModelTooLargeError, RunedError, SettingsError
from runed.log import get_logger
from runed.onnx_files import is_onnx
from runed.paths import Paths
from runed.settings import ONNX, Settings

if TYPE_CHECKING:
    from runed.backends.comparing import Trial
    from runed.domain.model import ModelInfo

_SECONDS = 1.0
"""Seconds for which each engine works in each round of a comparison."""

ROUNDS = 2
"""Rounds of a comparison. The engines take turns, so that both have the same company of other programs."""

_RESET = "`runed install --reset`"

Report: TypeAlias = Callable[[Progress], None]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The engine that serves a model, as its users are told.

    Attributes:
        engine: Its name.
        version: Its version. Vectors of another version may be others.
        device: The device that it computes with.
        chosen_at: The time of the comparison in which the device was the fastest, in ISO 8601; "" if none decides.
        warnings: Sentences about everything that works, but not as requested.
        restrictions: Sentences about what makes it slower than the machine allows.
        remember_failure: Remembers the reason why it cannot serve, so that another engine or device does; None if none can.
        reason: Why it serves, as `EngineComparison.reason_for` tells it; "" if no comparison decides.
    """

    engine: str
    version: str
    device: Device
    chosen_at: str = ""
    warnings: tuple[str, ...] = ()
    restrictions: tuple[str, ...] = ()
    remember_failure: Callable[[str], object] | None = None
    reason: str = ""

    @property
    def part(self) -> str:
        """The part of it that may fail, so that the model is served without it."""
        return self.engine if self.device.is_cpu else str(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Makers:
    """What makes the seat of a model, with an engine that does not run yet.

    Attributes:
        llama: Makes that of `llama-server`.
        onnx: Makes that of ONNX Runtime. Its argument is whether another engine can serve instead.
    """

    llama: Callable[[], Awaitable[Seat]]
    onnx: Callable[[bool], Awaitable[Seat]]


def builds_of(settings: Settings, installation: Installation) -> EngineBuilds:
    """Return what a comparison of the engines depends on. ONNX Runtime must be installed.

    Raises:
        SettingsError: It cannot compute with the provider of the settings.
    """
    from runed.backends.cores import processors  # noqa: PLC0415 # as in `runed.daemon.assembly`
    from runed.backends.onnx import availability  # noqa: PLC0415 # as above

    provider = settings.onnx_provider
    availability.check_provider(provider)
    onnx = availability.engine_version() + ("" if provider == "cpu" else f" {provider}")
    return EngineBuilds(llama_server=installation.engine_build, onnx=onnx, processors=processors())


def judge(rounds: Sequence[tuple[Trial, Trial]], *, model: ModelInfo, builds: EngineBuilds) -> EngineComparison:
    """Return the result of a comparison of the engines.

    ONNX Runtime is the faster one if it was so in each round. Rounds disagree where other programs took the processors from one
    of the engines. Then `llama-server` serves, so that two homes of a busy machine do not differ by chance.

    Args:
        rounds: What `llama-server` and then ONNX Runtime did.
        model: The model.
        builds: The engines.
    """
    from runed.backends.comparing import FASTER, differ  # noqa: PLC0415 # as above

    difference = differ(*rounds[0], model)
    rates = [(llama.speed.texts_per_second, onnx.speed.texts_per_second) for llama, onnx in rounds]
    wins = [onnx >= FASTER * llama for llama, onnx in rates]
    return EngineComparison(
        model=model.sha256,
        builds=builds,
        objection=difference.objection,
        is_faster=all(wins),
        is_unsure=len(set(wins)) > 1,
        llama_server_rate=max(llama for llama, _ in rates),  # that of the round with the least company
        onnx_rate=max(onnx for _, onnx in rates),
        cosine=difference.cosine,
        disputed=list(difference.disputed),
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is known of ONNX Runtime and a model: a comparison, or why there is none now. Neither, if none makes sense."""

    comparison: EngineComparison | None = None
    problem: str = ""


def _changed(known: EngineComparison | None, now: str) -> tuple[str, ...]:
    """Return a warning if another engine serves than the one that the last comparison of the model chose."""
    if known is None or known.chooses_onnx is (now == ONNX_RUNTIME):
        return ()
    before = LLAMA_SERVER if now == ONNX_RUNTIME else ONNX_RUNTIME
    setting = "cpu" if now == ONNX_RUNTIME else "onnx"
    warning = (
        f"{now} serves instead of {before} from now on, so the fingerprint is another one: vectors that you have stored need a "
        f"new index; RUNED_ENGINE={setting} goes back to {before}"
    )
    return (warning,)


class EngineChooser:
    """Chooses the engine of each model.

    Args:
        settings: The settings.
        paths: The files of the home.
        seats: The room for engines.
        failures: The devices that failed on this machine.
    """

    def __init__(self, settings: Settings, paths: Paths, seats: Seats, failures: DeviceFailures) -> None:
        self._settings = settings
        self._file = paths.engine_comparisons
        self._seats = seats
        self._failures = failures
        # Two comparisons at once would disturb each other.
        self._comparing = asyncio.Lock()

    async def choose(self, installation: Installation, makers: Makers, report: Report) -> tuple[Seat, Serving]:
        """Return the seat of a model, and what serves there. Compare the two engines first, if that is due.

        Args:
            installation: The model, and a `llama-server` if it needs one.
            makers: Make the seat.
            report: Takes the progress.

        Raises:
            SettingsError: The settings ask for ONNX Runtime, which cannot serve the model here.
            ModelFileError: The file cannot be used.
            BackendError: The graph for ONNX Runtime cannot be built, and no other engine can serve.
        """
        if self._settings.engine == ONNX or is_onnx(installation.model):
            return await self._onnx_alone(installation, makers)
        if self._settings.engine != "auto" or not installation.device.is_cpu or installation.spec.kind is ModelKind.RERANK:
            return await makers.llama(), self._llama(installation)
        from runed.backends.onnx import availability  # noqa: PLC0415 # as in `runed.daemon.assembly`

        if absent := availability.missing():
            seat = await makers.llama()
            if availability.objection(seat.model):
                return seat, self._llama(installation)
            self._note_llama(installation)
            hint = (
                f"the engine may not be the fastest for this model: {absent}. Another engine has another fingerprint: vectors "
                "that you have stored need a new index then"
            )
            return seat, self._llama(installation, restrictions=(hint,))
        async with self._comparing:
            return await self._faster(installation, makers, report)

    async def _onnx_alone(self, installation: Installation, makers: Makers) -> tuple[Seat, Serving]:
        from runed.backends.onnx import availability  # noqa: PLC0415 # as above

        why, other = f"the model {installation.model} is served by {ONNX_RUNTIME} alone", ""
        if self._settings.engine == ONNX and not is_onnx(installation.model):
            why, other = "RUNED_ENGINE=onnx", ", or set RUNED_ENGINE=auto"
        if absent := availability.missing():
            raise SettingsError(f"{why}: {absent}{other}")
        if installation.spec.kind is ModelKind.RERANK:
            raise SettingsError(
                f"{why}: {installation.spec.name} is a reranker, which only llama-server serves; choose another model{other}"
            )
        await asyncio.to_thread(availability.check_provider, self._settings.onnx_provider)
        try:
            seat = await makers.onnx(False)
        except ModelFileError as error:
            raise error.retold(f"{why}: {error.message}; choose another model{other}") from None
        return seat, self._onnx()

    async def _faster(self, installation: Installation, makers: Makers, report: Report) -> tuple[Seat, Serving]:
        """Return the seat of the engine that was the faster one in a comparison."""
        builds = await asyncio.to_thread(builds_of, self._settings, installation)
        known = read_comparison(self._file, installation.model_sha256)
        llama = None
        if known is not None and known.holds_for(builds):
            verdict = _Verdict(known)
        else:
            llama = await makers.llama()
            verdict = await self._compare(installation, builds, llama, makers, report)
        if verdict.comparison is not None and verdict.comparison.chooses_onnx:
            made = await self._onnx_seat(installation, builds, makers)
            if isinstance(made, Seat):
                serving = self._onnx(partial(self._object, installation, builds))
                warnings = _changed(known, ONNX_RUNTIME)
                return made, replace(serving, reason=verdict.comparison.reason_for(ONNX_RUNTIME), warnings=warnings)
            verdict = made
        serving = self._llama_instead(installation, verdict)
        return llama or await makers.llama(), replace(serving, warnings=(*serving.warnings, *_changed(known, LLAMA_SERVER)))

    async def _compare(
        self, installation: Installation, builds: EngineBuilds, llama: Seat, makers: Makers, report: Report
    ) -> _Verdict:
        """Compare the engines, and remember the result."""
        from runed.backends.comparing import try_engine  # noqa: PLC0415 # as above
        from runed.backends.onnx import availability  # noqa: PLC0415 # as above

        def tell(step: str) -> None:
            _log.info("choosing the engine", model=llama.name, step=step)
            report(Progress(Phase.CHOOSING_ENGINE, 0, 0, f"choosing the faster engine, once on this machine: {step}"))

        if availability.objection(llama.model):
            return _Verdict()
        tell(f"building the graph for {ONNX_RUNTIME}")
        onnx = await self._onnx_seat(installation, builds, makers)
        if not isinstance(onnx, Seat):
            return onnx
        rounds = []
        for number in range(1, ROUNDS + 1):
            part = f"for {_SECONDS:g} s, round {number} of {ROUNDS}"
            try:
                tell(f"measuring {LLAMA_SERVER} {part}")
                first = await try_engine(llama, _SECONDS, engine=LLAMA_SERVER)
            except RunedError as error:
                _log.warning("llama-server cannot be compared", reason=error.message)
                return _Verdict()  # its next start tells the user
            try:
                tell(f"measuring {ONNX_RUNTIME} {part}")
                second = await try_engine(onnx, _SECONDS, engine=ONNX_RUNTIME)
            except RunedError as error:
                return self._note(installation, builds, error, onnx)
            rounds.append((first, second))
        comparison = judge(rounds, model=llama.model, builds=builds)
        keep_comparison(self._file, comparison)
        _log.info(
            "engine chosen",
            model=llama.name,
            engine=ONNX_RUNTIME if comparison.chooses_onnx else LLAMA_SERVER,
            figures=comparison.figures,
            cosine=round(comparison.cosine, 7),
            objection=comparison.objection,
            disputed=comparison.disputed,
            unsure=comparison.is_unsure,
        )
        return _Verdict(comparison)

    async def _onnx_seat(self, installation: Installation, builds: EngineBuilds, makers: Makers) -> Seat | _Verdict:
        """Make a seat for ONNX Runtime. Return it, or why there is none."""
        try:
            seat = await makers.onnx(True)
            self._seats.check(seat)
        except (BackendError, ModelTooLargeError) as error:
            return self._note(installation, builds, error)
        return seat

    def _note(self, installation: Installation, builds: EngineBuilds, error: RunedError, seat: Seat | None = None) -> _Verdict:
        """Remember a failure that may come again. Another one, such as of a full disk, is only returned."""
        from runed.backends.onnx import availability  # noqa: PLC0415 # as above

        if absent := availability.missing():
            return _Verdict(problem=absent)
        failed = seat is not None and seat.engine_state.status is BackendStatus.DEVICE_FAILED
        if failed or isinstance(error, ModelFileError | BackendFaultError):
            is_unfit = isinstance(error, ModelFileError)
            return _Verdict(self._object(installation, builds, error.message, is_unfit=is_unfit))
        _log.warning("ONNX Runtime cannot serve now", reason=error.message)
        return _Verdict(problem=error.message)

    def _object(
        self, installation: Installation, builds: EngineBuilds, reason: str, *, is_unfit: bool = False
    ) -> EngineComparison:
        """Remember why ONNX Runtime cannot serve a model, unless its packages are gone, which the next start sees by itself."""
        from runed.backends.onnx import availability  # noqa: PLC0415 # as above

        _log.warning("ONNX Runtime cannot serve a model", file=installation.model.name, reason=reason)
        comparison = EngineComparison(model=installation.model_sha256, builds=builds, objection=reason, is_unfit=is_unfit)
        if not availability.missing():
            keep_comparison(self._file, comparison)
        return comparison

    def _note_llama(self, installation: Installation) -> None:
        """Remember that `llama-server` served a model without a comparison, so that a change of the engine is told."""
        if read_comparison(self._file, installation.model_sha256) is None:
            builds = EngineBuilds(llama_server=installation.engine_build, onnx="", processors="")
            keep_comparison(self._file, EngineComparison(model=installation.model_sha256, builds=builds))

    def _onnx(self, remember: Callable[[str], object] | None = None) -> Serving:
        from runed.backends.onnx import availability  # noqa: PLC0415 # as above

        return Serving(
            engine=ONNX_RUNTIME,
            version=availability.engine_version(),
            device=availability.device_of(self._settings.onnx_provider),
            remember_failure=remember,
        )

    def _llama(
        self, installation: Installation, *, warnings: tuple[str, ...] = (), restrictions: tuple[str, ...] = ()
    ) -> Serving:
        use = installation.device_use
        return Serving(
            engine=LLAMA_SERVER,
            version=installation.engine_version,
            device=installation.device,
            chosen_at=installation.device_chosen_at,
            warnings=warnings,
            restrictions=restrictions,
            remember_failure=partial(self._failures.remember, use) if use else None,
        )

    def _llama_instead(self, installation: Installation, verdict: _Verdict) -> Serving:
        """Return what serves where ONNX Runtime does not, and say why if that can be changed."""
        instead = f"{LLAMA_SERVER} serves instead of {ONNX_RUNTIME}"
        if verdict.problem:
            return self._llama(installation, restrictions=(f"{instead}: {verdict.problem}",))
        if (comparison := verdict.comparison) is None:
            return self._llama(installation)
        warnings: tuple[str, ...] = ()
        if comparison.objection and not comparison.is_unfit:
            remedy = f"{_RESET} lets it be tried again"
            if again := comparison.tried_again:
                remedy = f"the first start after {again:%Y-%m-%d %H:%M} UTC tries it again, or after {_RESET} the next one"
            warnings = (f"{instead}: {comparison.objection}; {remedy}",)
        return replace(self._llama(installation, warnings=warnings), reason=comparison.reason_for(LLAMA_SERVER))
