"""`runed status` shows models, clients, settings, the queue, the speed and the savings of the cache."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

import runed
from runed.cli.status import Report, _as_dict, _as_lines
from runed.lifecycle.asking import Health, Info, Lane, Model, look
from runed.paths import Paths
from tests.cli.support import SCRIPTS, Cli
from tests.support import wait_until

HEALTH = Health(
    status="OK",
    uptime_seconds=3700,
    total_requests=12,
    in_flight_requests=3,
    pid=10,
    engine_pid=11,
    engine_restarts=1,
    interactive=Lane(queued_texts=0, queued_bytes=0, total_texts=40, wait_p50_seconds=0.0124, wait_p99_seconds=1.5),
    bulk=Lane(queued_texts=9876, queued_bytes=1234567, total_texts=0, wait_p50_seconds=0.0, wait_p99_seconds=0.0),
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
    model="fake.f32",
    loaded_models=1,
)


def report(cli: Cli) -> Report:
    return Report(look(cli.paths)[0], HEALTH, 80_000_000, 90_000_000)


def test_a_busy_daemon_for_people(served: Cli) -> None:
    plain = report(served)
    lines = _as_lines(plain, served.paths)
    assert lines["requests"] == "12 in all, 3 in flight, 2 refused, 1 engine restarts"
    assert lines["queues"] == "interactive 0 waiting (waited p50 12.4 ms, p99 1,500.0 ms); bulk 9,876 waiting"
    assert lines["speed"] == "in the last minute 3,432 tokens/s, 7.8 texts a batch; 123,456 texts in all"
    assert lines["cache"] == "20,000 vectors, 64 MB; 1,000 found there, 17 shared in flight"
    on_disk = Report(plain.info, msgspec.structs.replace(HEALTH, disk_cache_bytes=5_000_000), 0, 0)
    assert _as_lines(on_disk, served.paths)["cache"].startswith("20,000 vectors, 64 MB, and 5 MB on disk; ")
    assert "profile balanced" in lines["engine"]
    assert lines["routing"] == "no centroid set"


def test_a_model_has_the_label_once_and_its_files_stand_below_it(served: Cli) -> None:
    lines = served.run("status").stdout.splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith("models ")]
    file, engine = lines[at + 1 : at + 3]
    assert file.strip().endswith(".gguf")
    assert engine.strip().startswith("by /")
    assert {line[:12] for line in (file, engine)} == {" " * 12}


def test_a_device_that_a_comparison_chose_is_told(served: Cli) -> None:
    plain = report(served)
    assert _as_lines(plain, served.paths)["device"].startswith("the processors; a text alone ")
    at = "2026-11-29T01:00:00+00:00"
    info = msgspec.structs.replace(plain.info, device="H100", accelerator="cuda", device_tuned_at=at, company_cosine=0.0)
    lines = _as_lines(Report(info, HEALTH, 0, 0), served.paths)
    assert lines["device"] == f"H100 (cuda), the fastest as measured at {at} (`runed bench --reset` undoes that)"


def test_json_has_every_field_of_info_and_health(served: Cli) -> None:
    document = json.loads(json.dumps(_as_dict(report(served))))
    assert {field.name for kind in (runed.Info, runed.Health) for field in fields(kind)} <= set(document)
    assert document["status"] == "OK"
    assert document["bulk"]["queued_texts"] == 9876
    assert document["interactive"]["wait_p99_seconds"] == 1.5
    assert document["profile"] == "balanced"


def test_answers_agree_with_those_of_the_client(served: Cli) -> None:
    info, health = look(served.paths)
    with runed.connect(home=served.home, spawn=False) as client:
        by_client, state = client.info(), client.health()
    for field in fields(by_client):
        assert getattr(info, field.name) == getattr(by_client, field.name), field.name
    assert health.status == state.status.name
    for name in ("pid", "engine_pid", "total_texts", "total_tokens", "model", "loaded_models"):
        assert getattr(health, name) == getattr(state, name), name


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


def test_the_model_in_use_is_told_whole(served: Cli) -> None:
    done = served.run("status", "--json")
    document = json.loads(done.stdout)
    [model] = document["models"]
    assert done.returncode == 0
    assert model["name"] == document["model"]
    assert model["file"] == served.environment["RUNED_MODEL"]
    assert Path(model["engine_path"]).name == "llama-server"
    assert (model["engine_pid"], model["status"]) == (document["engine_pid"], "OK")
    assert model["memory_bytes"] > 5_000_000
    assert (model["accelerator"], model["device"]) == ("cpu", "")
    assert model["slots"] >= 1
    assert model["context"] == 2048
    assert model["keep_alive_seconds"] == 600
    assert 0 < model["seconds_until_sleep"] <= 600
    line = next(line for line in served.run("status").stdout.splitlines() if line.startswith("models"))
    for words in (f"{model['name']}: ok, the processors, ", " texts at once, a context of 2,048 tokens; pid ", ", sleeps in "):
        assert words in line


CLIENT = """
import runed, sys
with runed.connect(spawn=False) as client:
    client.health()
    print("connected", flush=True)
    sys.stdin.read()
