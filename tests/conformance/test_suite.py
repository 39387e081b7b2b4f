"""Connect's own conformance suite: every case for servers, in each protocol and HTTP version of the daemon."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "connectrpc.com/conformance"
PROTOS = ("connectrpc/conformance/v1/service.proto", "connectrpc/conformance/v1/server_compat.proto")


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract of the suite's service, as a descriptor set made from the suite's sources. This repository has no copy."""
    listed = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", MODULE], cwd=ROOT / "tools" / "go", capture_output=True, text=True, check=True
    )
    include = Path(listed.stdout.strip()) / "proto"
    output = tmp_path_factory.mktemp("suite") / "descriptors.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{include}", "--include_imports", f"--descriptor_set_out={output}"]
    subprocess.run([*command, *PROTOS], check=True)
    return output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_case_of_the_suite_passes_but_the_known_ones(descriptors: Path) -> None:
    program = shutil.which("connectconformance")
    assert program, "connectconformance is missing: run `make setup`"
    options = ["--mode", "server", "--conf", str(HERE / "suite.yaml")]
    options += ["--known-failing", f"@{HERE / 'known-failing.txt'}", "--known-flaky", f"@{HERE / 'known-flaky.txt'}"]
    # Few cases at a time: some allow a server 100 ms to notice a deadline, and two cores under load would miss that.
    options += ["--parallel", "4", "--max-servers", "2"]
    server = [sys.executable, "-m", "tests.conformance.server", str(descriptors)]
    suite = subprocess.run([program, *options, "--", *server], cwd=ROOT, capture_output=True, text=True, check=False)
    failed = suite.stdout[suite.stdout.find("FAILED:") :] if "FAILED:" in suite.stdout else suite.stdout
    assert suite.returncode == 0, f"{failed}\n{suite.stderr}"
