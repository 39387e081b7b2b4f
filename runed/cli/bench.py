"""`runed bench`: measure the speed of the daemon. With --tune, find the best profiles for this machine."""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import runed
from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.options import seconds
from runed.cli.progress import ProgressDisplay
from runed.cli.waiting import ANSWER_SECONDS, connect
from runed.errors import DaemonUnavailableError, DeadlineExceededError, RunedError
from runed.paths import Paths
from runed.settings import Settings, load_settings

if TYPE_CHECKING:
    from rich.table import Table

    from runed.backends.llama.profile import Tuning

SECONDS = 3.0
TUNE_SECONDS = 2.0
"""Seconds of one part of a measurement."""

TUNE_LIMIT = 360.0
"""Seconds after which `--tune` leaves out the other measurements."""

SHORT_TEXT_WORDS = 12
LONG_TEXT_WORDS = 40
TUNE_TEXTS = 256
FIRST_BATCH_TEXTS = 32
MAX_BULK_TEXTS = 20_000
FEWEST_CALLS = 5

DESCRIPTION = """\
Measure in about ten seconds how fast the daemon embeds on this machine, through
the client: one short text after the other, many at once, and a text that is in
the cache. Starts the daemon if none runs.

With --tune, measure the engine instead with several settings (texts at once,
tokens at once, threads), and keep the best for each profile of RUNED_PROFILE:
  memory      one text at once
  balanced    at least 90 % of the most texts per second; if it can be, a batch
              takes at most three times as long as a single text, which may have
              to wait for it; the default
  throughput  the most texts per second
This takes half a minute for a small model and up to six minutes for a large
one. The machine should do nothing else meanwhile. A running daemon goes on; it
uses the result from its next start on. `runed status` names it. --reset removes
it. If other programs disturb the measurement, its result is not kept, and the
exit code is 1.
"""

EPILOG = """\
with --json, standard output is one JSON object; times are in seconds.

examples:
  runed bench
  runed bench --tune && runed stop    the next client starts a tuned daemon
  runed bench --reset && runed stop   the next one has the built-in settings
"""

