"""`runed bench`: measure the speed of the daemon. With --tune, find the best profiles for this machine."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import runed
from runed.backends.samples import sample_texts
from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.options import seconds
from runed.cli.progress import ProgressDisplay
from runed.cli.tables import milliseconds, print_table, table
from runed.cli.waiting import ANSWER_SECONDS, connect
from runed.errors import DaemonUnavailableError, DeadlineExceededError, RunedError
from runed.paths import Paths
from runed.settings import load_settings

SECONDS = 3.0
TUNE_SECONDS = 2.0
"""Seconds of one part of a measurement."""

SHORT_TEXT_WORDS = 12
FIRST_BATCH_TEXTS = 32
MAX_BULK_TEXTS = 20_000
FEWEST_CALLS = 5

DESCRIPTION = """\
Measure in about ten seconds how fast the daemon embeds on this machine, through
the client: one short text after the other, many at once, and a text that is in
the cache. Starts the daemon if none runs.

With --tune, measure the engine instead on each device that RUNED_ENGINE admits
and that works here: the processors, and each accelerator, whose engine is
fetched if it is missing. Keep the fastest device for RUNED_ENGINE=auto. The
present one stays unless another is at least 10 % faster, since vectors of two
devices differ by rounding. If the processors serve and ONNX Runtime is
installed, compare llama-server with it in the same way.
On each device, try several settings (texts at once, tokens at once, threads),
and keep the best for each profile of RUNED_PROFILE:
  memory      one text at once
  balanced    at least 90 % of the most texts per second; if it can be, a batch
              takes at most three times as long as a single text, which may have
              to wait for it; the default
  throughput  the most texts per second
This takes half a minute for a small model and up to six minutes for a large
one, on each device. The machine should do nothing else meanwhile. A running
daemon goes on; it uses the result from its next start on. `runed status` names
it. --reset removes it. If other programs disturb the measurement, its result is
not kept, and the exit code is 1.

With --variants, compare variants of the model, such as quantizations: speed,
memory (without that of a device), and the cosine of their vectors to those of
the most exact one. Nothing is kept and nothing is switched: RUNED_MODEL_VARIANT
chooses. Variants that are missing are fetched, or made by llama-quantize, and
stay in RUNED_HOME/models.
"""

EPILOG = """\
with --json, standard output is one JSON object; times are in seconds.

examples:
  runed bench
  runed bench --tune && runed stop    the next client starts a tuned daemon
  runed bench --reset && runed stop   the next one has the built-in settings
  runed bench --variants              all variants of the model
"""


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
        help=f"how long each part takes; default: {SECONDS:g}, with --tune {TUNE_SECONDS:g}, of which there are a dozen",
    )
    parser.add_argument(
        "--variants",
        nargs="*",
        metavar="NAME",
        help="compare these variants of the model, or all of the manifest; with --tune, on the fastest device",
    )
    parser.add_argument("--reset", action="store_true", help="remove what --tune kept; with --tune or --variants, do so first")
    parser.add_argument("--force", action="store_true", help="with --tune: keep the result though other programs disturbed it")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print the results."""
    if arguments.reset:
        _reset()
    if arguments.tune or arguments.variants is not None:
        return _measure_engines(arguments)
    if arguments.reset:
        return ExitCode.OK
    _measure(arguments.seconds or SECONDS, as_json=arguments.json)
    return ExitCode.OK


def _measure_engines(arguments: argparse.Namespace) -> ExitCode:
    # The figures of a daemon need none of these imports.
    from runed.cli.install import open_home  # noqa: PLC0415
    from runed.cli.tuning import compare_devices, devices_as_dict, show_devices  # noqa: PLC0415
    from runed.cli.variants import install_variants, measure_variants, show_variants, variants_as_dicts  # noqa: PLC0415
    from runed.cli.workbench import Workbench  # noqa: PLC0415

    settings, paths = open_home("bench.log")
    if _daemon_is_busy(paths):
        complain("the daemon is embedding now, so the figures will be too low; measure again when it is idle")
    devices = variants = None
    with ProgressDisplay() as display:
        bench = Workbench(settings, paths, arguments.seconds or TUNE_SECONDS, display)
        # First, so that minutes of measuring do not end at a wrong name.
        installed = None if arguments.variants is None else install_variants(bench, arguments.variants)
        if arguments.tune:
            devices = compare_devices(bench, force=arguments.force)
        if installed is not None:
            variants = measure_variants(bench, installed, devices.best.installation if devices else None)
    if arguments.json:
        document = devices_as_dict(devices, bench) if devices else {}
        print(json.dumps(document | ({"variants": variants_as_dicts(variants)} if variants else {}), indent=2))
    else:
        if devices:
            show_devices(devices, bench)
        if variants:
            show_variants(variants, bench)
    return ExitCode.OK if devices is None or devices.kept else ExitCode.FAILED


def _daemon_is_busy(paths: Paths) -> bool:
    try:
        with runed.connect(home=paths.home, spawn=False, timeout=ANSWER_SECONDS) as client:
            return client.health().in_flight_requests > 0
    except (DaemonUnavailableError, DeadlineExceededError):
        return False


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
    figures = table("", "", "")
    figures.show_header = False
    alone, worst, cached = map(milliseconds, (speed.short_text_p50, speed.short_text_p99, speed.cached_text_p50))
    figures.add_row("one short text", f"p50 {alone}", f"p99 {worst}")
    figures.add_row("a cached text", f"p50 {cached}")
    figures.add_row(
        f"{speed.texts:,} texts at once", f"{speed.texts_per_second:,.1f} texts/s", f"{speed.tokens_per_second:,.0f} tokens/s"
    )
    tell(f"{info.model_name}, profile {info.profile}, texts of {SHORT_TEXT_WORDS} words")
    print_table(figures)


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


def _reset() -> None:
    paths = Paths(load_settings().home)
    removed = [path for path in (paths.tuning, paths.device_choice, paths.engine_comparisons) if path.exists()]
    for path in removed:
        path.unlink(missing_ok=True)
    if removed:
        tell(f"removed {' and '.join(map(str, removed))}; `runed stop` ends a daemon that runs with it")
    else:
        tell(f"nothing to remove: there is no {paths.tuning}")
