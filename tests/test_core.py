"""Folders that appear whole or not at all, and the one class behind all errors."""

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import textwrap

import pytest

import fgtune
from fgtune.core import errors
from fgtune.core.errors import FgtuneError
from fgtune.core.folders import new_folder, recover, replace_folder, rewritten_folder


def filled(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(text)
    return folder


def content(parent):
    """Names below `parent` with what their file says."""
    return {path.parent.relative_to(parent).as_posix(): path.read_text() for path in parent.rglob("file")}


# ---------------------------------------------------------------- a new folder


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with new_folder(target) as folder:
        filled(folder, "whole")
        assert not target.exists()
    assert content(tmp_path) == {"deep/model": "whole"} and list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model") as folder:
        filled(folder, "half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_first_ones_folder_is_kept(tmp_path):
    with new_folder(tmp_path / "model") as slow:
        filled(slow, "slow")
        with new_folder(tmp_path / "model") as quick:
            filled(quick, "quick")
    assert content(tmp_path) == {"model": "quick"}


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    with pytest.raises(PermissionError), new_folder(tmp_path / "model") as folder:
        filled(folder, "whole")
        monkeypatch.setattr(type(folder), "rename", refuse)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a replaced folder


def test_a_folder_is_replaced_with_nothing_left_over(tmp_path):
    folder = tmp_path / "best"
    for text in ("one", "two"):
        replace_folder(filled(tmp_path / "fresh", text), folder)
        assert content(tmp_path) == {"best": text}
    filled(tmp_path / "best.old", "of a run before")
    replace_folder(filled(tmp_path / "fresh", "three"), folder)
    assert content(tmp_path) == {"best": "three"}


def test_the_old_folder_may_lie_elsewhere(tmp_path):
    aside = tmp_path / ".work" / "best.old"
    filled(aside, "of a run before")
    replace_folder(filled(tmp_path / "fresh", "new"), filled(tmp_path / "best", "present"), aside)
    assert content(tmp_path) == {"best": "new"}
    (tmp_path / "best").rename(aside)
    assert not recover(tmp_path / "best").exists()  # nothing under the usual name
    assert content(recover(tmp_path / "best", aside).parent) == {"best": "new"}


def test_recover_leaves_a_present_folder_alone(tmp_path):
    filled(tmp_path / "best", "present")
    filled(tmp_path / "best.old", "before")
    assert recover(tmp_path / "best") == tmp_path / "best"
    assert content(tmp_path) == {"best": "present", "best.old": "before"}
    assert not recover(tmp_path / "other").exists()


def test_a_rewritten_folder_holds_nothing_of_the_old_one(tmp_path):
    folder = filled(tmp_path / "last", "old")
    (folder / "more").write_text("old")
    filled(tmp_path / "last.new", "of a killed writer")
    with rewritten_folder(folder) as fresh:
        assert list(fresh.iterdir()) == [] and content(folder.parent) == {"last": "old"}
        filled(fresh, "new")
    assert content(tmp_path) == {"last": "new"} and not (folder / "more").exists()
    with pytest.raises(ValueError), rewritten_folder(folder) as fresh:
        filled(fresh, "half")
        raise ValueError
    assert content(tmp_path) == {"last": "new"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
@pytest.mark.parametrize("rename, left", [(1, {"best": "old", "best.new": "new"}),
                                          (2, {"best.old": "old", "best.new": "new"}),
                                          (3, {"best": "new"})])  # fmt: skip
def test_a_kill_before_any_rename_loses_nothing(tmp_path, rename, left):
    """The process is killed instead of its 1st or 2nd rename (a 3rd does not come); `recover` finds a whole folder."""
    filled(tmp_path / "best", "old")
    script = """
        import os, pathlib, signal, sys
        from fgtune.core.folders import rewritten_folder
        count, real = [0], pathlib.Path.rename
        def rename(self, target):
            count[0] += 1
            if count[0] == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)
        pathlib.Path.rename = rename
        with rewritten_folder(pathlib.Path(sys.argv[1])) as fresh:
            (fresh / "file").write_text("new")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "best"), str(rename)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == (0 if rename == 3 else -signal.SIGKILL)
    assert content(tmp_path) == left
    assert content(recover(tmp_path / "best").parent)["best"] == ("new" if rename == 3 else "old")
    with rewritten_folder(tmp_path / "best") as fresh:
        filled(fresh, "next")
    assert content(tmp_path) == {"best": "next"}


# ---------------------------------------------------------------- errors


def test_errors_keep_their_built_in_bases():
    known = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and kind is not FgtuneError}
    assert all(issubclass(kind, FgtuneError) and kind.__doc__ for kind in known.values())
    assert issubclass(errors.TrainError, ValueError)
    for name in ("ProjectError", "ToolMissing", "ExportError", "DeployError"):
        assert issubclass(known[name], RuntimeError)


@pytest.mark.parametrize("room", ["models"])
def test_errors_of_a_room_are_of_the_common_class(room):
    package = importlib.import_module(f"fgtune.{room}")
    modules = [importlib.import_module(f"fgtune.{room}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    kinds = {v for module in modules for v in vars(module).values() if isinstance(v, type)}
    own = {k for k in kinds if issubclass(k, Exception) and k.__module__.startswith(fgtune.__name__ + ".")}
    assert own and all(issubclass(kind, FgtuneError) for kind in own)
