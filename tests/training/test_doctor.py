"""`eco-fast doctor`: its page, its JSON, its exit code; and where it runs."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eco_fast.cli.main import main
from eco_fast.training.doctor import examine, op_cases
from eco_fast.training.doctor.examine import Group
from tests.helpers import HANGS, complaint

GROUPS = ("machine", "software", "pair", "speed", "ops")


@pytest.fixture
def one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "GROUPS", (Group("machine", "folders, locks, limits, clock", HANGS),))
    monkeypatch.setattr(examine, "MINUTE", HANGS)


@pytest.mark.usefixtures("one_group")
def test_a_sound_machine_has_a_page_of_what_was_looked_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert f"ok locks flock in {tmp_path} works ok fsync" in words
    assert "8 checks in " in words
    assert words.endswith(": no findings")
    assert all(len(line) <= 100 or str(tmp_path) in line for line in said.splitlines())


@pytest.mark.usefixtures("one_group")
def test_a_finding_says_what_it_is_why_it_matters_and_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert main(["doctor", str(tmp_path)]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "!! temporary_files 1 below; temporary files in /tmp" in words
    assert f"1. temporary_files: $TMPDIR is {tmp_path}/none, which cannot be written; " in words
    assert words.endswith("why: compilers, torchrun and DALI work in it mend: unset TMPDIR")
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["sound", "seconds", "checks"]
    assert not answer["sound"]
    (found,) = [one for one in answer["checks"] if one["findings"]]
    assert list(found) == ["group", "check", "facts", "findings"]
    assert list(found["facts"][0]) == ["name", "value", "unit"]
    assert list(found["findings"][0]) == ["what", "why", "mend"]


def test_a_folder_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "gone: expected a folder; make it first" in complaint(capsys, "doctor", str(tmp_path / "gone"))


def test_no_group_is_begun_when_the_minute_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "MINUTE", 0)
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(one["group"], one["findings"][0]["what"]) for one in checks] == [
        (group, "not examined: the minute is over") for group in GROUPS
    ]


def test_a_process_that_cannot_be_started_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())), before[1]))
    try:
        assert main(["doctor", str(tmp_path), "--json"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [one["group"] for one in checks] == list(GROUPS)
    assert {one["findings"][0]["what"] for one in checks} == {"no process can be started (Too many open files)"}


def test_a_torch_that_cannot_be_imported_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "torch" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise OSError('libcudart.so.13: cannot open shared object file')", encoding="ascii")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(examine, "GROUPS", [group._replace(limit=HANGS) for group in examine.GROUPS])
    monkeypatch.setattr(examine, "MINUTE", HANGS)
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    said = {one["check"]: one["findings"][0]["what"] for one in checks if one["findings"]}
    assert said["packages"] == "torch cannot be imported (OSError: libcudart.so.13: cannot open shared object file)"
    assert {"pair", "speed", "ops", "compilers"} <= said.keys()
    assert "disk" in {one["check"] for one in checks} - said.keys()


def test_what_examines_needs_nothing_that_may_be_broken() -> None:
    heavy = ("torch", "numpy", "rich")
    script = f"import sys, eco_fast.training.doctor.page; print([one for one in {heavy} if one in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


@pytest.mark.slow
def test_it_works_without_a_gpu_git_a_terminal_or_utf8_and_leaves_nothing(tmp_path: Path) -> None:
    """All of it, as a program on this machine, whose time does not count; nothing is found."""
    script = f"""
import sys
from eco_fast.cli import main
from eco_fast.training.doctor import examine
examine.MINUTE, examine.GROUPS = {HANGS}, [group._replace(limit={HANGS}) for group in examine.GROUPS]
sys.exit(main.main(["doctor", "--json"]))
"""
    tools = tmp_path / "bin"  # all but git
    tools.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith("git"):
            (tools / program.name).symlink_to(program)
    known = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "LANG")}
    environment = {**known, "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C", "PATH": str(tools), "TERM": ""}
    folder = tmp_path / "images \u00e9"
    folder.mkdir()
    (folder / "random.py").write_text("raise SystemExit", encoding="ascii")  # is not Python's own
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, stdin=-3, capture_output=True, check=False)
    assert done.stderr == b""
    answer: dict[str, Any] = json.loads(done.stdout)
    assert [one for one in answer["checks"] if one["findings"]] == []
    assert done.returncode == 0
    assert {one["group"] for one in answer["checks"]} == set(GROUPS)
    examined = [one["check"] for one in answer["checks"] if one["group"] == "ops"]
    assert examined == [case.name for case in op_cases.CASES if "cpu" in case.devices]
    assert [path.name for path in folder.iterdir()] == ["random.py"]
