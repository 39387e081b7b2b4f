"""One client with a large job: its speed, its use of the cache, and its cancellation."""

from __future__ import annotations

import statistics
import time
from random import Random

from benchmarks.lab import Lab, say
from benchmarks.load import Cancelled, batch_job, cancelled_batch, cancelled_stream, list_job, stream_job
from benchmarks.raw import flag
from benchmarks.results import Row

_CANCEL_TRIALS = 5

_RAW_PASSES = (60, 128, 256, 512)
"""Tokens of a pass that are tried with raw for long texts."""

_RAW_LISTS = (1, 4)
"""Slots and texts of a list that are tried with raw for long texts. More texts of 500 tokens exceed its context."""


def measure_bulk(lab: Lab) -> list[Row]:
    """Measure one bulk client against a raw server that gets lists of texts at its best settings."""
    slots, size, in_flight = _best_lists(lab)
    texts, bar = lab.effort.bulk_texts, lab.model.bars.bulk
    streamed, batched, raw = [], [], []
    with lab.raw(slots) as best:
        for _ in range(lab.effort.slices):
            first = lab.fresh(texts)
            raw.append(lab.load.run(list_job, best, lab.model, first, texts=texts, size=size, in_flight=in_flight))
            first = lab.fresh(texts)
            streamed.append(lab.load.run(stream_job, lab.daemon.target, lab.model, range(first, first + texts)))
            batched.append(lab.load.run(batch_job, lab.daemon.target, lab.model, lab.fresh(texts), texts=texts))
            say(f"  bulk: raw {raw[-1]:.1f}, embed_stream {streamed[-1]:.1f}, embed_batch {batched[-1]:.1f} texts/s")
    theirs = statistics.median(raw)
    return [
        Row(
            f"one bulk client, {texts:,} texts by {name}",
            f"{statistics.median(ours):.1f} texts/s",
            f"{theirs:.1f} texts/s ({slots} slots, lists of {size}, {in_flight} in flight)",
            f"x {statistics.median(ours) / theirs:.2f}",
            f"at least x {bar}",
            statistics.median(ours) >= bar * theirs,
        )
        for name, ours in (("embed_stream", streamed), ("embed_batch", batched))
    ]


def measure_long(lab: Lab) -> list[Row]:
    """Measure one bulk client with long texts against a raw server at its best settings for these."""
    model, texts = lab.model.with_long_texts(), lab.effort.long_texts
    passes = _RAW_PASSES if flag(lab.raw_argv, "--pooling") == "last" else (None,)
    rates: dict[tuple[int, int | None], float] = {}
    for pass_tokens in passes:
        for size in _RAW_LISTS:
            with lab.raw(size, pass_tokens) as target:
                first = lab.fresh(size)
                rates[size, pass_tokens] = lab.load.run(list_job, target, model, first, texts=size, size=size, in_flight=1)
    size, pass_tokens = max(rates, key=rates.__getitem__)
    ours, raw = [], []
    with lab.raw(size, pass_tokens) as best:
        for _ in range(lab.effort.slices):
            raw.append(lab.load.run(list_job, best, model, lab.fresh(texts), texts=texts, size=size, in_flight=1))
            first = lab.fresh(texts)
            ours.append(lab.load.run(stream_job, lab.daemon.target, model, range(first, first + texts)))
            say(f"  long texts: raw {raw[-1]:.2f}, embed_stream {ours[-1]:.2f} texts/s")
    mine, theirs = statistics.median(ours), statistics.median(raw)
    with lab.daemon.connect() as client:
        tokens = client.count_tokens([model.text(lab.fresh(1))])[0]
    ways = f"lists of {size}, passes of {pass_tokens or flag(lab.raw_argv, '--ubatch-size')} tokens"
    return [
        Row(
            f"one bulk client, {texts} texts of about {tokens} tokens by embed_stream",
            f"{mine:.2f} texts/s",
            f"{theirs:.2f} texts/s ({ways})",
            f"x {mine / theirs:.2f}",
            "at least x 0.98",
            mine >= 0.98 * theirs,
        )
    ]


