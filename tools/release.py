"""Makes the files of a release, and tries each of them in a clean place, as `make release` does.

`dist/` then has the wheel and the source archive for Python, the package for npm, the Go modules as a module proxy serves them,
and the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runed.version import __version__
from tools.thin import leave_client_out

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
SUMS = "SHA256SUMS"

GO_MODULES = {"runed.dev/gen/go": "gen/go", "runed.dev/clients/go": "clients/go"}
"""The folders of the Go modules, by their paths."""

GO_PROGRAM = """\
package main

import (
	"fmt"

	runed "runed.dev/clients/go"
)

func main() { fmt.Printf("%T\\n", runed.Connect) }
"""


def main() -> None:
    """Make the files and try them.

    Raises:
        SystemExit: Something is not committed, or the versions differ, or a file does not work.
    """
    if changed := _run("git", "status", "--porcelain").strip():
        raise SystemExit(f"Commit these first, since a release is made from a commit:\n{changed}")
    if different := {place: version for place, version in versions() if version != __version__}:
        raise SystemExit(f"runed/version.py has {__version__}, but {different}")
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory(prefix="runed-release-") as folder:
        _make(Path(folder))
    files = [path for path in sorted(DIST.rglob("*")) if path.is_file()]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(DIST)}\n" for path in files]
    (DIST / SUMS).write_text("".join(sums))
    with tempfile.TemporaryDirectory(prefix="runed-release-") as folder:
        _try(Path(folder))
    print("".join(sums), end="")
    print(f"All of it works. The sums are in {(DIST / SUMS).relative_to(ROOT)}.")


def versions() -> Iterator[tuple[str, str]]:
    """Yield each place that has the version of runed, beside `runed/version.py`, with the version that stands there."""
    for name in ("package.json", "package-lock.json"):
        yield f"clients/ts/{name}", json.loads((ROOT / "clients" / "ts" / name).read_text())["version"]
    for place, pattern in {
        "clients/go/version.go": r'^const version = "(.+)"$',
        "clients/go/go.mod": r"^\s*runed\.dev/gen/go v(.+)$",
        "clients/ts/src/version.ts": r'"(\d.*)"',
    }.items():
        for version in re.findall(pattern, (ROOT / place).read_text(), re.MULTILINE):
            yield place, version


def _make(folder: Path) -> None:
    _build("--sdist", ROOT, folder)
    [archive] = folder.glob("*.tar.gz")
    _run("tar", "-xf", archive, folder=folder)
    leave_client_out(tree := folder / archive.name.removesuffix(".tar.gz"))
    _build(tree, DIST)
    _build("--wheel", ROOT / "clients" / "python", DIST)
    _run("npm", "pack", "--silent", "--pack-destination", DIST, folder=ROOT / "clients" / "ts")
    # A folder of the working tree may hold more than was committed.
    _run("git", "archive", "--output", folder / "go.tar", "HEAD", *GO_MODULES.values())
    _run("tar", "-xf", "go.tar", folder=folder)
    time = _run("git", "log", "-1", "--format=%cI").strip()
    for module in GO_MODULES.values():
        _run("go", "run", "./modzip", DIST / "go", f"v{__version__}", time, folder / module, folder=ROOT / "tools" / "go")


def _try(folder: Path) -> None:
    client = next(DIST.glob("runed_client-*.whl"))
    for number, path in enumerate([next(DIST.glob("runed-*.whl")), next(DIST.glob("runed-*.tar.gz"))]):
        environment = folder / str(number)
        _run(sys.executable, "-m", "venv", environment)
        _run(environment / "bin" / "pip", "install", "--quiet", client, folder=folder)
        _expect("connect", _run(environment / "bin" / "python", "-c", "import runed; print(runed.connect)", folder=folder))
        _run(environment / "bin" / "pip", "install", "--quiet", path, folder=folder)
        _expect(__version__, _run(environment / "bin" / "runed", "version", folder=folder))

    npm = folder / "npm"
    npm.mkdir()
    (npm / "package.json").write_text('{"private": true}')
    _run("npm", "install", "--silent", "--no-audit", "--no-fund", next(DIST.glob("*.tgz")), folder=npm)
    program = "import('runed-client').then((client) => console.log(typeof client.connect))"
    _expect("function", _run("node", "--eval", program, folder=npm))

    go = folder / "go"
    go.mkdir()
    (go / "main.go").write_text(GO_PROGRAM)
    cache, proxy = _run("go", "env", "GOMODCACHE", "GOPROXY").split()
    # A separate cache, since the user's may hold an earlier try of this version.
    proxies = f"file://{DIST / 'go'},file://{cache}/cache/download,{proxy}"
    environ = {"GOPROXY": proxies, "GONOSUMDB": "runed.dev", "GOMODCACHE": f"{folder / 'modules'}", "GOFLAGS": "-modcacherw"}
    _run("go", "mod", "init", "example.org/tried", folder=go)
    _run("go", "get", *(f"{module}@v{__version__}" for module in GO_MODULES), folder=go, **environ)
    _expect("func(context.Context", _run("go", "run", ".", folder=go, **environ))


def _build(*arguments: str | Path) -> None:
    *options, folder, to = arguments
    _run(sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", to, folder)


def _run(*argv: str | Path, folder: Path = ROOT, **environ: str) -> str:
    result = subprocess.run(argv, cwd=folder, env=os.environ | environ, capture_output=True, text=True, check=False)
    if result.returncode:
        command = " ".join(map(str, argv))
        raise SystemExit(f"{result.stdout}{result.stderr}\n`{command}` failed with exit code {result.returncode}")
    return result.stdout


def _expect(what: str, answer: str) -> None:
    if what not in answer:
        raise SystemExit(f"{what!r} was expected, not {answer!r}")


if __name__ == "__main__":
    main()
