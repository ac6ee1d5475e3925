"""Files as accidents, other versions and strangers make them: one small change each, the same for the same seed."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

# Values in the place of others: other kinds, extremes, and what only looks like a value.
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**6, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "0", "Infinity", "None", "topk", "../../etc", "a" * 5000, "\x00", "\ud800", "é\u202e", "{{ 7 * 7 }}"),
    *([], {}, [1], [None], [[1]], {"a": 1}, ["x"] * 50, {"": {}}),
)


def _deep(depth: int) -> Any:
    nested: Any = 1
    for level in range(depth):
        nested = [nested] if level % 2 else {"a": nested}
    return nested


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside of lists and dictionaries."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in ((*path, key), *places(value, (*path, key)))]


def mutated_values(content: Any, rng: random.Random) -> Any:
    """A copy with one or two values changed, dropped, renamed, repeated or nested."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2])):
        *path, key = rng.choice(places(content) or [("new",)])
        outer = content
        for step in path:
            outer = outer[step]
        match rng.randrange(6):
            case 0 if isinstance(outer, dict):
                del outer[key]
            case 1 if isinstance(outer, dict):
                outer[rng.choice(["new", "", key.upper() if isinstance(key, str) else "k", "__class__"])] = outer.pop(
                    key
                )
            case 2:
                outer[key] = [copy.deepcopy(outer[key]) for _ in range(rng.choice([1, 3]))]
            case 3 if rng.random() < 0.3:
                outer[key] = _deep(rng.choice([60, 200, 450]))
                break
            case _:
                outer[key] = copy.deepcopy(rng.choice(_ODD))
    return content


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, with some bytes changed, put in, left out, or replaced by something else."""
    at = rng.randrange(len(content) + 1)
    match rng.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
        case 2:
            return content[:at] + content[at + rng.randrange(1, 40) :]
        case 3:
            return rng.choice([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"<!DOCTYPE html>", b"version https://git-lfs"])
        case 4:
            return content + content[:at]
        case _:
            changed = bytearray(content)
            for _ in range(rng.choice([1, 1, 3, 10])):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with other values, or other bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    made = json.dumps(mutated_values(json.loads(content), rng))
    return made.encode("utf-8", errors="surrogatepass")


def mutated_tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, another length of it, or other bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2:
        claimed = rng.choice([0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1])
        return struct.pack("<Q", claimed) + header + data
    header = mutated_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


Mutator = Callable[[bytes, random.Random], bytes]
