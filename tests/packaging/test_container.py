"""What can be known of the image without building it, which `python -m tools.container` does."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from runed.settings import load_settings
from tests.packaging.environments import build

ROOT = Path(__file__).resolve().parent.parent.parent
CONTAINERFILE = (ROOT / "Containerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n\s*", "", CONTAINERFILE)


def copied() -> list[tuple[list[str], str]]:
    """Return the sources and the target of each COPY from the repository."""
    found = re.findall(r"^COPY (?!--)(.+) (\S+)$", INSTRUCTIONS, re.MULTILINE)
    return [(sources.split(), target) for sources, target in found]


def variables() -> dict[str, str]:
    lines = re.findall(r"^ENV (.+)$", INSTRUCTIONS, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def test_files_that_are_copied_are_in_the_context() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for names, _ in copied() for source in names}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.slow
def test_copied_files_are_enough_to_install_runed(tmp_path: Path) -> None:
    for sources, target in copied():
        for source in sources:
            place = tmp_path / target.strip("/")
            place = place / Path(source).name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    names = zipfile.ZipFile(build(tmp_path / "source", tmp_path / "dist", "--wheel")).namelist()
    assert {"runed/cli/serve.py", "runed_proto/runed/v1/runed_pb2.py"} <= set(names)


def test_settings_of_the_image_are_accepted_and_agree_with_its_volume_and_port(home: Path) -> None:
    found = variables()
    volume = re.search(r"^VOLUME (\S+)$", INSTRUCTIONS, re.MULTILINE)
    port = re.search(r"^EXPOSE (\d+)$", INSTRUCTIONS, re.MULTILINE)
    assert volume is not None
    assert port is not None
    assert found["RUNED_HOME"] == volume[1]
    settings = load_settings(home=home, environ=found)
    assert settings.http == ("0.0.0.0", int(port[1]))  # compared, not listened on
    assert settings.http_token
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["runed"]
    assert service["volumes"] == [f"home:{volume[1]}"]
    assert service["ports"] == [f"127.0.0.1:{port[1]}:{port[1]}"], "nothing encrypts the port, so it is for this machine"
