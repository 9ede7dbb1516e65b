"""What is recorded is what the kernel is asked for."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from tests.crash.disk import Disk
from tests.crash.recorder import Data, Entries, Event, Node, Recorder, Sync, read_tree
from tests.crash.small import go_on

CALLS = re.compile(r"^\d+ +(fsync|rename|unlink|mkdir)\w*\((.*)\) += 0$")


def test_files_are_seen_however_they_are_written(tmp_path: Path) -> None:
    with chdir(tmp_path):
        Path("old").write_bytes(b"0123456789")
        with Recorder() as recorder:
            Path("a").mkdir()
            Path("a/text").write_text("one\n", encoding="utf-8")
            with Path("a/text").open("a", encoding="utf-8") as file:
                file.write("two\n")
            with Path("old").open("rb+") as file:
                file.seek(3)
                file.write(b"xyz")
                file.truncate(8)
            descriptor = os.open("a/new", os.O_CREAT | os.O_WRONLY)
            os.pwrite(descriptor, b"far", 5000)
            os.close(descriptor)
            os.utime("a/new")
            Path("a/new").rename("a/last")
            Path("b").mkdir()
            Path("b/gone").write_bytes(b"")
            shutil.rmtree("b")
        disk = Disk(recorder)
        for event in recorder.events:
            disk.step(event)
        assert disk.now() == read_tree(Path())


def named(events: list[Event]) -> list[tuple[str, str]]:
    """Syncs, and changes of names, as strace names them."""
    names: dict[Node, str] = {}
    told = []
    for event in events:
        match event:
            case Sync():
                told.append(("fsync", names.get(event.node, "")))
            case Entries(((_, _, None), (_, name, Node() as node))):
                told.append(("rename", name))
                names[node] = name
            case Entries(((_, name, None),)):
                told.append(("unlink", name))
            case Entries(((_, name, Node() as node),)):
                names[node] = name
                told += [("mkdir", name)] * node.folder
            case Data():
                pass
    return told


@pytest.mark.slow
def test_the_kernel_is_asked_for_the_same_in_the_same_order(tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("needs the program strace")
    for name in ("recorded", "traced"):
        (tmp_path / name / "run").mkdir(parents=True)
    with chdir(tmp_path / "recorded"), Recorder() as recorder:
        go_on()
    calls = "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat"
    strace = ["strace", "-f", "-y", "-s", "999", "-o", str(tmp_path / "trace"), "-e", f"trace={calls}"]
    code = f"import os; os.chdir({str(tmp_path / 'traced')!r}); from tests.crash.small import go_on; go_on()"
    subprocess.run([*strace, sys.executable, "-c", code], check=True, capture_output=True)
    traced = []
    for call in filter(None, map(CALLS.match, (tmp_path / "trace").read_text(encoding="utf-8").splitlines())):
        paths = re.findall(r'"([^"]*)"|<([^>]*)>', call[2])
        path = next(filter(None, paths[-1]))
        if path.startswith(str(tmp_path)) or not path.startswith("/"):
            traced.append((call[1], Path(path).name))
    partial = re.compile(r"\.\d+\.partial$")
    told = [(kind, partial.sub("", name)) for kind, name in named(recorder.events)]
    assert [(kind, partial.sub("", name)) for kind, name in traced] == [(kind, name or "run") for kind, name in told]
    assert told.count(("rename", "last.state.pt")) == 3
