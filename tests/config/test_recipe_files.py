"""Recipes as editors save them: a byte-order mark and Windows' line ends change nothing, another encoding is named."""

import codecs
from pathlib import Path

import pytest

from eco_fast.config.recipe_files import read

LINES = ('extends = "edsr_baseline_x2_vanilla"', 'description = """one', 'two ß"""', "[train]", "steps = 4", "")
SAVED = {
    "byte-order mark": codecs.BOM_UTF8 + "\n".join(LINES).encode(),
    "Windows' line ends": "\r\n".join(LINES).encode(),
    "both": codecs.BOM_UTF8 + "\r\n".join(LINES).encode(),
    "mixed line ends": "\r\n".join(LINES[:3]).encode() + b"\n" + "\r\n".join(LINES[3:]).encode(),
}


@pytest.mark.parametrize("saved", SAVED)
def test_a_recipe_is_what_its_text_says(tmp_path: Path, saved: str) -> None:
    (tmp_path / "plain.toml").write_bytes("\n".join(LINES).encode())
    (tmp_path / "saved.toml").write_bytes(SAVED[saved])
    assert read(str(tmp_path / "saved.toml")) == read(str(tmp_path / "plain.toml"))
    assert read(str(tmp_path / "saved.toml"))["train"]["steps"] == 4


def test_a_parent_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "parent.toml").write_bytes(SAVED["both"])
    (tmp_path / "child.toml").write_bytes(codecs.BOM_UTF8 + b'extends = "parent.toml"\r\n[train]\r\nbatch_size = 3\r\n')
    values = read(str(tmp_path / "child.toml"))
    assert (values["train"]["steps"], values["train"]["batch_size"]) == (4, 3)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    mark = {"utf-16": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}[encoding]
    (tmp_path / "a.toml").write_bytes(mark + "\n".join(LINES).encode(encoding))
    with pytest.raises(ValueError, match=r"a\.toml: is in UTF-16; save it as UTF-8"):
        read(str(tmp_path / "a.toml"))
