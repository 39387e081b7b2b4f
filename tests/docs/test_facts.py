"""What the pages name exists, and the numbers of their sentences are those of the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from runed_proto.runed.v1 import runed_pb2

import runed
from runed import paths
from runed.api import large
from runed.api.page import access
from runed.api.rpc import health
from runed.backends import comparing
from runed.backends.llama import profile
from runed.backends.remote import backend, link, space
from runed.backends.remote import http as remote_http
from runed.cli.boundary import EXIT_CODES_HELP
from runed.cli.embed import COUNTED_BYTES
from runed.cli.main import COMMANDS
from runed.daemon import bootstrapper, choosing, draining, otel, run, seats
from runed.domain import model
from runed.log import MAX_LOG_BYTES
from runed.own_models import RemoteModel
from runed.routing import centroids, store
from runed.scheduling import preparing, scheduler
from runed.server import serving
from runed.settings import SETTINGS, load_settings
from tests.docs.blocks import PAGES, ROOT
from tests.docs.test_tables import SOURCES, rows
from tests.support import RunningDaemon

OF_TODAY = [page for page in PAGES if page != "CHANGELOG.md" and not page.startswith("docs/decisions/")]
"""The pages that tell how runed is. Changes and decisions tell how it was."""

TEXTS = {page: (ROOT / page).read_text() for page in OF_TODAY}

_SPAN = re.compile(r"(?<!`)(?:``(?!`) ?(.+?) ?``|`(?!`)([^`\n]+)`)(?!`)")

MIB = 1024 * 1024


def spans(page: str) -> list[str]:
    """Return the code in the sentences of a page."""
    prose = re.sub(r"^ *```.*?^ *```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    return [double or single for double, single in _SPAN.findall(prose)]


def commands(page: str) -> Iterator[str]:
    """Yield what a page lets the user type: the code of its sentences, and the lines of its blocks of shell."""
    yield from spans(page)
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", TEXTS[page], re.MULTILINE | re.DOTALL):
        yield from (line.partition("  #")[0] for line in block.replace("\\\n", " ").splitlines())


@pytest.fixture(scope="session")
def options() -> dict[str, str]:
    """The help of each command, which tells all of its options."""
    shown = {}
    for command in COMMANDS:
        argv = [sys.executable, "-m", "runed", command, "--help"]
        shown[command] = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("page", OF_TODAY)
def test_commands_have_the_options_that_a_page_names(page: str, options: dict[str, str]) -> None:
    for text in commands(page):
        if text.startswith(("podman", "docker")):  # where it is the name of the container
            continue
        for command, rest in re.findall(r"(?:^|[\s(])runed ([a-z]+)\b([^|;&)]*)", text):
            assert command in COMMANDS, text
            unknown = [option for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest) if option not in options[command]]
            assert not unknown, text


OTHERS = ("Makefile", "proto/**/*.proto", "clients/go/*.go", "clients/ts/src/*.ts", "tests/conftest.py", "tools/*.py")
FOREIGN = {
    *("AWS_ACCESS_KEY_ID", "LD_PRELOAD", "OLLAMA_NUM_PARALLEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "PYTEST_ADDOPTS"),
    *("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER"),
}
"""Variables of other programs, which our sources do not name."""


@pytest.mark.parametrize("page", OF_TODAY)
def test_names_in_capitals_exist(page: str) -> None:
    """Settings, reasons, codes and other variables."""
    others = "\n".join(path.read_text() for pattern in OTHERS for path in ROOT.glob(pattern))
    known = set(re.findall(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", SOURCES + others)) | FOREIGN
    named = set(re.findall(r"(?<![\w<*])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w*=])", " ".join(spans(page))))
    assert named <= known


@pytest.mark.parametrize("page", OF_TODAY)
def test_names_of_the_contract_exist(page: str) -> None:
    messages = runed_pb2.DESCRIPTOR.message_types_by_name
    for name, field in re.findall(r"\b([A-Z][A-Za-z]+(?:Request|Response))\.([a-z_]+)", " ".join(spans(page))):
        assert field in messages[name].fields_by_name


@pytest.mark.parametrize("page", OF_TODAY)
def test_names_of_the_python_client_exist(page: str) -> None:
    for name in re.findall(r"(?<![\w.])client\.([a-z_]+)\(", " ".join(spans(page))):
        assert hasattr(runed.Client, name), name
    for name in re.findall(r"(?<![\w./])runed\.([a-z_]+)\(", " ".join(spans(page))):
        assert hasattr(runed, name), name


@pytest.mark.parametrize("page", OF_TODAY)
def test_names_of_the_other_clients_exist(page: str) -> None:
    go = "\n".join(path.read_text() for path in (ROOT / "clients" / "go").glob("*.go"))
    ts = "\n".join(path.read_text() for path in (ROOT / "clients" / "ts" / "src").glob("*.ts"))
    text = " ".join(spans(page))
    for name in re.findall(r"(?<![\w.])(?:client|runed)\.([A-Z]\w+)", text):
        assert hasattr(runed, name) or re.search(rf"\b{name}\b", go), name
    for name in re.findall(r"(?<![\w.])client\.([a-z]+[A-Z]\w*)\(", text):
        assert re.search(rf"\b{name}\(", ts), name


@pytest.mark.parametrize("page", OF_TODAY)
def test_targets_of_make_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in commands(page):
        assert set(re.findall(r"^make ([a-z-]+)", text)) <= targets, text


@pytest.mark.parametrize("page", OF_TODAY)
def test_extras_exist(page: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\b(?:runed|\$RUNED)\[([a-z,-]+)\]", TEXTS[page])
    assert {extra for names in named for extra in names.split(",")} <= set(extras)


@pytest.mark.parametrize("page", OF_TODAY)
def test_a_configuration_within_a_sentence_is_accepted(page: str, home: Path) -> None:
    for text in spans(page):
        if text.startswith('{"version": 1'):
            (home / "config.json").write_text(text)
            assert load_settings(home=home, environ={}).written


def test_the_files_of_a_home_are_told() -> None:
    named = [
        name.rstrip("/") for row in rows("configuration.md", "| path | content |") for name in re.findall(r"`(.+?)`", row[0])
    ]
    tops = {name.partition("/")[0] for name in named}
    assert {name for name in paths._NAMES if not name.endswith(".lock")} <= tops
    for name in named:
        last = name.rpartition("/")[2].replace("<name>", "").replace("*", "")
        assert last.rpartition(".")[0] in SOURCES or last in SOURCES, name


def test_exit_codes_are_told() -> None:
    shown = [tuple(row) for row in rows("configuration.md", "| code | meaning |")]
    assert [code for code, _ in shown] == re.findall(r"^  (\d+) ", EXIT_CODES_HELP, re.MULTILINE)
    told = dict(re.findall(r"^  (\d+) +(.+)$", EXIT_CODES_HELP, re.MULTILINE))
    assert {code: meaning for code, meaning in shown if code != "130"} == {
        code: meaning for code, meaning in told.items() if code != "130"
    }


def test_each_metric_is_told(minilm_daemon: RunningDaemon) -> None:
    with minilm_daemon.http() as http:
        families = list(text_string_to_metric_families(http.get("/metrics").text))
    there = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    table = rows("observability.md", "| metric | labels | tells |")
    told = {name for row in table for name in re.findall(r"`(.+?)`", row[0])}
    assert {name for name in there if name.startswith("runed_")} <= told
    assert {name.removesuffix("_total") for name in told - there if name.removesuffix("_total") not in SOURCES} == set()


def sizes() -> dict[str, list[int]]:
    """Return the megabytes of the downloads of the manifest: of engines, and of accelerators by name."""
    manifest = json.loads((ROOT / "runed" / "bootstrap" / "default_manifest.json").read_text())
    found: dict[str, list[int]] = {"engine": []}
    for platform in manifest["platforms"].values():
        found["engine"].append(platform["llama_server"]["size"])
        for each in platform.get("accelerators", []):
            libraries = sum(library["size"] for library in each.get("libraries", []))
            found.setdefault(each["name"], []).append(each["size"] + libraries)
    return {name: [round(size / 1e6) for size in numbers] for name, numbers in found.items()}


WORDS = {1.0: "one", 2.0: "two", 3.0: "three"}

SIZES = sizes()
GPUS = [size for name, numbers in SIZES.items() if name != "engine" for size in numbers]

REMOTE = RemoteModel(url="http://x")

NUMBERS = {
    "README.md": [
        f"Python {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['requires-python'].strip('>=')} or newer",
    ],
    "docs/index.md": [f"an engine ({min(SIZES['engine'])} to {max(SIZES['engine'])} MB)"],
    "docs/operations.md": [
        f"| {min(SIZES['engine'])} to {max(SIZES['engine'])} MB, by platform |",
        f"an engine for it is downloaded, too: {min(GPUS)} to {max(GPUS)} MB",
        f"the engine was stopped after {SETTINGS['idle_timeout'].default.removesuffix('m')} minutes without a text",
    ],
    "docs/devices.md": [
        *(f"| {size} MB |" for size in (*SIZES["cuda"], *SIZES["rocm"])),
        f"| {SIZES['vulkan'][0]} or {SIZES['vulkan'][1]} MB |",
        f"if it embedded {comparing.FASTER - 1:.0%} more texts a second".replace("%", " %"),
        f"must have a cosine of {comparing._LEAST_COSINE} or more",
        f"must be {comparing._LEAST_COSINE_QUANTIZED} or more",
        "by profile, {}, {} or {} texts of up to {}, {} or {} tokens together".format(
            *(slots for slots, _ in profile._ON_DEVICE.values()), *(tokens for _, tokens in profile._ON_DEVICE.values())
        ),
        f"for {WORDS[choosing._SECONDS]} second each, in {WORDS[choosing.ROUNDS]} rounds",
    ],
    "docs/configuration.md": [
        f"rotated at {MAX_LOG_BYTES // MIB} MiB",
        *(
            f"| `{name}` | {slots}{f', or {together} where texts share a context' if together < slots else ''} | {tokens} |"
            for name, (slots, _) in profile._BUILT_IN.items()
            for together, tokens in [(min(slots, profile._MAX_SLOTS_TOGETHER), profile._PASSES[name])]
        ),
        f"{serving.MAX_STRANGERS} connections at most",
        f"if its path has {paths.MAX_SOCKET_PATH + 1} bytes or more",
    ],
    "docs/jobs.md": [f"for inputs of at most {COUNTED_BYTES // MIB} MiB"],
    "docs/models.md": [f"counts as {seats._FIRST_SHARE} times its file and {seats._FIRST_BYTES // MIB} MiB"],
    "docs/remote.md": [
        f"{REMOTE.batch} by default. An engine that takes fewer",
        f"of the whole daemon; {REMOTE.concurrency} by default",
        f"with all of its tries; `{REMOTE.timeout:g}s` by default",
        f"if their cosine is {space.AGREEMENT} or more",
        f"(once in {backend._NEW_PROBE_AGE:g} seconds at most)",
        "every ten minutes of use" if backend._PROBE_AGE == 600 else f"{backend._PROBE_AGE:g} seconds of use",
        f"An answer of more than {link._VECTOR_BYTES // 1024} KiB for each text",
        f"up to {'five' if remote_http._ATTEMPTS == 5 else remote_http._ATTEMPTS} times within",
    ],
    "docs/service.md": ["within half a second" if run.EVICTION_CHECK_INTERVAL == 0.5 else f"{run.EVICTION_CHECK_INTERVAL} s"],
    "docs/comparison.md": [f"{preparing.MAX_BATCH_TEXTS:,}, or a stream"],
    "docs/page.md": [
        f"Access ends after {access.SESSION_SECONDS // 3600} hours",
        "within a minute" if access.LINK_SECONDS == 60 else f"within {access.LINK_SECONDS} seconds",
    ],
    "docs/observability.md": [f"what is left for {otel._LAST_SECONDS:g} seconds"],
    "docs/reliability.md": [
        f"for {draining.DEFAULT_GRACE:g} s at most by default",
        f"After a signal, these calls get {draining.SIGNAL_GRACE:g} s",
    ],
    "docs/protocol.md": [
        f"| texts in a batch | {preparing.MAX_BATCH_TEXTS:,} |",
        f"| 1 to {preparing.MAX_BATCH_TEXTS:,} texts, answered together",
        f"scores 1 to {preparing.MAX_BATCH_TEXTS:,} documents",
        f"| bytes of a request | {scheduler.MAX_REQUEST_BYTES // MIB} MiB |",
        f"in JSON values and names | {large.MOST_PARTS:,} |",
        f"only counted | {preparing.MAX_TEXT_CHARACTERS:,} |",
        f"| characters of an instruction | {model.MAX_INSTRUCTION:,} |",
        f"| values of a centroid set | {centroids.MAX_SET_BYTES // MIB} MiB of float32",
        f"of a centroid set | {store.MAX_NAME_BYTES} bytes each",
        f"must arrive | {store.RECEIVE_SECONDS:g} s |",
        f"waits for its turn for {store.TURN_SECONDS:g} seconds",
        f"| grace of a shutdown | {draining.MAX_GRACE:g} s |",
        f"as long as the daemon has fewer than {serving.MAX_CONNECTIONS} connections",
        f"A socket path of {paths.MAX_SOCKET_PATH + 1} bytes or more",
        f"when it has waited {bootstrapper.MAX_WAIT:g} seconds",
        f"{health.MAX_WATCHES} watches may be open at a time",
    ],
}
"""Sentences with a number of the code, by page."""


@pytest.mark.parametrize(("page", "sentence"), [(page, sentence) for page in NUMBERS for sentence in NUMBERS[page]])
def test_a_number_is_that_of_the_code(page: str, sentence: str) -> None:
    assert sentence in " ".join(TEXTS[page].split())


@pytest.mark.parametrize("page", ["README.md", "docs/comparison.md", "docs/operations.md"])
def test_figures_are_those_of_the_measurements(page: str) -> None:
    """Times, rates and memory. A figure may be rounded."""
    measured = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", TEXTS["docs/benchmarks.md"])]
    units = {"ms": 1.0, "s": 1000.0, "texts/s": 1.0, "MiB": 1.0}
    for number, unit in re.findall(r"(?<![\d.,])(\d[\d,]*(?:\.\d+)?) (ms|s|texts/s|MiB)\b", TEXTS[page]):
        digits = len(number.partition(".")[2])
        value = float(number.replace(",", ""))
        alike = {round(one, digits) for one in measured} | {round(one / units[unit], digits) for one in measured}
        assert value in alike, f"{number} {unit}"
