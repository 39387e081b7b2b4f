"""What `/metrics` of a real daemon tells, and that the dashboard and the alerts ask for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runed.version import __version__
from tests.support import RunningDaemon, wait_until

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "grafana" / "runed.json"
ALERTS = ROOT / "grafana" / "alerts.yml"
NAME = re.compile(r"\b(?:runed|process)_[a-z_]+\b")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; .ci/run tells where it is from"
)

Start = Callable[..., RunningDaemon]


def run_promtool(*arguments: str, text: str = "") -> None:
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def metrics(start_daemon: Start) -> str:
    """The metrics of a daemon that has answered calls of each kind."""
    daemon = start_daemon(RUNED_HTTP="127.0.0.1:0")
    daemon.wait_for("STATUS_OK")
    daemon.call("Embed", {"text": "tea"})
    daemon.call("EmbedBatch", {"texts": ["tea", ""]})
    daemon.call("EmbedBatch", {"texts": ["tea", ""], "perItemErrors": True})
    with daemon.http() as http:
        http.post("/v1/embeddings", json={"input": "tea"})
        http.get("/v1/no/such/path")
    url = json.loads((daemon.home / "daemon.json").read_text())["http"]
    assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401
    token = (daemon.home / "http.token").read_text().strip()
    answer = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.status_code == 200
    return answer.text


def samples(metrics: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }


def test_calls_errors_wakeups_and_engines_are_told(metrics: str) -> None:
    told = samples(metrics)
    seconds = "runed_request_duration_seconds"
    assert told[f"{seconds}_count", "code=ok", "method=Embed"] == 1
    assert told[f"{seconds}_count", "code=ok", "method=EmbedBatch"] == 1
    assert told[f"{seconds}_count", "code=invalid_argument", "method=EmbedBatch"] == 1
    assert told[f"{seconds}_count", "code=ok", "method=/v1/embeddings"] == 1
    assert told[f"{seconds}_count", "code=unimplemented", "method=other"] == 1
    assert told[f"{seconds}_count", "code=unauthenticated", "method=other"] == 1
    assert told["runed_request_errors_total", "reason=EMPTY_TEXT"] == 1
    assert told["runed_request_errors_total", "reason=UNIMPLEMENTED"] == 1
    assert told["runed_request_errors_total", "reason=UNAUTHENTICATED"] == 1
    assert told["runed_text_errors_total", "reason=EMPTY_TEXT"] == 1
    [model] = [key[1] for key in told if key[0] == "runed_engine_wakeups_total"]
    assert told["runed_engine_wakeups_total", model] == 1
    assert 0 < told["runed_engine_wakeup_seconds_total", model] < 60
    assert told["runed_engine_memory_bytes", model] > 1024**2
    [engine] = [key for key in told if key[0] == "runed_engine_info"]
    assert "accelerator=cpu" in engine
    assert "engine=llama-server" in engine
    [build] = [key for key in told if key[0] == "runed_build_info"]
    assert f"version={__version__}" in build


def test_a_wake_up_is_counted_and_a_replacement_is_not(start_daemon: Start) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="300ms")
    wait_until(daemon.health, what="a daemon that listens")
    daemon.call("Embed", {"text": "tea"})
    daemon.wait_for("STATUS_IDLE")

    def wakeups() -> float:
        with daemon.http() as http:
            told = samples(http.get("/metrics").text)
        return next(value for key, value in told.items() if key[0] == "runed_engine_wakeups_total")

    before = wakeups()
    daemon.call("Embed", {"text": "green tea"})
    assert wakeups() == before + 1
    daemon.wait_for("STATUS_IDLE")
    assert wakeups() == before + 1


@promtool
def test_the_metrics_are_named_as_prometheus_wants_it(metrics: str) -> None:
    run_promtool("check", "metrics", text=metrics)


def queries(panel: dict[str, Any]) -> Iterator[str]:
    for target in panel.get("targets", []):
        yield target["expr"]
    for inner in panel.get("panels", []):
        yield from queries(inner)


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [query for panel in dashboard["panels"] for query in queries(panel)]


def test_each_query_asks_for_a_metric_and_labels_that_exist(metrics: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    known = {name + end for name, family in families.items() for end in ("", "_total", "_bucket", "_sum", "_count")}
    asked = {name for query in (*dashboard_queries(), ALERTS.read_text()) for name in NAME.findall(query)}
    assert len(asked) > 20
    assert asked <= known


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places, f"{panel['title']} lies over another panel"
        places |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]


@promtool
def test_prometheus_reads_each_query_and_the_alerts(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, query in enumerate(dashboard_queries())
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    run_promtool("check", "rules", str(tmp_path / "rules.yml"))
    run_promtool("check", "rules", str(ALERTS))


@promtool
def test_each_alert_is_set_off_by_its_fault_alone() -> None:
    run_promtool("test", "rules", str(ROOT / "tests" / "fixtures" / "alerts_test.yml"))
