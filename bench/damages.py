"""What disks, networks, editors and people do to files."""

import random
import re
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def _place(content: bytes, rng: random.Random, size: int) -> int:
    return rng.randrange(2, max(len(content) - size, 3))


def _zeros(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 16, 512))
    start = _place(content, rng, size)
    return content[:start] + bytes(size) + content[start + size :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((2, 64, 512))
    start = _place(content, rng, size)
    return content[:start] + rng.randbytes(size) + content[start + size :]


def _bit(content: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _header_bit(content: bytes, rng: random.Random) -> bytes:
    return _bit(content[:100], rng) + content[100:]


def _removed(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 30, 512))
    start = _place(content, rng, size)
    return content[:start] + content[start + size :]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng, 128)
    return content[: start + 128] + content[start:]


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


INSIDE: dict[str, Damage] = {
    "zeros": _zeros,
    "noise": _noise,
    "flip a bit": _bit,
    "flip a bit of the header": _header_bit,
    "remove": _removed,
    "repeat": _repeated,
    "truncate": _truncated,
}


def _emptied(_: bytes, __: random.Random) -> bytes:
    return b""


def _doubled(content: bytes, _: random.Random) -> bytes:
    return content + content


def _other(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"\0" * len(content), b"{}", b"[]", b"null", b"\xff\xfe{}", b"PK\x03\x04", b"<html></html>"))


BINARY = {**INSIDE, "empty": _emptied, "twice": _doubled, "something else": _other}

ODD_VALUES = (
    *("1e400", "-1", "0", "nan", "inf", "true", '"text"', "[]", "{}", "[[[]]]", "1979-05-27", "1" + 22 * "0"),
    *("1e-400", "-0.0", '"\\u0000"', '""', '"../../.."', '["a", 1]', "{ a = 1 }", "9223372036854775807", "0x", "1__0"),
    *('"/dev/null"', '"builtin:"', '["builtin:train\\n"]', "0.1", "3", '"auto"', "'''\nseveral\nlines'''"),
)


def _odd_value(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode().splitlines()
    place = rng.choice([index for index, line in enumerate(lines) if "=" in line])
    lines[place] = f"{lines[place].partition('=')[0]}= {rng.choice(ODD_VALUES)}"
    return "\n".join(lines).encode()


def _line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def _deep(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 2000, 100_000))
    nested = ("[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth)
    dotted = f"{'.'.join('a' * depth)} = 1\n"
    return rng.choice((*(f"x = {value}\n" for value in nested), dotted, f"[{dotted[:-5]}]\n")).encode() + content


def _encoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode() + '# \u00e9\n[model.x"\u65e5"]\n'
    return text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp932", "cp500", "utf-7")), "replace")


def _bytes_inside(content: bytes, rng: random.Random) -> bytes:
    odd = rng.choice((b"\0", b"\x1b[2J", b"\r", b"\x7f", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b'"' * 9, b"\\"))
    place = rng.randrange(len(content))
    return content[:place] + odd + content[place:]


def _deep_json(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 100_000))
    return rng.choice((b"[" * depth + content + b"]" * depth, b'{"a":' * depth + content + b"}" * depth))


def _odd_json(content: bytes, rng: random.Random) -> bytes:
    """Another value somewhere, of another type maybe."""
    places = [match.span(1) for match in re.finditer(rb'[:\[,] ?("[^"]*"|[-\d.]+|null|true)', content)]
    start, end = rng.choice(places or [(0, 0)])
    return content[:start] + rng.choice((b"0", b"null", b"-1e999", b"[]", b"{}", b'"\\ud800"', b"NaN")) + content[end:]


def _odd_key(content: bytes, rng: random.Random) -> bytes:
    key = rng.choice(
        ('"a\\nb"', '""', "a" * 5000, '"train.steps"', "train.steps.x", "data.train.x", '"\\u001b[2J"', "1")
    )
    return f"{key} = 1\n".encode() + content


JSON = {
    **BINARY,
    "deep nesting": _deep_json,
    "odd value": _odd_json,
    "odd value again": _odd_json,
    "odd value once more": _odd_json,
    "a line twice": _line,
    "another encoding": _encoded,
    "odd bytes": _bytes_inside,
}
TOML = {
    **BINARY,
    "odd value": _odd_value,
    "odd value again": _odd_value,
    "odd value once more": _odd_value,
    "a line twice": _line,
    "deep nesting": _deep,
    "another encoding": _encoded,
    "odd bytes": _bytes_inside,
    "Windows' lines": lambda content, _: content.replace(b"\n", b"\r\n"),
    "odd key": _odd_key,
}
