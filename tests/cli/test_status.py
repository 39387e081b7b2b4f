"""`runed status` shows the queue, the speed and the savings of the cache."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import runed
from runed.cli.status import Report, _as_dict, _as_lines
from tests.cli.support import Cli

HEALTH = runed.Health(
    status=runed.Status.OK,
    phase=None,
    bytes_done=0,
    bytes_total=0,
    message="",
    uptime_seconds=3700,
    total_requests=12,
    in_flight_requests=3,
    pid=10,
    engine_pid=11,
    engine_restarts=1,
    interactive=runed.LaneHealth(queued_texts=0, queued_bytes=0, total_texts=40, wait_p50_seconds=0.0124, wait_p99_seconds=1.5),
    bulk=runed.LaneHealth(queued_texts=9876, queued_bytes=1234567, total_texts=0, wait_p50_seconds=0.0, wait_p99_seconds=0.0),
    total_texts=123_456,
    total_tokens=987_654,
    tokens_per_second=3431.6,
    total_batches=5000,
    mean_batch_texts=7.75,
    cache_hits=1000,
    shared_texts=17,
    cache_entries=20_000,
    cache_bytes=64_000_000,
    refused_requests=2,
    disk_cache_bytes=0,
    model="fake.f32",
    loaded_models=1,
)


def report(cli: Cli) -> Report:
    with runed.connect(home=cli.home, spawn=False) as client:
        return Report(client.info(), HEALTH, 80_000_000, 90_000_000)


def test_a_busy_daemon_for_people(served: Cli) -> None:
    lines = _as_lines(report(served))
    assert lines["requests"] == "12 in all, 3 in flight, 2 refused, 1 engine restarts"
    assert lines["queues"] == "interactive 0 waiting (waited p50 12.4 ms, p99 1,500.0 ms); bulk 9,876 waiting"
    assert lines["speed"] == "in the last minute 3,432 tokens/s, 7.8 texts a batch; 123,456 texts in all"
    assert lines["cache"] == "20,000 vectors, 64 MB; 1,000 found there, 17 shared in flight"
    on_disk = replace(report(served), health=replace(HEALTH, disk_cache_bytes=5_000_000))
    assert _as_lines(on_disk)["cache"].startswith("20,000 vectors, 64 MB, and 5 MB on disk; ")
    assert "profile balanced" in lines["engine"]
    assert lines["routing"] == "no centroid set"


def test_a_device_that_a_comparison_chose_is_told(served: Cli) -> None:
    plain = report(served)
    assert _as_lines(plain)["device"].startswith("the processors; a text alone ")
    at = "2026-11-29T01:00:00+00:00"
    chosen = replace(plain, info=replace(plain.info, device="H100", accelerator="cuda", device_tuned_at=at, company_cosine=0.0))
    assert _as_lines(chosen)["device"] == f"H100 (cuda), the fastest as measured at {at} (`runed bench --reset` undoes that)"


def test_json_has_every_field_of_info_and_health(served: Cli) -> None:
    document = json.loads(json.dumps(_as_dict(report(served))))
    assert {field.name for kind in (runed.Info, runed.Health) for field in fields(kind)} <= set(document)
    assert document["status"] == "OK"
    assert document["bulk"]["queued_texts"] == 9876
    assert document["interactive"]["wait_p99_seconds"] == 1.5
    assert document["profile"] == "balanced"


def test_what_was_embedded_is_counted(served: Cli) -> None:
    before = json.loads(served.run("status", "--json").stdout)
    for _ in range(2):
        assert served.run("embed", "counted once", "counted twice").returncode == 0
    after = json.loads(served.run("status", "--json").stdout)
    grown = {name: after[name] - before[name] for name in ("total_texts", "cache_hits", "cache_entries", "refused_requests")}
    assert grown == {"total_texts": 4, "cache_hits": 2, "cache_entries": 2, "refused_requests": 0}
    assert after["total_tokens"] > before["total_tokens"]
    assert after["total_batches"] > before["total_batches"]
    lanes = ("interactive", "bulk")
    assert sum(after[lane]["total_texts"] - before[lane]["total_texts"] for lane in lanes) == 2
    assert after["tokens_per_second"] > 0