_WORDS = (  # noqa: SIM905 # words read best as words
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of a daemon; times in seconds, rates per second.

    Attributes:
        short_text_p50: The median time of a call with one short text; `short_text_p99` is the 99th percentile.
        cached_text_p50: The median time of a call with a text in the cache; None if there is no cache.
        texts_per_second: The rate of many short texts in one call.
        tokens_per_second: The rate of their tokens.
        texts: The number of these texts.
    """

    short_text_p50: float
    short_text_p99: float
    cached_text_p50: float | None
    texts_per_second: float
    tokens_per_second: float
    texts: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--tune", action="store_true", help="find and keep the engine settings that suit this machine")
    parser.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        help=f"how long each part takes; default: {SECONDS:g}, with --tune {TUNE_SECONDS:g} of which there are a dozen",
    )
    parser.add_argument("--reset", action="store_true", help="remove what --tune kept; with --tune, do so first")
    parser.add_argument("--force", action="store_true", help="with --tune: keep the result though other programs disturbed it")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print the results."""
    if arguments.reset:
        _reset()
    if arguments.reset and not arguments.tune:
        return ExitCode.OK
    if arguments.tune:
        return _tune(arguments.seconds or TUNE_SECONDS, as_json=arguments.json, force=arguments.force)
    _measure(arguments.seconds or SECONDS, as_json=arguments.json)
    return ExitCode.OK


def sample_texts(count: int, words: int) -> list[str]:
    """Make texts of `words` common English words. They are new to the cache."""
    return [" ".join(random.choices(_WORDS, k=words)) for _ in range(count)]  # noqa: S311 # no secret


# The daemon as it is


def _measure(part_seconds: float, *, as_json: bool) -> None:
    with ProgressDisplay() as display, connect(display) as client:
        client.embed(sample_texts(1, SHORT_TEXT_WORDS)[0])  # wakes the engine
        others = client.health().in_flight_requests
        speed = _measure_speed(client, part_seconds, display)
        info = client.info()
    if others:
        complain("other clients were embedding meanwhile, so the figures are too low")
    if as_json:
        about = {"model_identity": info.model_identity, "model_name": info.model_name, "profile": info.profile}
        print(json.dumps(about | asdict(speed), indent=2))
        return
    table = _table("", "", "")
    table.show_header = False
    alone, worst, cached = map(_milliseconds, (speed.short_text_p50, speed.short_text_p99, speed.cached_text_p50))
    table.add_row("one short text", f"p50 {alone}", f"p99 {worst}")
    table.add_row("a cached text", f"p50 {cached}")
    table.add_row(
        f"{speed.texts:,} texts at once", f"{speed.texts_per_second:,.1f} texts/s", f"{speed.tokens_per_second:,.0f} tokens/s"
    )
    tell(f"{info.model_name}, profile {info.profile}, texts of {SHORT_TEXT_WORDS} words")
    _print(table)


def _measure_speed(client: runed.Client, part_seconds: float, display: ProgressDisplay) -> Speed:
    display.update("one text after the other")
    alone = _time_calls(lambda: client.embed(sample_texts(1, SHORT_TEXT_WORDS)[0]), part_seconds)
    display.update("many texts at once")
    # A first trial tells how many texts fill the time.
    _, took, _ = _embed_many(client, FIRST_BATCH_TEXTS)
    texts, took, tokens = _embed_many(client, min(math.ceil(FIRST_BATCH_TEXTS * part_seconds / took), MAX_BULK_TEXTS))
    display.update("a cached text")
    known = sample_texts(1, SHORT_TEXT_WORDS)
    client.embed(known[0])
    kept = _vector(client.embed_items(known)[0]).cached
    again = _time_calls(lambda: client.embed(known[0]), part_seconds / 10) if kept else None
    return Speed(
        short_text_p50=statistics.median(alone),
        short_text_p99=sorted(alone)[math.ceil(len(alone) * 0.99) - 1],
        cached_text_p50=statistics.median(again) if again else None,
        texts_per_second=texts / took,
        tokens_per_second=tokens / took,
        texts=texts,
    )


def _time_calls(call: Callable[[], object], part_seconds: float) -> list[float]:
    """Call until the time is over, but at least `FEWEST_CALLS` times. Return the seconds of each call."""
    end = time.monotonic() + part_seconds
    times: list[float] = []
    while len(times) < FEWEST_CALLS or time.monotonic() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def _embed_many(client: runed.Client, count: int) -> tuple[int, float, int]:
    """Embed new texts in one call. Return their number, the seconds and the tokens."""
    texts = sample_texts(count, SHORT_TEXT_WORDS)
    started = time.perf_counter()
    answers = client.embed_items(texts, lane="bulk")
    took = time.perf_counter() - started
    return count, took, sum(_vector(each).token_count for each in answers)


def _vector(answer: runed.Embedding | RunedError) -> runed.Embedding:
    if isinstance(answer, RunedError):
        raise answer
    return answer


# The engine as it could be


def _tune(part_seconds: float, *, as_json: bool, force: bool) -> ExitCode:
    from runed.cli.install import open_home  # noqa: PLC0415 # the figures of a daemon need none of its imports

    settings, paths = open_home("bench.log")
    if _daemon_is_busy(paths):
        complain("the daemon is embedding now, so the figures will be too low; measure again when it is idle")
    with ProgressDisplay() as display:
        tuning = _tune_installed(settings, paths, part_seconds, display, force=force)
    kept = force or not tuning.is_chance
    code = ExitCode.OK if kept else ExitCode.FAILED
    if as_json:
        print(json.dumps({"stored": str(paths.tuning) if kept else None} | asdict(tuning), indent=2))
        return code
    _print(_tuning_table(tuning))
    if tuning.passes:
        _print(_pass_table(tuning))
    for remark in tuning.remarks:
        complain(remark)
    if not kept:
        complain("the result is not kept; with --force it is")
        return code
    tell(f"kept in {paths.tuning} for the next start; `runed stop` ends a daemon that runs without it")
    print(f"RUNED_PROFILE chooses among them, now {settings.profile}; `runed bench --reset` brings the built-in settings back")
    return code


def _reset() -> None:
    from runed.backends.llama.profile import remove_tunings  # noqa: PLC0415 # the figures of a daemon need none of its imports

    paths = Paths(load_settings().home)
    if remove_tunings(paths.tuning):
        tell(f"removed {paths.tuning}; `runed stop` ends a daemon that runs with it")
    else:
        tell(f"nothing to remove: there is no {paths.tuning}")


def _daemon_is_busy(paths: Paths) -> bool:
    try:
        with runed.connect(home=paths.home, spawn=False, timeout=ANSWER_SECONDS) as client:
            return client.health().in_flight_requests > 0
    except (DaemonUnavailableError, DeadlineExceededError):
        return False


def _tune_installed(settings: Settings, paths: Paths, part_seconds: float, display: ProgressDisplay, *, force: bool) -> Tuning:
    from runed.backends.llama.tuning import tune  # noqa: PLC0415 # as above
    from runed.cli.install import install_shown  # noqa: PLC0415 # as above

    def show_tuning(done: int, total: int, what: str) -> None:
        display.update("measuring the engine", done, total, unit="ways", detail=f"measuring the engine: {what}")

    installation = install_shown(settings, paths, display)
    for warning in installation.warnings:
        complain(warning)
    return tune(
        executable=installation.llama_server,
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        texts=sample_texts(TUNE_TEXTS, LONG_TEXT_WORDS),
        seconds=part_seconds,
        limit=TUNE_LIMIT,
        report=show_tuning,
        force=force,
        device=installation.device,
    )


def _tuning_table(tuning: Tuning) -> Table:
    table = _table("texts", "tokens", "threads", "alone", "together", "texts/s", "tokens/s", "best for")
    best_for: dict[tuple[int, int, int], list[str]] = {}
    for profile in tuning.profiles:
        best_for.setdefault((profile.slots, profile.batch_tokens, profile.threads), []).append(profile.name)
    for each in sorted(tuning.measurements, key=lambda each: (each.slots, each.batch_tokens, each.threads)):
        table.add_row(
            str(each.slots),
            str(each.batch_tokens),
            str(each.threads),
            _milliseconds(each.lone_seconds),
            _milliseconds(each.batch_seconds),
            f"{each.texts_per_second:,.1f}",
            f"{each.tokens_per_second:,.0f}",
            ", ".join(best_for.get((each.slots, each.batch_tokens, each.threads), [])),
        )
    return table


def _pass_table(tuning: Tuning) -> Table:
    table = _table("tokens at once", "texts of 120", "texts of 500", "best for")
    for each in tuning.passes:
        names = [profile.name for profile in tuning.profiles if profile.pass_tokens == each.pass_tokens]
        speeds = (f"{speed:,.0f} tokens/s" for speed in (each.medium_tokens_per_second, each.long_tokens_per_second))
        table.add_row(str(each.pass_tokens), *speeds, ", ".join(names))
    return table


# Tables


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415 # 60 ms that a command which is asked for help does not spend

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "best for") else "right")
    return table


def _print(table: Table) -> None:
    from rich.console import Console  # noqa: PLC0415 # as above

    Console(highlight=False).print(table)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:,.1f} ms"
