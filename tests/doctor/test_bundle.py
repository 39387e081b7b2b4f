"""What the log says, and the archive for a report."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runed.doctor import CHECKS, Finding, Patient, State, examine, logs
from runed.doctor import checks as checks_module
from runed.doctor.bundle import _redactor, write_bundle
from runed.doctor.home import daemon
from runed.errors import DownloadError
from runed.lifecycle.asking import Health, Info
from tests.doctor.conftest import only

Make = Callable[..., Patient]


def line(level: str, message: str, *, age: timedelta = timedelta(), **facts: str) -> str:
    moment = (datetime.now(UTC) - age).isoformat().replace("+00:00", "Z")
    return json.dumps({"timestamp": moment, "level": level, "message": message, **facts, "logger": "runed"})


def test_the_last_errors_are_explained(patient: Make) -> None:
    subject = patient()
    assert only(logs.last_errors, subject).state.value == "ok"
    subject.paths.logs.mkdir()
    lines = [
        line("info", "serving"),
        "Traceback (most recent call last):",
        line("error", "long ago", age=timedelta(days=2)),
        line("warning", "a device failed"),
        line("error", "the bootstrap failed", reason="DISK_FULL"),
        line("error", "failure in the event loop", error_type="builtins.ValueError"),
        line("error", "bootstrap failed", reason="https://host/f could not be downloaded", code=DownloadError.reason),
    ]
    subject.paths.events_log.write_text("\n".join(lines) + "\n")
    first, second, third = logs.last_errors(subject)
    assert first.detail.endswith("the bootstrap failed: DISK_FULL")
    assert "RUNED_HOME to a larger disk" in first.remedy
    assert second.detail.endswith("failure in the event loop: builtins.ValueError")
    assert "--bundle" in second.remedy
    assert third.detail.endswith("bootstrap failed: https://host/f could not be downloaded")
    assert "RUNED_LLAMA_SERVER and RUNED_MODEL" in third.remedy


def test_an_error_that_came_often_is_told_once_and_one_that_is_over_is_no_warning(patient: Make) -> None:
    subject = patient()
    subject.paths.logs.mkdir()
    same = {"reason": "https://host/f could not be downloaded", "code": DownloadError.reason}
    lines = [line("error", "bootstrap failed", age=timedelta(minutes=age), **same) for age in (9, 8, 7)]
    subject.paths.events_log.write_text("\n".join(lines) + "\n")
    found = only(logs.last_errors, subject)
    assert found.detail.startswith("3 times, the last at 2")
    assert found.state is State.WARNING
    over = only(logs.last_errors, replace(subject, health=Health(status="OK", uptime_seconds=60)))
    assert over.detail.endswith("could not be downloaded; before the daemon that runs now began")
    assert (over.state, over.remedy) == (State.OK, "")


def test_the_failure_of_a_daemon_has_the_remedy_of_its_reason(patient: Make) -> None:
    why = "https://host/f could not be downloaded: host cannot be reached"
    subject = patient(health=Health(status="DEGRADED", message=why))
    subject.paths.logs.mkdir()
    assert only(daemon, subject).remedy == "see `runed logs` and `runed logs --engine`"
    lines = [line("error", "bootstrap failed", reason=why, code=DownloadError.reason), line("error", "another one")]
    subject.paths.events_log.write_text("\n".join(lines) + "\n")
    found = only(daemon, subject)
    assert (found.state, found.detail) == (State.FAILED, why)
    own = replace(subject, health=Health(status="DEGRADED", message="the engine /x does not exist; correct the setting"))
    assert (only(daemon, own).detail, only(daemon, own).remedy) == ("the engine /x does not exist", "correct the setting")
    assert found.remedy.startswith("A mirror of the hub is named by HF_ENDPOINT")


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_log_that_is_no_file_is_not_read(patient: Make, tmp_path: Path, kind: str) -> None:
    """A pipe without a writer would block for ever, and a link could lead to a private file."""
    subject = patient()
    subject.paths.logs.mkdir()
    (tmp_path / "private").write_text(line("error", "private") + "\n")
    if kind == "pipe":
        os.mkfifo(subject.paths.events_log)
    elif kind == "link":
        subject.paths.events_log.symlink_to(tmp_path / "private")
    else:
        subject.paths.events_log.mkdir()
    assert only(logs.last_errors, subject).state is State.OK


@pytest.mark.parametrize(
    ("facts", "detail", "remedy"),
    [
        (
            {"message": "llama-server failed", "reason": "the model /m.gguf cannot be read: gone; check the path"},
            "llama-server failed: the model /m.gguf cannot be read: gone",
            "check the path",
        ),
        (
            {"message": "bootstrap failed", "reason": "no network", "code": DownloadError.reason},
            "bootstrap failed: no network",
            "A mirror of the hub is named by HF_ENDPOINT, ",
        ),
        (
            {"message": "llama-server died", "reason": "was ended by SIGKILL; its last words: x"},
            "llama-server died: was ended by SIGKILL; its last words: x",
            "mostly the system does so where memory is short",
        ),
        (
            {
                "message": "llama-server failed",
                "reason": "exited with code 2; its last words: a; b; if that is no engine, unset it",
            },
            "llama-server failed: exited with code 2; its last words: a; b",
            "if that is no engine, unset it",
        ),
        (
            {"message": "llama-server died", "reason": "was ended by SIGSEGV; it said nothing"},
            "llama-server died: was ended by SIGSEGV; it said nothing",
            "see `runed logs` and `runed logs --engine`; if it comes again, report it",
        ),
        (
            {"message": "a batch failed", "error_type": "builtins.ValueError"},
            "a batch failed: builtins.ValueError",
            "see `runed logs` and `runed logs --engine`; if it comes again, report it",
        ),
    ],
)
def test_a_remedy_is_that_of_the_error_and_not_this_command(
    patient: Make, facts: dict[str, str], detail: str, remedy: str
) -> None:
    subject = patient()
    subject.paths.logs.mkdir()
    message = facts.pop("message")
    subject.paths.events_log.write_text(line("error", message, age=timedelta(), **facts) + "\n")
    found = only(logs.last_errors, subject)
    assert found.detail.endswith(f" UTC: {detail}")
    assert found.remedy.startswith(remedy)
    assert "`runed doctor`" not in found.remedy


def test_a_daemon_that_fails_is_not_passed_over_where_the_log_has_nothing(patient: Make) -> None:
    found = only(logs.last_errors, patient(health=Health(status="DEGRADED")))
    assert "the failure of the daemon is told above" in found.detail


def test_a_check_that_breaks_does_not_hide_the_others(patient: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Patient) -> Iterator[Finding]:
        yield from ()
        raise ZeroDivisionError

    monkeypatch.setattr(checks_module, "CHECKS", (breaks, *CHECKS[:2]))
    found = list(examine(patient()))
    assert [finding.check for finding in found] == ["breaks", "/proc", "WSL"]
    assert (found[0].state, "ZeroDivisionError" in found[0].detail) == (State.WARNING, True)


def contents_of(target: Path) -> dict[str, str]:
    with tarfile.open(target) as archive:
        return {Path(member.name).name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr] # all are files


def test_the_archive_has_no_secret_and_no_name(patient: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    subject = patient(
        {"RUNED_MANIFEST": "https://me:secretpass@mirror.test/m.json", "RUNED_MODEL": "/home/alice/models/m.gguf"},
        info=Info(model_name="m"),
        health=Health(status="OK", message="for alice"),
    )
    subject.paths.http_token.write_text("tokensecret\n")
    subject.paths.logs.mkdir()
    lines = [
        line("error", "fetching https://bob:passsecret@mirror.test/x", note="Authorization: Bearer bearersecret"),
        line("info", "home /home/alice/.runed", detail="tokensecret hf_secretsecret api_key=keysecret"),
    ]
    subject.paths.events_log.write_text("\n".join(lines))
    (subject.paths.logs / "llama-server.log").write_text("a text of a user")
    target = tmp_path / "report.tar.gz"
    names = write_bundle(target, subject, [Finding("home", State.FAILED, "/home/alice/.runed is open", "chmod")])
    assert target.stat().st_mode & 0o777 == 0o600
    contents = contents_of(target)
    assert sorted(contents) == sorted(names)
    assert {"machine.json", "findings.json", "settings.json", "state.json", "files.txt", "events.log"} <= set(contents)
    everything = "\n".join(contents.values())
    for secret in ("secret", "alice", "a text of a user"):
        assert secret not in everything
    assert "llama-server.log" in contents["files.txt"]
    assert json.loads(contents["findings.json"])[0]["detail"].endswith("/USER/.runed is open")
    assert "mirror.test" in contents["settings.json"]


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("GET https://b.test/f.gguf?X-Amz-Credential=a&sig=secret#part now", "GET https://b.test/f.gguf now"),
        ("hf_secretsecret, sk-secretsecret or eyJhbGciOi.secret.secret", "REDACTED, REDACTED or REDACTED"),
        ("AKIASECRETSECRETSECR told", "REDACTED told"),
        ("Set-Cookie: a=secret; b=secret", "Set-Cookie: REDACTED"),
        (
            "pass=secret passwd=secret pwd: secret Cookie: secret",
            "pass=REDACTED passwd=REDACTED pwd: REDACTED Cookie: REDACTED",
        ),
        ("carol:secret@proxy:3128 refused", "proxy:3128 refused"),
        ("--api-key secret --model m", "--api-key REDACTED --model m"),
        (r"C:\Users\carol\runed", r"C:\Users\USER\runed"),
        ("x-api=headersecret and proxysecret", "x-api=REDACTED and REDACTED"),
        ("http.token: Permission denied", "http.token: Permission denied"),
        ("12:30 all is well@home", "12:30 all is well@home"),
    ],
)
def test_each_kind_of_secret_is_found_and_nothing_else(
    patient: Make, monkeypatch: pytest.MonkeyPatch, text: str, instead: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api=headersecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxysecret@proxy.test:3128")
    assert _redactor(patient())(text) == instead


@pytest.mark.parametrize("part", ["a.", "http://", "-", "--a", "key-", "eyJ", "eyJa.", "token ", "C:\\Users\\"])
def test_a_long_line_is_redacted_at_once(patient: Make, part: str) -> None:
    """A line of 100 KB took 25 s, and one of a megabyte forty minutes."""
    began = time.process_time()
    _redactor(patient())(part * (100_000 // len(part)))
    assert time.process_time() - began < 10


def test_no_way_to_write_a_secret_or_a_name_saves_it(
    patient: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON escapes quotes and letters beyond ASCII, a password may hold an @, and a model may have a key in a file."""
    monkeypatch.setenv("HOME", "/srv/zoë")
    monkeypatch.setenv("LOGNAME", "zoë")
    monkeypatch.setenv("HF_TOKEN", 'quote"secret')
    (tmp_path / "key").write_text("filesecret\n")
    entry = {"url": "https://gpu.test/v1", "api_key_file": str(tmp_path / "key")}
    (home / "config.json").write_text(json.dumps({"models": {"far": entry}}))
    subject = patient({"OTEL_EXPORTER_OTLP_ENDPOINT": "me:otelsecret@collector.test:4318"})
    subject.paths.logs.mkdir()
    lines = [
        line("error", 'quote"secret', path="/mnt/zoë_2/x", note="http://me:p@ss@secret@mirror.test/", key="filesecret"),
        line(
            "error", 'said {"token": "jsonsecret"} and Authorization: Basic basicsecret', note="authorization=Bearer%20secret"
        ),
        "password: 'plainsecret'",
    ]
    subject.paths.events_log.write_text("\n".join(lines))
    (home / os.fsdecode(b"not-utf-8-\xff\n")).touch()
    target = tmp_path / "report.tar.gz"
    write_bundle(target, subject, [Finding("home", State.FAILED, "/srv/zoë and zoë's file")])
    contents = contents_of(target)
    everything = "\n".join(contents.values())
    for secret in ("secret", "zoë", json.dumps("zoë")[1:-1]):
        assert secret not in everything
    assert "@mirror" not in everything
    assert "not-utf-8-\\udcff\\n" in contents["files.txt"]
    assert json.loads(contents["findings.json"])[0]["detail"] == "~ and USER's file"
    assert "collector.test" in contents["settings.json"]
