"""Messages and tools of conversations, as chat templates read them.

Arrow stores a dict with the keys of all rows, and None where a row has not got one. So a call of a tool comes back
with the arguments of every other tool, and a template writes them down as null. What is absent is taken out again.
"""

import json
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hfsae.data.document_column import MESSAGE_KEYS

# Who speaks in ShareGPT's messages, as chat templates call them.
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
    "function_response": "tool", "observation": "tool",
}  # fmt: skip


def message_of(message: Any, feature: Any = None) -> Mapping[str, Any]:
    """One message as chat templates read it.

    Args:
        message: Of a conversation, with role and content or ShareGPT's keys.
        feature: The type of such a message in the dataset, as `without_absent` takes it.

    Raises:
        ValueError: If it is made of other things, or nobody known speaks.
    """
    usual, sharegpt = MESSAGE_KEYS
    if isinstance(message, Mapping) and (set(usual) <= message.keys() or {"role", "tool_calls"} <= message.keys()):
        # Newer releases of transformers leave keys out that hold None; older ones hand them on.
        return {key: value for key, value in without_absent(message, feature).items() if value is not None}
    if not isinstance(message, Mapping) or not set(sharegpt) <= message.keys():
        raise ValueError(
            f"a message is {reprlib.repr(message)}: expected one with role and content, or with from and value."
        )
    role = _ROLES.get(message["from"])
    if role is None:
        raise ValueError(f"a message is from {message['from']!r}: expected one of {', '.join(_ROLES)}.")
    return {"role": role, "content": message["value"]}


def tools_of(tools: Any, feature: Any = None) -> list[Any] | None:
    """The tools of a conversation as chat templates read them; None where there are none.

    Args:
        tools: A list of descriptions (JSON schemas), or such a list as JSON.
        feature: Their type in the dataset, as `without_absent` takes it.

    Raises:
        ValueError: If they are no such list.
    """
    found = without_absent(tools, feature)
    if isinstance(tools, str) and tools.strip():
        with suppress(ValueError):  # what is no JSON stays the string that it is, and is refused below
            found = json.loads(tools)
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise ValueError(
            f"the tools of a conversation are {reprlib.repr(tools)}: expected a list of JSON schemas, or JSON of one. "
            "Remove the column 'tools' if it holds something else."
        )
    return found


def without_absent(value: Any, feature: Any = None) -> Any:
    """A value of a dataset without the keys that other rows alone have.

    Args:
        value: The value.
        feature: Its type in the dataset. Of a `Json`, which keeps every row's own keys, None is meant as it stands.
            Where no type is known, a None is taken for absent.
    """
    if type(feature).__name__ == "Json":
        return value
    if isinstance(value, Mapping):
        of = feature if isinstance(feature, Mapping) else {}
        return {key: without_absent(one, of.get(key)) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        of = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [without_absent(one, of) for one in value]
    return value
