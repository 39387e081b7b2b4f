"""Builds the image of `Containerfile`, runs it, and tries what docs/container.md promises: `python -m tools.container`.

No registry of images is asked: the base image is made by debootstrap. buildah runs the containers in a chroot, so that it needs
root and nothing else of the kernel. Files stay in build/container, and the base image is made once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.engine import programs_folder

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "container"
BASE, IMAGE, SUITE = "localhost/debian:trixie-slim", "localhost/runed", "trixie"
MODEL = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"
HOME = "/var/lib/runed"
USER_ID = 10001
URL = "http://127.0.0.1:8321/v1"
DIMENSIONS = 384
PATIENCE = 120.0
"""Seconds that the daemon may take to answer."""


def buildah(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run buildah to its end. Its storage is in `FOLDER`, and its errors are shown."""
    return subprocess.run(["buildah", *arguments], env=environment(), stdout=subprocess.PIPE, text=True, check=check)


def environment() -> dict[str, str]:
    """Return the environment of buildah."""
    return os.environ | {"CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"), "BUILDAH_ISOLATION": "chroot"}


def make_base() -> None:
    """Make the base image of Debian's packages, unless it is there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{FOLDER}/run"\ngraphroot = "{FOLDER}/storage"\n'
    )
    if buildah("inspect", "--type", "image", BASE, check=False).returncode == 0:
        return
    root = FOLDER / "root"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", SUITE, root], check=True)
    container = buildah("from", "scratch").stdout.strip()
    buildah("add", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def build() -> None:
    """Build the image, as `podman build --format docker --tag runed .` does. pip in it trusts what pip here trusts."""
    volumes: list[str] = []
    if authorities := os.environ.get("PIP_CERT"):
        (FOLDER / "pip.conf").write_text("[global]\ncert = /etc/pip-authorities.pem\n")
        volumes = [f"--volume={FOLDER}/pip.conf:/etc/pip.conf:ro", f"--volume={authorities}:/etc/pip-authorities.pem:ro"]
    arguments = ["--format=docker", "--pull=never", f"--build-arg=BASE={BASE}", *volumes, "--tag", IMAGE]
    subprocess.run(["buildah", "build", *arguments, ROOT], env=environment(), check=True)
    config = json.loads(buildah("inspect", "--type", "image", IMAGE).stdout)["Docker"]["config"]
    assert config["User"] == "runed", config
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "runed status || exit 1"], config
    assert list(config["Volumes"]) == [HOME], config
    assert list(config["ExposedPorts"]) == ["8321/tcp"], config
    assert (config["Entrypoint"], config["Cmd"]) == (["runed"], ["serve"]), config


@contextmanager
def container() -> Iterator[str]:
    """Make a container of the image. buildah would put a volume of its own in the place of the one of the image."""
    name = buildah("from", "--pull=never", IMAGE).stdout.strip()
    try:
        buildah("config", "--volume", f"{HOME}-", name)
        yield name
    finally:
        buildah("rm", name)


def ask(token: str, path: str, body: object = None, *, host: str = "127.0.0.1:8321") -> tuple[int, bytes]:
    """Return the status and the answer of the port."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Host": host}
    request = urllib.request.Request(f"{URL}{path}", data=data, headers=headers)  # our own constant
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # as above
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def try_out(home: Path, served: str, other: str) -> None:
    """Ask the daemon of one container from outside, and from another container."""
    deadline = time.monotonic() + PATIENCE
    in_other = ("run", f"--volume={home}:{HOME}:ro", other, "--")
    while buildah(*in_other, "sh", "-c", "runed status || exit 1", check=False).returncode:
        assert time.monotonic() < deadline, "the daemon does not answer"
        time.sleep(1)
    assert buildah(*in_other, "id", "--user").stdout == f"{USER_ID}\n"
    token = buildah("run", f"--volume={home}:{HOME}", served, "--", "cat", f"{HOME}/http.token").stdout.strip()
    assert ask("wrong" * 8, "/models")[0] == 401  # HTTP
    code, answer = ask(token, "/embeddings", {"input": "hello"}, host="runed:8321")
    assert code == 200, answer  # HTTP
    assert len(json.loads(answer)["data"][0]["embedding"]) == DIMENSIONS
    program = "import runed\nwith runed.connect() as client: print(len(client.embed('hello')))"
    assert buildah(*in_other, "/opt/runed/bin/python", "-c", program).stdout == f"{DIMENSIONS}\n"


def run() -> None:
    """Start the daemon in one container, try it, and stop it as podman does."""
    home = FOLDER / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    os.chown(home, USER_ID, USER_ID)
    mounts = [f"--volume={home}:{HOME}", f"--volume={MODEL.parent}:/models:ro", f"--volume={programs_folder()}:/engine:ro"]
    variables = [f"--env=RUNED_MODEL=/models/{MODEL.name}", "--env=RUNED_LLAMA_SERVER=/engine/llama-server"]
    with container() as served, container() as other:
        log = (FOLDER / "daemon.log").open("wb")
        daemon = subprocess.Popen(
            ["buildah", "run", *mounts, *variables, served, "--", "runed", "serve"], env=environment(), stdout=log, stderr=log
        )
        try:
            try_out(home, served, other)
            os.kill(json.loads((home / "daemon.json").read_text())["pid"], signal.SIGTERM)
            assert daemon.wait(PATIENCE) == 0
            assert not (home / "embedding.sock").exists()
        except BaseException:
            sys.stderr.write((FOLDER / "daemon.log").read_text())
            raise
        finally:
            daemon.terminate()
            daemon.wait(PATIENCE)
            log.close()


def main() -> int:
    """Build, run and try the image."""
    missing = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    if missing or os.geteuid():
        sys.stderr.write(f"needs root, buildah and debootstrap; missing: {', '.join(missing) or 'root'}\n")
        return 1
    make_base()
    build()
    run()
    sys.stdout.write("the image is built; the daemon in it answers over its port, and over its socket from another container\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
