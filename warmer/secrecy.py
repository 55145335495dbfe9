"""What must not be written anywhere, told by its name or by its shape. Pure.

Secrets to no file, log or message; to no terminal, what would command it. Nothing here knows a
secret in advance: names say that a value is one, and so does a URL that carries a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# "TOKEN" at the end only: inside a name it counts or configures, and vLLM hashes such names.
_NAME: Final = re.compile(
    r"TOKEN$|SECRET|PASSW(?:OR)?D|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SIGNING_?KEY",
    re.IGNORECASE,
)
# hf://gpt2@main is a model and its revision; what has a colon, or is formed like a token, is none.
_USERINFO: Final = re.compile(r"(?<=://)(?!(?<=\bhf://)(?!hf_)[\w.-]+@)[^/@\s]+(?=@)")
_TELLING: Final = 8
"""Characters a value must have for a file that holds it to be kept from the volume."""
_SHORTEST: Final = 6
"""Characters a value must have to be looked for in texts: shorter ones would hit words."""


def secret_name(name: str) -> bool:
    """Whether a variable, flag or key is named like a secret; where one lies is none."""
    name = name.replace("-", "_")
    return _NAME.search(name) is not None and not name.upper().endswith("_FILE")


def secret_value(value: str) -> bool:
    """Whether a value is a URL that carries a user or password."""
    return _USERINFO.search(value) is not None


def secret_inside(value: Any) -> str | None:
    """Find a key that is named like a secret anywhere inside a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if secret_name(str(key)) and inner:
                return str(key)
            found = secret_inside(inner)
            if found:
                return found
    if isinstance(value, list):
        return next((found for inner in value if (found := secret_inside(inner))), None)
    return None


def printable(text: str, most: int | None = None) -> str:
    """Escape what is no sign to be read; others' names may hold sequences that a terminal obeys.

    Args:
        text: one line; line ends are escaped too.
        most: characters shown.
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets that an environment holds and that can be told from words: name → value."""
    found = {n: v for n, v in environment.items() if secret_name(n)}
    for name, value in environment.items():
        if (login := _USERINFO.search(value)) is not None:
            found[name] = login[0].rpartition(":")[2]
    return {name: value for name, value in found.items() if len(value) >= _TELLING}


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Replace the values of secret variables, and passwords in URLs, wherever they stand."""
    for name, value in environment.items():
        if len(value) >= _SHORTEST and secret_name(name) and value in text:
            text = text.replace(value, f"<{name}>")
    return _USERINFO.sub("<redacted>", text)
