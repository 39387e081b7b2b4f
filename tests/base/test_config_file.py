"""Commands change one value of config.json, and keep all else that its owner wrote, also at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runed.config_file import edit_config, with_value, without_value
from runed.errors import SettingsError
from runed.files import NewFile
from runed.locking import LockFile

WRITTEN = """\
{
    "version": 1,
    "//": "a comment,  with \\"{\\" in it",
    "idle_timeout":"30m", "queue_texts":   1e3,
    "models": {
        "e5": {"path": "/e5.gguf", "of_a_newer_version": [1, {"x": null}]}
    }
}
"""


@pytest.fixture
def config(home: Path) -> Path:
    return home / "config.json"


def edit(config: Path, path: list[str], value: object) -> None:
    edit_config(config, config.with_name("config.lock"), lambda text: with_value(text, path, value))


def test_everything_but_the_value_stays_as_it_was_written(config: Path) -> None:
    config.write_text(WRITTEN)
    edit(config, ["models", "mine"], {"path": "/ä.gguf"})
    e5 = '"e5": {"path": "/e5.gguf", "of_a_newer_version": [1, {"x": null}]}'
    mine = '"mine": {\n          "path": "/ä.gguf"\n        }'
    assert config.read_text() == WRITTEN.replace(e5, f"{e5},\n        {mine}")
    edit(config, ["models", "e5"], {"path": "/m"})
    edit(config, ["default_model"], "mine")
    edit_config(config, config.with_name("config.lock"), lambda text: without_value(text, ["models", "e5"]))
    edit_config(config, config.with_name("config.lock"), lambda text: without_value(text, ["queue_texts"]))
    assert config.read_text() == WRITTEN.replace(e5, mine).replace(', "queue_texts":   1e3', "").replace(
        "    }\n}\n", '    },\n    "default_model": "mine"\n}\n'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "version": 1,\n  "a": {\n    "b": 2\n  }\n}\n'),
        ("{}", '{\n  "a": {\n    "b": 2\n  }\n}'),
        (' {"x": [1,\t2]} ', ' {"x": [1,\t2], "a": {"b": 2}} '),
        ('{"a": {"c": 1}, "x": 1}', '{"a": {"c": 1, "b": 2}, "x": 1}'),
        ('{"a": null}', '{"a": {"b": 2}}'),
        ('{"a": {"b": [3]}, "a": {"b": 4}}', '{"a": {"b": [3]}, "a": {"b": 2}}'),
        ('{\r\n\t"x": 1\r\n}', '{\r\n\t"x": 1,\r\n\t"a": {\r\n\t  "b": 2\r\n\t}\r\n}'),
        ('{\n  "a": {}\n}', '{\n  "a": {\n    "b": 2\n  }\n}'),
        ('\ufeff{"a": 1}', '\ufeff{"a": {"b": 2}}'),
    ],
)
def test_styles_of_files(before: str, after: str, config: Path) -> None:
    if before:
        config.write_bytes(before.encode())
    edit(config, ["a", "b"], 2)
    assert config.read_bytes().decode() == after


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["a", "b", 'q"\\', "ä"])


@given(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.lists(KEYS, min_size=1, max_size=3),
    VALUES,
    st.sampled_from([None, 0, 3, "\t"]),
)
def test_a_changed_text_has_the_value_and_all_others(
    content: dict[str, object], path: list[str], value: object, indent: int | str | None
) -> None:
    changed = with_value(json.dumps(content, indent=indent), path, value)
    place = content
    for key in path[:-1]:
        inner = place.get(key)
        place[key] = inner = inner if isinstance(inner, dict) else {}
        place = inner
    place[path[-1]] = value
    assert json.loads(changed) == content
    del place[path[-1]]
    assert json.loads(without_value(changed, path)) == content
    assert without_value(without_value(changed, path), path) == without_value(changed, path)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a" 1}', '{"a": 1 "b": 2}', "{'a': 1}", '{"a": 1} // note', "\x00", '{"a": tru}']
)
def test_a_file_that_is_no_json_object_is_left_alone(content: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runed.config_file._PATIENCE", 0.1)
    config.write_text(content)
    with pytest.raises(SettingsError, match="is no JSON object, so it was left as it is"):
        edit(config, ["a"], 2)
    assert config.read_text() == content
    assert {path.name for path in config.parent.iterdir()} == {"config.json", "config.lock"}


def test_a_link_stays_a_link_and_the_mode_stays(config: Path) -> None:
    real = config.parent / "dotfiles" / "runed.json"
    real.parent.mkdir()
    real.write_text("{}")
    real.chmod(0o640)
    config.symlink_to(real)
    edit(config, ["a"], 1)
    assert config.is_symlink()
    assert json.loads(real.read_text()) == {"a": 1}
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("way", ["in place", "by a rename"])
def test_an_edit_by_hand_at_the_same_moment_is_kept(way: str, config: Path) -> None:
    config.write_text('{"version": 1}')
    edits = iter(["10m", "20m", "30m"])

    def change(text: str) -> str:
        # Between the look at the file and the new content, an editor saves.
        if (edited := next(edits, None)) is not None:
            saved = json.dumps({"version": 1, "idle_timeout": edited})
            if way == "in place":
                config.write_text(saved)
            else:
                (config.parent / "new").write_text(saved)
                (config.parent / "new").replace(config)
        return with_value(text, ["a"], 1)

    edit_config(config, config.with_name("config.lock"), change)
    assert json.loads(config.read_text()) == {"version": 1, "idle_timeout": "30m", "a": 1}


def test_a_write_to_the_old_file_at_the_moment_of_the_rename_is_kept(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor that has opened the file writes after the last look. The rename then takes the name away from its file."""
    config.write_text('{"version": 1}')
    publish, late = NewFile.publish, iter(["30m"])

    def publish_late(self: NewFile) -> None:
        for edited in late:
            config.write_text(json.dumps({"version": 1, "idle_timeout": edited}))
        publish(self)

    monkeypatch.setattr(NewFile, "publish", publish_late)
    edit(config, ["a"], 1)
    assert json.loads(config.read_text()) == {"version": 1, "idle_timeout": "30m", "a": 1}


def test_commands_at_the_same_moment_keep_each_others_changes(config: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runed.config_file import edit_config, with_value\n"
        "path = Path(sys.argv[1])\n"
        "for number in range(5):\n"
        "    key = f'{sys.argv[2]}.{number}'\n"
        "    edit_config(path, path.with_name('config.lock'), lambda text: with_value(text, ['models', key], {'path': '/m'}))\n"
    )
    commands = [subprocess.Popen([sys.executable, "-c", program, config, str(number)]) for number in range(4)]
    assert [command.wait(60) for command in commands] == [0] * 4
    assert len(json.loads(config.read_text())["models"]) == 20


def test_a_command_waits_for_another_and_for_an_editor_that_writes_slowly(config: Path) -> None:
    config.write_text("")
    with config.open("w") as editor:  # truncated, and not written yet
        editor.write('{"version"')
        editor.flush()
        lock = LockFile(config.with_name("config.lock"))
        assert lock.try_acquire()
        thread = threading.Thread(target=edit, args=(config, ["a"], 1))
        thread.start()
        time.sleep(0.1)
        lock.release()
        time.sleep(0.1)
        editor.write(": 1}")
    thread.join(10)
    assert json.loads(config.read_text()) == {"version": 1, "a": 1}


def test_a_lock_that_is_held_for_long_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runed.config_file._PATIENCE", 0.1)
    with LockFile(config.with_name("config.lock")) as lock:
        assert lock.try_acquire()
        with pytest.raises(
            SettingsError, match=f"process {os.getpid()} is changing .*config.json; try again when it has ended"
        ):
            edit(config, ["a"], 1)
    assert not config.exists()