def measure_reindex(lab: Lab) -> list[Row]:
    """Measure a job of which a tenth was computed before, against a job of the new texts alone.

    Each job runs in two halves, in turn with the other.
    """
    texts = lab.effort.beside_texts // 2
    repeated = texts // 10
    alone = again = 0.0
    computed = 0
    for _ in range(2):
        first = lab.fresh(texts - repeated)
        before = range(first, first + texts - repeated)
        alone += len(before) / lab.load.run(stream_job, lab.daemon.target, lab.model, before)
        first = lab.fresh(texts - repeated)
        numbers = [*range(first, first + texts - repeated), *Random(0).sample(before, repeated)]
        Random(1).shuffle(numbers)
        taken = lab.daemon.texts_taken()
        again += len(numbers) / lab.load.run(stream_job, lab.daemon.target, lab.model, numbers)
        computed += lab.daemon.texts_taken() - taken
        say(f"  re-index: {alone:.1f} s for the new texts alone, {again:.1f} s with the repeated ones")
    new = 2 * (texts - repeated)
    return [
        Row(
            f"re-index of {2 * texts:,} texts, {2 * repeated:,} of them repeated",
            f"{again:.1f} s, {computed:,} texts computed",
            f"{alone:.1f} s (runed, {new:,} new texts alone)",
            f"x {again / alone:.2f}",
            f"{new:,} computed, at most x 1.05",
            computed == new and again <= 1.05 * alone,
        )
    ]


def measure_cancel(lab: Lab) -> list[Row]:
    """Cancel a large job in its middle. Measure the texts computed afterwards, and the next client's waiting time."""
    texts, after = lab.effort.beside_texts, lab.effort.bulk_texts // 4
    with lab.daemon.connect() as client:
        alone = []
        for text in lab.fresh_texts(20):
            began = time.perf_counter()
            client.embed(text)
            alone.append(time.perf_counter() - began)
    single = statistics.median(alone)
    rows = []
    for name, job in (("embed_stream, client closed", cancelled_stream), ("embed_batch, task cancelled", cancelled_batch)):
        spent, batches = lab.daemon.bulk_batches()
        outcomes: list[Cancelled] = []
        for _ in range(_CANCEL_TRIALS):
            first = lab.fresh(texts + 1)
            outcomes.append(lab.load.run(job, lab.daemon.target, lab.model, first, texts=texts, after=after))
        seconds = statistics.median(outcome.seconds for outcome in outcomes)
        late = max(outcome.late_texts for outcome in outcomes)
        total_spent, total_batches = lab.daemon.bulk_batches()
        batch = (total_spent - spent) / (total_batches - batches)
        slots = int(flag(lab.raw_argv, "--parallel"))
        rows.append(
            Row(
                f"a job of {texts:,} texts given up ({name}): another client's text, p50; texts computed in vain, at most",
                f"{seconds * 1000:.0f} ms; {late}",
                "-",
                f"micro-batch {batch * 1000:.0f} ms, single text {single * 1000:.0f} ms",
                f"at most {(batch + single) * 1000:.0f} ms; one micro-batch, {slots}",
                seconds <= batch + single and late <= slots,
            )
        )
    return rows


def _best_lists(lab: Lab) -> tuple[int, int, int]:
    """Find the settings with which a raw server is fastest in bulk: slots, texts of a list, and lists in flight."""

    def trial(slots: int, size: int, in_flight: int) -> float:
        with lab.raw(slots) as target:
            texts = lab.effort.trial_texts
            rate = lab.load.run(list_job, target, lab.model, lab.fresh(texts), texts=texts, size=size, in_flight=in_flight)
        say(f"  trial: {target.name}, lists of {size}, {in_flight} in flight: {rate:.1f} texts/s")
        return rate

    rates = {(slots, slots, 1): trial(slots, slots, 1) for slots in lab.effort.slot_counts}
    slots = max(rates, key=rates.__getitem__)[0]
    for size in lab.effort.list_sizes:
        for in_flight in (1, 2):
            rates[slots, size, in_flight] = trial(slots, size, in_flight)
    return max(rates, key=rates.__getitem__)
