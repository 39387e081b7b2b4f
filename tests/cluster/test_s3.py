"""Jobs of many files on S3, by a real server of its protocol on this machine."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from runed.errors import BackendUnavailableError, SettingsError
from runed.jobs.job import JobResult
from runed.jobs.partition import FileOptions, PartitionJob, run_here
from tests.cli.stand_in import DIM, Options, StandIn
from tests.support import Golden, RunningDaemon

ROWS = 300


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The query of a URL that leads to the server."""
    server: Any = importlib.import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file system whose root is a bucket of the test's own, with two files."""
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNED_HOME", str(tmp_path / "home"))
    fs: Any = importlib.import_module("pyarrow.fs")
    system, _ = fs.FileSystem.from_uri(f"s3://any{server}")
    name = f"bucket-{abs(hash(tmp_path))}"
    system.create_dir(name)
    bucket = fs.SubTreeFileSystem(name, system)
    for part in ("a", "b"):
        rows = {"id": range(ROWS), "text": [f"{part} {number}" for number in range(ROWS)]}
        pa_parquet.write_table(pa.table(rows), f"in/sub/{part}.parquet", filesystem=bucket)
    return bucket


def run(bucket: Any, server: str, options: Options | None = None, **more: Any) -> JobResult:
    job = PartitionJob(
        f"s3://{bucket.base_path}in/**/*.parquet{server}", f"s3://{bucket.base_path}out{server}", cast("FileOptions", more)
    )
    return run_here(job, resume=True, connect=lambda: StandIn(options or Options()))  # type: ignore[arg-type,return-value] # a stand-in


def files(bucket: Any, folder: str) -> list[str]:
    fs: Any = importlib.import_module("pyarrow.fs")
    infos = bucket.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in infos if info.type.name == "File" and info.size)


def test_parts_come_from_s3_and_go_there(bucket: Any, server: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = Options(log=str(log))
    assert run(bucket, server, options) == JobResult(count=2 * ROWS, failed=0)
    written = ["out/_runed/sub/a.parquet.json", "out/_runed/sub/b.parquet.json", "out/sub/a.parquet", "out/sub/b.parquet"]
    assert files(bucket, "out") == written
    table = pa_parquet.read_table("out/sub/b.parquet", filesystem=bucket)
    assert table.num_rows == ROWS
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    log.unlink()
    assert run(bucket, server, options) == JobResult(count=2 * ROWS, failed=0)
    assert not log.exists() or log.read_text() == ""
    bucket.delete_file("out/sub/a.parquet")
    run(bucket, server, options)
    assert len(log.read_text().splitlines()) == ROWS
    assert files(bucket, "out") == written
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_interrupted_part_goes_on_in_the_home(bucket: Any, server: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(BackendUnavailableError):
        run(bucket, server, Options(log=str(log), lost_after=ROWS // 2, in_flight=10))
    assert files(bucket, "out") == []
    first = len(log.read_text().splitlines())
    assert run(bucket, server, Options(log=str(log))) == JobResult(count=2 * ROWS, failed=0)
    assert len(log.read_text().splitlines()) < 2 * ROWS + first // 2
    receipt = json.loads(bucket.open_input_stream("out/_runed/sub/a.parquet.json").read())
    assert receipt["count"] == ROWS


def test_vectors_are_those_of_the_daemon(
    bucket: Any,
    server: str,
    minilm_daemon: RunningDaemon,
    minilm_golden: Golden,
) -> None:
    pa_parquet.write_table(pa.table({"text": minilm_golden.texts}), "golden/x.parquet", filesystem=bucket)
    job = PartitionJob(
        f"s3://{bucket.base_path}golden{server}", f"s3://{bucket.base_path}vectors{server}", {"home": str(minilm_daemon.home)}
    )
    assert run_here(job, resume=False).count == len(minilm_golden.texts)
    table = pa_parquet.read_table("vectors/x.parquet", filesystem=bucket)
    assert minilm_golden.cosines(np.stack(table["embedding"].combine_chunks().to_numpy(zero_copy_only=False))).min() >= 0.9999


def test_bucket_that_is_not_there_is_named(bucket: Any, server: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="s3://nosuchbucket/in cannot be used"):
        PartitionJob(f"s3://nosuchbucket/in{server}", str(tmp_path)).begin()