"""


def test_programs_that_are_connected_are_named_and_their_texts_are_not(served: Cli, tmp_path: Path) -> None:
    program = tmp_path / "my_app.py"
    program.write_text(CLIENT)
    assert "clients   none but this command" in served.run("status").stdout
    with subprocess.Popen(
        [sys.executable, program, "a text that nobody tells"],
        env=served.environment_of_a_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"connected\n"
        shown = served.run("status").stdout
        [client] = [each for each in json.loads(served.run("status", "--json").stdout)["clients"] if each["pid"] == process.pid]
        assert process.stdin is not None
        process.stdin.close()
    assert client["name"].endswith(" my_app.py")
    assert client["connections"] == 1
    assert f"my_app.py (pid {process.pid})" in shown
    assert "nobody tells" not in shown


def test_settings_tell_where_they_come_from(cli: Cli) -> None:
    cli.paths.config.write_text('{"version": 1, "idle_timeout": "7m", "queue_texts": 500, "aliases": {"small": ""}}')
    own = cli.with_environment(RUNED_QUEUE_TEXTS="600", RUNED_MANIFEST="https://me:secret@mirror.test/m.json?key=secret")
    assert own.run("ensure").returncode == 0
    document = json.loads(own.run("status", "--json").stdout)
    settings = {each["name"]: (each["value"], each["origin"]) for each in document["settings"]}
    assert settings["idle_timeout"] == ("7m", "config.json")
    assert settings["queue_texts"] == ("600", "environment")
    assert settings["ctx_size"] == ("2048", "default")
    assert settings["aliases"] == ("small=", "config.json")
    assert settings["manifest"] == ("https://mirror.test/m.json", "environment")
    shown = own.run("status").stdout
    assert "RUNED_QUEUE_TEXTS=600" in shown.split(" (environment)")[0]
    assert f"aliases=small=, idle_timeout=7m ({cli.paths.config})" in shown
    assert "secret" not in shown
    table = [line.split() for line in own.run("status", "--settings").stdout.splitlines()]
    assert ["RUNED_CTX_SIZE", "2048", "default"] in table
    assert ["idle_timeout", "7m", str(cli.paths.config)] in table


def test_the_file_of_a_setting_is_the_one_that_the_daemon_has_read(bare: Cli, tmp_path: Path) -> None:
    own = bare.with_environment(RUNED_CONFIG=str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text('{"version": 1, "idle_timeout": "7m"}')
    assert own.run("ensure").returncode == 0
    assert f"idle_timeout=7m ({tmp_path / 'mine.json'})" in bare.run("status").stdout


def test_a_degraded_daemon_has_an_exit_code_of_its_own(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    own = cli.with_environment(RUNED_MODEL=str(broken))
    assert own.run("ensure").returncode == 0
    wait_until(lambda: "DEGRADED" in own.run("status", "--json").stdout)
    done = own.run("status")
    assert done.returncode == 4
    assert done.stdout.startswith("state     degraded: ")
    [model] = json.loads(own.run("status", "--json").stdout)["models"]
    assert model["status"] == "DEGRADED"
    assert model["message"]


def test_a_daemon_of_an_older_version_is_told_without_what_it_does_not_know() -> None:
    info = Info(daemon_version="0.0.9", model_name="m", model_identity="sha256:1", profile="balanced")
    lines = _as_lines(Report(info, HEALTH, 0, 0), Paths(Path("/nonexistent")))
    assert not {"models", "clients", "settings", "limits"} & set(lines)
    assert lines["state"] == "ok"
    assert Health().is_degraded is False
    assert Health(status="OK", models=(Model(name="other", status="DEGRADED"),)).is_degraded


def test_the_command_imports_neither_the_client_nor_what_computes() -> None:
    heavy = "{'numpy', 'google', 'httpx', 'rich', 'psutil'}"
    code = f"import sys, runed.cli.status; print([n for n in sys.modules if n.split('.')[0] in {heavy} or 'runed.client' in n])"
    done = subprocess.run([SCRIPTS / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_documents_the_exit_codes(served: Cli) -> None:
    assert "  4  one runs, but embeddings fail" in served.run("status", "--help").stdout


def test_a_port_that_needs_no_token_is_told_as_open_whatever_the_settings_of_the_command_are(bare: Cli) -> None:
    assert bare.with_environment(RUNED_HTTP="127.0.0.1:0", RUNED_HTTP_TOKEN="off").run("ensure").returncode == 0
    assert "/v1, open to every user of this machine, since RUNED_HTTP_TOKEN is off" in bare.run("status").stdout
    assert json.loads(bare.run("status", "--json").stdout)["http_token"] == ""


def test_programs_that_are_connected_to_the_port_are_named(bare: Cli) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("only Linux tells them")
    assert bare.with_environment(RUNED_HTTP="127.0.0.1:0").run("ensure").returncode == 0
    assert "connected: " not in bare.run("status").stdout
    port = urlsplit(json.loads(bare.run("status", "--json").stdout)["http"]).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)):
        shown, document = bare.run("status").stdout, json.loads(bare.run("status", "--json").stdout)
    assert [client["pid"] for client in document["port_clients"]] == [os.getpid()]
    line = next(line for line in shown.splitlines() if line.startswith("http "))
    assert f"; connected: {document['port_clients'][0]['name']} (pid {os.getpid()})" in line
