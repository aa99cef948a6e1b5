"""Writing whole or not at all: what stands in the folder afterwards, whatever goes wrong, and what the error says."""

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import pytest

from prepkit.errors import OutputError, VerificationError
from prepkit.support import files
from prepkit.support.files import (
    check_writable,
    current_umask,
    flush,
    replacing,
    replacing_folder,
)

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    """All entries, hidden ones too."""
    return sorted(os.listdir(folder))


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(target: Path, text: str, fail: Callable[[], None]) -> None:
    """Write half of a result, then fail."""
    with replacing(target, overwrite=True) as temporary:
        temporary.write_text(text)
        fail()


# Success ------------------------------------------------------------------------------------------------------


def test_the_target_appears_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with replacing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == tmp_path  # the same file system, so that renaming is atomic
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_the_usual_ones(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "result") as temporary:
            temporary.touch(mode=0o600)
        assert current_umask() == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o666 & ~mask


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        steps.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with replacing(tmp_path / "result") as temporary:
        temporary.touch()
    assert steps == ["flush file", "rename", "flush folder"]


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)  # 254 bytes
    with replacing(target) as temporary:
        temporary.touch()
    assert names(tmp_path) == [target.name]


def test_two_threads_that_write_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    target, start = tmp_path / "result", Barrier(2)

    def write(letter: str) -> None:
        with replacing(target, overwrite=True) as temporary:
            temporary.write_text(letter * 1000)
            start.wait(timeout=10)  # both are in the middle
            assert temporary.read_text() == letter * 1000

    threads = [Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in ("a" * 1000, "b" * 1000)
    assert names(tmp_path) == ["result"]


# Failure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), KeyboardInterrupt(), VerificationError("x"), OutputError("x")]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_the_folder_as_it_was(error: BaseException, old: str | None, tmp_path: Path) -> None:
    target = tmp_path / "result"
    if old is not None:
        target.write_text(old)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        write(target, "new, but not who", fail)
    assert caught.value is error
    assert names(tmp_path) == ([] if old is None else ["result"])
    assert old is None or target.read_text() == old


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), replacing(tmp_path / "result"):
        pass
    assert names(tmp_path) == []


def test_an_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    message = r"'.*result' exists already; use another name, or overwrite=True to replace it"
    with pytest.raises(OutputError, match=message), replacing(target):
        pytest.fail("the work was begun")
    assert target.read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_targets_that_cannot_be_written(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    for name, message in (
        ("folder", "it is a directory; name a file in it."),
        ("pipe", "it is a device or a pipe; name a file."),
        ("missing/result", "missing' does not exist."),
        ("file/result", "file' is not a directory."),
        ("a" * 256, "File name too long."),
    ):
        with pytest.raises(OutputError) as caught, replacing(tmp_path / name, overwrite=overwrite):
            pytest.fail("the work was begun")
        assert str(caught.value).startswith(f"cannot write '{tmp_path / name}': ")
        assert str(caught.value).endswith(message)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


def test_a_device_is_not_replaced_even_when_told_to_overwrite() -> None:
    with pytest.raises(OutputError, match="a device or a pipe"):
        check_writable(Path("/dev/null"), overwrite=True)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(OutputError, match=f"no permission to write in '{tmp_path}'"):
        check_writable(tmp_path / "result", overwrite=False)


def raise_full() -> None:
    raise FULL


def raise_as_torch() -> None:
    try:
        raise FULL
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


def raise_as_safetensors() -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [raise_full, raise_as_torch, raise_as_safetensors])
def test_a_full_disk_is_said(fail: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "result").write_text("old")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "result", "ne", fail)
    expected = f"cannot write '{tmp_path / 'result'}': the disk is full. Nothing was written; free some room."
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["result"]
    assert (tmp_path / "result").read_text() == "old"


def test_a_disk_that_is_full_only_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: raise_full())
    with pytest.raises(OutputError, match="the disk is full"), replacing(tmp_path / "result") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == []


