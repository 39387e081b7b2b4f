"""`runed bench` with the real daemon, engine and model: its output, the profile it keeps, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from runed.cli.tables import print_table, table
from tests.backends.support import FakeEngine
from tests.cli.support import Cli, interrupt
from tests.support import wait_until


def engines(pid: int) -> list[psutil.Process]:
    """Return the engines that are children of a process."""
    try:
        return [child for child in psutil.Process(pid).children() if "--parallel" in child.cmdline()]
    except psutil.Error:  # one that ended just now
        return []


def test_bench_as_json(served: Cli) -> None:
    done = served.run("bench", "--json", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert 0 < document["short_text_p50"] <= document["short_text_p99"] < 10
    assert 0 < document["cached_text_p50"] < document["short_text_p99"]
    assert document["texts"] >= 1
    # Twelve words have twelve tokens at least, and the special one.
    assert document["tokens_per_second"] >= 13 * document["texts_per_second"] > 0
    assert document["model_identity"].startswith("sha256:")
    assert document["profile"] == "balanced"


def test_bench_for_people(served: Cli) -> None:
    done = served.run("bench", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    title, alone, cached, bulk = done.stdout.splitlines()
    assert "profile balanced" in title
    assert re.fullmatch(r"one short text +p50 [0-9.,]+ ms +p99 [0-9.,]+ ms *", alone)
    assert re.fullmatch(r"a cached text +p50 [0-9.,]+ ms *", cached)
    assert re.fullmatch(r"\d+ texts at once +[0-9.,]+ texts/s +[0-9.,]+ tokens/s *", bulk)


def test_tune_leaves_the_daemon_alone_and_its_next_start_runs_by_the_result(cli: Cli) -> None:
    assert cli.run("embed", "a text").returncode == 0
    daemon = cli.daemon()
    assert daemon is not None
    (engine,) = engines(daemon.pid)

    done = cli.run("bench", "--tune", "--seconds", "0.02", "--force")
    assert done.returncode == 0, done.stderr
    assert cli.daemon() == daemon
    assert engines(daemon.pid) == [engine]
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["texts", "tokens", "threads"]
    assert any("memory" in row for row in rows)
    assert any(row.startswith("tokens at once") for row in rows)
    assert str(cli.paths.tuning) in done.stdout
    assert "runed stop" in done.stdout

    document = json.loads(cli.paths.tuning.read_text())
    (tuning,) = document["tunings"].values()
    for profile in tuning["profiles"]:
        profile["slots"] = {"memory": 1, "balanced": 5, "throughput": 6}[profile["name"]]
    cli.paths.tuning.write_text(json.dumps(document))
    cli.stop()
    done = cli.with_environment(RUNED_CACHE_SIZE="0").run("bench", "--json", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cached_text_p50"] is None
    daemon = cli.daemon()
    assert daemon is not None
    (engine,) = engines(daemon.pid)
    command = engine.cmdline()
    assert command[command.index("--parallel") + 1] == "5"
    status = cli.run("status").stdout
    assert f"profile balanced as tuned at {tuning['measured_at']}" in status
    assert "slots=5 (tuned)" in status
    assert f"5 texts at once, a context of 2,048 tokens, tuned at {tuning['measured_at']}" in status

    for words in ("removed", "nothing to remove"):
        done = cli.run("bench", "--reset")
        assert (done.returncode, done.stderr.startswith(words) or done.stdout.startswith(words)) == (0, True)
    cli.stop()
    assert cli.run("embed", "a text").returncode == 0
    assert "tuned" not in cli.run("status").stdout


@pytest.mark.slow
def test_a_tuning_that_is_not_kept_is_a_failure(cli: Cli) -> None:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        # Each of the many starts of the engine shares the processors with the burners.
        done = cli.run("bench", "--tune", "--seconds", "0.02", timeout=180)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert done.returncode == 1
    assert done.stderr.endswith("runed: the result is not kept; with --force it is\n")
    assert "measure again when the machine is quiet" in done.stderr
    assert not cli.paths.tuning.exists()


def test_ctrl_c_while_tuning_leaves_nothing_behind(cli: Cli) -> None:
    temporary = cli.home / "tmp"
    temporary.mkdir()
    process = cli.with_environment(TMPDIR=str(temporary)).start("bench", "--tune", "--json")
    (engine,) = wait_until(lambda: engines(process.pid), what="the engine")
    assert [each.name[:12] for each in temporary.iterdir()] == ["runed-bench-"]
    code, output, errors = interrupt(process)
    assert (code, output) == (130, "")
    assert "Traceback" not in errors
    assert not engine.is_running()
    assert list(temporary.iterdir()) == []
    assert not cli.paths.tuning.exists()
    assert cli.daemon() is None


DEVICE = "Vulkan0: fake device (2048 MiB, 2000 MiB free)"


@pytest.fixture
def fake(cli: Cli) -> FakeEngine:
    """An engine that can have a device."""
    return FakeEngine(cli.home / "engine")


def choices(cli: Cli) -> list[Any]:
    document: list[Any] = json.loads(cli.paths.device_choice.read_text())
    return document


def test_devices_are_compared_and_the_fastest_is_used_by_the_next_start(cli: Cli, fake: FakeEngine) -> None:
    fake.behave(devices=[DEVICE])
    cli = cli.with_environment(RUNED_LLAMA_SERVER=str(fake.executable), RUNED_CTX_SIZE="64")
    done = cli.with_environment(RUNED_ENGINE="vulkan").run("bench", "--tune", "--seconds", "0.01", "--force", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [each["accelerator"] for each in document["devices"]] == ["vulkan", "cpu"]
    assert [len(each["profiles"]) for each in document["devices"]] == [3, 3]
    best = max(document["devices"], key=lambda each: max(way["texts_per_second"] for way in each["measurements"]))
    (choice,) = choices(cli)
    assert document["accelerator"] in {"vulkan", best["accelerator"]}, "the present one, or the fastest"
    assert (choice["chosen"] or {"accelerator": "cpu"})["accelerator"] == document["accelerator"]
    assert choice["chosen_at"] == document["measured_at"]
    assert "on vulkan: fake device" in done.stderr

    # Which of two alike is the faster one is chance.
    for chosen, expected in [(choice["compared"][0], "fake device (vulkan), the"), (None, "the processors, the")]:
        cli.paths.device_choice.write_text(json.dumps([choice | {"chosen": chosen}]))
        assert cli.run("embed", "a text").returncode == 0
        line = next(line for line in cli.run("status").stdout.splitlines() if line.startswith("device"))
        assert line.split(maxsplit=1)[1].startswith(f"{expected} fastest as measured at {choice['chosen_at']} (`runed bench")
        cli.stop()

    done = cli.run("bench", "--reset")
    assert str(cli.paths.tuning) in done.stdout + done.stderr
    assert str(cli.paths.device_choice) in done.stdout + done.stderr
    assert not cli.paths.device_choice.exists()
    assert cli.run("embed", "a text").returncode == 0
    assert "fastest" not in cli.run("status").stdout


def test_a_device_that_fails_is_left_out_of_the_comparison(cli: Cli, fake: FakeEngine) -> None:
    fake.behave(devices=[DEVICE], on_device={"exit": "device lost"})
    cli = cli.with_environment(RUNED_LLAMA_SERVER=str(fake.executable), RUNED_CTX_SIZE="64", RUNED_ENGINE="vulkan")
    done = cli.run("bench", "--tune", "--seconds", "0.01", "--force")
    assert done.returncode == 0, done.stderr
    assert "runed: vulkan: fake device: the engine could not be measured in any way; " in done.stderr
    assert "the device of the next start is kept, too: the processors" in done.stdout
    assert "RUNED_ENGINE=vulkan decides nevertheless" in done.stderr
    (choice,) = choices(cli)
    assert (choice["chosen"], choice["compared"][0]["accelerator"]) == (None, "vulkan")


@pytest.fixture
def varied(cli: Cli, tiny_qwen3: Path) -> Cli:
    """A home whose manifest has a model in two variants, of which the exact one is served."""
    sha256 = hashlib.sha256(tiny_qwen3.read_bytes()).hexdigest()
    models = {
        "tiny.q8_0": {"derive": {"from": "tiny.f32", "type": "Q8_0"}},
        "tiny.f32": {"url": tiny_qwen3.as_uri(), "sha256": sha256},
        "tiny.q1_0": {"derive": {"from": "tiny.f32", "type": "NO_TYPE"}},
        "another.f32": {"url": tiny_qwen3.as_uri(), "sha256": sha256},
    }
    manifest = cli.home / "manifest.json"
    manifest.write_text(json.dumps({"version": 1, "platforms": {}, "models": models, "default_model": "tiny.f32"}))
    return cli.with_environment(RUNED_MODEL="", RUNED_MANIFEST=str(manifest))


def test_variants_are_compared_with_the_most_exact_one_and_none_is_switched(varied: Cli) -> None:
    done = varied.run("bench", "--variants", "--seconds", "0.02", "--json")
    assert done.returncode == 0, done.stderr
    exact, packed = json.loads(done.stdout)["variants"]
    assert (exact["name"], packed["name"]) == ("tiny.f32", "tiny.q8_0")
    assert packed["compared_with"] == exact["compared_with"] == "tiny.f32"
    assert exact["mean_cosine"] == pytest.approx(1.0, abs=1e-9)
    assert 0.99 < packed["least_cosine"] <= packed["mean_cosine"] < 0.999999
    assert packed["file_bytes"] < exact["file_bytes"] == varied.paths.model("tiny.f32").stat().st_size
    assert all(each["memory_bytes"] > each["file_bytes"] for each in (packed, exact))
    assert all(each["texts_per_second"] > 0 < each["lone_seconds"] for each in (packed, exact))
    assert "runed: tiny.q1_0 is left out: tiny.f32 serves instead of tiny.q1_0, which could not be made" in done.stderr
    assert {path.name for path in varied.paths.models.iterdir()} == {"tiny.q8_0.gguf", "tiny.f32.gguf"}
    assert not varied.paths.tuning.exists()
    assert varied.run("embed", "a text").returncode == 0
    assert "(tiny.f32)" in varied.run("status").stdout


def test_variants_can_be_named(varied: Cli) -> None:
    done = varied.run("bench", "--variants", "tiny.q8_0", "tiny.f32", "--seconds", "0.02")
    assert done.returncode == 0, done.stderr
    header, packed, exact, *rest = done.stdout.splitlines()
    assert header.split()[:4] == ["variant", "file", "memory", "alone"]
    assert (packed.split()[0], exact.split()[0]) == ("tiny.q8_0", "tiny.f32")
    assert exact.endswith("1.00000")
    assert "those to tiny.f32, of 32 texts" in " ".join([*rest, done.stderr])
    done = varied.run("bench", "--variants", "tiny.q9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no model 'tiny.q9'; it has another.f32, tiny.f32, tiny.q1_0, tiny.q8_0" in done.stderr
    done = varied.run("bench", "--tune", "--variants", "tiny.q9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no model 'tiny.q9'" in done.stderr
    assert "measuring" not in done.stderr


def test_a_model_of_the_users_own_has_no_variants(cli: Cli) -> None:
    done = cli.run("bench", "--variants")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"RUNED_MODEL={cli.environment['RUNED_MODEL']} is a file; unset it" in done.stderr


def test_tune_without_a_model_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    done = cli.with_environment(RUNED_MODEL=str(tmp_path / "none.gguf")).run("bench", "--tune")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_seconds_must_be_a_duration(cli: Cli) -> None:
    done = cli.run("bench", "--seconds", "0")
    assert done.returncode == 2
    assert "not a number of seconds above 0" in done.stderr
    assert list(cli.home.iterdir()) == []


def test_no_name_in_a_table_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    name = "qwen3-embedding-0.6b.q6_K"
    shown = table("variant", *"abcde")
    shown.add_row(name, *["1,234.5 ms"] * 5)
    print_table(shown)
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split("  ")[0].strip() for line in lines[1:]) == name
