"""fog_a/files.py: a file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_nets import Net, tokens

import fog_a
from fog_a import files
from fog_a.errors import FogError, NotWritten
from fog_a.files import write, write_json
from fog_a.shell import arguments
from fog_a.teachers import BEATsTeacher, CachedTeacher
from fog_a_adapters.dit.audio.manifest import read_manifest


@pytest.fixture(autouse=True)
def nothing_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_bytes_and_json(tmp_path: Path) -> None:
    assert write(tmp_path / "deep" / "er" / "a.txt", "é\n").read_bytes() == "é\n".encode()
    assert write(str(tmp_path / "b"), b"\x00\xff").read_bytes() == b"\x00\xff"
    assert write_json(tmp_path / "c.json", {"ü": [1]}).read_text(encoding="utf-8") == '{\n "ü": [\n  1\n ]\n}'
    assert write(tmp_path / "d", "\udcff").read_text() == "\\udcff"  # an id from a file name that is no UTF-8


def test_no_umask_is_changed_and_permissions_are_those_of_any_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads would write with this umask"))
    (tmp_path / "plain").touch()
    assert write(tmp_path / "a", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = write(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritten, match=r"could not be written: .*\. Free some space or give another folder; all"):
        write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "a"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "a"


def a_folder(folder: Path) -> Path:
    (folder / "b" / "c").mkdir(parents=True)
    return folder / "b"


BAD = {
    "long name": (lambda f: f / ("n" * 300), "File name too long. Give a shorter path"),
    "long path": (lambda f: f.joinpath(*["n" * 200] * 30), "File name too long. Give a shorter path"),
    "looping link": (loop, "(symbolic links|File exists). (A link in the path leads back|A folder in the path is)"),
    "below a file": (below_a_file, "(Not a directory|File exists). A folder in the path is a file"),
    "a folder": (a_folder, "Is a directory. This is a folder: give the name of a file in it"),
    "null": (lambda f: f / "a\0b", "null (byte|character)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_path_is_an_error_of_fog_a(tmp_path: Path, kind: str) -> None:
    path, message = BAD[kind][0](tmp_path), BAD[kind][1]
    before = names(tmp_path)
    with pytest.raises(FogError, match=message):
        write(path, "x")
    assert names(tmp_path) == before


READERS: dict[str, Any] = {
    "checkpoint": lambda path: fog_a.attribute(Net(), tokens(), checkpoint=path, progress=False),
    "scores": fog_a.Scores.load,
    "selection": fog_a.Selection.load,
    "cached features": lambda path: CachedTeacher(None, path),
    "BEATs": BEATsTeacher,
    "manifest": read_manifest,
    "batch": lambda path: arguments.batch(str(path)),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", READERS)
def test_whoever_is_given_a_bad_path_says_so(tmp_path: Path, name: str, kind: str) -> None:
    fits = kind == "a folder" and name in ("checkpoint", "cached features")
    with contextlib.nullcontext() if fits else pytest.raises(FogError):
        READERS[name](BAD[kind][0](tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NotWritten, match=r"Permission denied. Give a folder that you may write to"):
        write(tmp_path / "a", "x")


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NotWritten, match=r"Read-only file system. Give a folder that can be written to"):
        write(tmp_path / "a", "x")


def test_links_are_replaced_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link under the file's name, or under the name it is written under, leaves what it points to alone."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a").symlink_to(victim)
    write(tmp_path / "a", "new")
    assert victim.read_text() == "mine" and not (tmp_path / "a").is_symlink()

    guessed = tmp_path / f"{files.PREFIX}00{files.SUFFIX}"
    guessed.symlink_to(victim)
    monkeypatch.setattr(files, "_swept", {tmp_path.resolve()})
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "00")
    with pytest.raises(NotWritten):
        write(tmp_path / "b", "new")
    assert victim.read_text() == "mine" and not (tmp_path / "b").exists()


def test_what_a_kill_leaves_goes_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom fog_a.files import write\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nwrite(sys.argv[1], 'new')\n"
    )
    path = write(tmp_path / "a", "old")
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=120)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    files._swept.clear()
    write(path, "newer")
    assert path.read_text() == "newer" and names(tmp_path) == ["a"]


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom fog_a import files\nsync = os.fsync\n"
        "def wait(handle):\n    print('ready', flush=True)\n    sys.stdin.readline()\n    sync(handle)\n"
        "os.fsync = wait\nfiles.write(sys.argv[1], 'theirs')\n"
    )
    start = [sys.executable, "-c", script, str(tmp_path / "theirs")]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        write(tmp_path / "mine", "mine")
        other.communicate("go\n", timeout=60)
    assert other.returncode == 0 and names(tmp_path) == ["mine", "theirs"]


def test_a_part_that_is_swept_too_early_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, tried = os.replace, []

    def late(source: Any, target: Any) -> None:
        if not tried:
            Path(source).unlink()  # as another process may, between closing and renaming
        tried.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert write(tmp_path / "a", "x").read_text() == "x" and len(tried) == 2