def test_flush_forgives_file_systems_that_cannot_flush_a_folder_but_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_with(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fail_with(errno.EINVAL)
    flush(tmp_path)
    fail_with(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        flush(tmp_path)


@pytest.mark.parametrize("name", ["result.pt", "result.safetensors", "result.prep.safetensors"])
def test_a_file_that_outgrows_its_limit_leaves_nothing(name: str, tmp_path: Path) -> None:
    """The libraries' own errors for a write that fails half-way; a limit on files' sizes stands for a full disk."""
    done = python(
        """
        import resource, sys
        from pathlib import Path
        import torch
        import prepkit
        from prepkit.prep.file import PRep

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        target = Path(sys.argv[1])
        tensors = {"w": torch.randn(50_000)}
        layout = prepkit.Layout.of_tensors(tensors)
        try:
            if target.name.endswith(".prep.safetensors"):
                prepkit.save_prep(PRep(layout.pack(tensors, layout.shape(512)), layout), target)
            else:
                prepkit.save_state_dict(tensors, target)
        except prepkit.PrepkitError as error:
            print(type(error).__name__, error)
        """,
        tmp_path / name,
    )
    assert done.stdout == f"OutputError cannot write '{tmp_path / name}': File too large.\n", done.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_kill_9_leaves_the_old_file_whole(moment: str, tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old " * 1000)
    done = python(
        """
        import os, signal, sys
        from prepkit.support import files

        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        if sys.argv[2] == "before the rename":
            files.os.replace = die
        with files.replacing(sys.argv[1], overwrite=True) as temporary:
            with open(temporary, "w") as file:
                file.write("new " * 500)
                file.flush()
                if sys.argv[2] == "while writing":
                    die()
                file.write("new " * 500)
        """,
        target,
        moment,
    )
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old " * 1000
    assert all(name == "result" or name.endswith(".tmp") for name in names(tmp_path))


def test_only_errors_with_one_of_the_system_behind_them_become_output_errors() -> None:
    assert files.system_error(RuntimeError("shape mismatch")) is None
    assert files.system_error(ValueError("x (os error 28)")).errno == errno.ENOSPC
    handled = KeyError("x")
    handled.__context__ = FULL
    assert files.system_error(handled) is None  # only torch's RuntimeErrors hide one there


# Folders --------------------------------------------------------------------------------------------------------

MARK = "result.json"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with replacing_folder(tmp_path / "empty", mark=MARK) as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == ["a"]


def test_a_folder_with_the_mark_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    for name in (MARK, "more"):
        (tmp_path / "line" / name).write_text("old")
    with pytest.raises(OutputError, match="exists already"), replacing_folder(tmp_path / "line", mark=MARK):
        pass
    with replacing_folder(tmp_path / "line", mark=MARK, overwrite=True) as folder:
        (folder / MARK).write_text("new")
    assert names(tmp_path) == ["line"]
    assert names(tmp_path / "line") == [MARK]
    assert (tmp_path / "line" / MARK).read_text() == "new"


def test_a_folder_without_the_mark_is_the_user_s(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    new = replacing_folder(tmp_path / "mine", mark=MARK, overwrite=True)
    with pytest.raises(OutputError, match=r"holds other files and no result\.json"), new:
        pass
    assert names(tmp_path / "mine") == ["a"]


def test_a_folder_that_was_there_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full between taking the old folder away and giving the new one its name."""
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / MARK).write_text("old")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise FULL
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    new = replacing_folder(tmp_path / "line", mark=MARK, overwrite=True)
    with pytest.raises(OutputError, match="the disk is full"), new as folder:
        (folder / "a").write_text("new")
    assert names(tmp_path) == ["line"]
    assert names(tmp_path / "line") == [MARK]
    assert (tmp_path / "line" / MARK).read_text() == "old"
