"""The YAML file of ``--config``: a verb's options as keys."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import click

from warmer import yamltext
from warmer.errors import UsageError, did_you_mean
from warmer.secrecy import secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN: Final = 100
_PLAIN: Final = (str, int, float)
_NAMES: Final = {
    str: "a word",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing",
    dt.date: "a date",
    bytes: "binary data",
    set: "a set",
}
_EXAMPLES: Final = {
    "URI": "org/name",
    "URL": "s3://bucket/prefix",
    "DIGEST": "sha256:0123",
    "SIZE": "20G",
    "auto|off|SIZE": "20G",
    "RATE": "500MB/s",
    "SECONDS": "60",
    "DOLLARS": "0.3",
    "PERCENT": "50",
    "NUMBER": "40",
    "N": "2",
    "NAME=on|off": "fork=off",
    "[KIND=]fail|cold": "kernels=cold",
    "PATTERN": "original/*",
    "[-- VLLM SERVE ARGS]": "--max-model-len, 8192",
}
"""What help calls a value → one of them; those that are not here are paths."""


def load(ctx: click.Context, _param: click.Parameter, path: str | None) -> str | None:
    """Read the YAML file before the other options, as their defaults.

    Raises:
        UsageError: it cannot be read, or says what no option understands.
    """
    if path is None or ctx.resilient_parsing:  # a shell that completes has no use for it
        return None
    hint = "one option a line, as in `warm-dir: /warm`; see --help for their names"
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        message = f"got --config {path}: {why}, expected a readable file"
        raise UsageError(message, reason="bad-config", hint=hint) from exc
    try:
        values = yamltext.load(text) or {}
    except yamltext.NotYamlError as exc:
        message = f"got --config {path}, expected YAML ({exc})"
        raise UsageError(message, reason="bad-config", hint=hint) from exc
    if not isinstance(values, dict):
        message = (
            f"got --config {path} with {_shown(values, secret=True)}, expected keys and values"
        )
        raise UsageError(message, reason="bad-config", hint=hint)
    if repeated := yamltext.twice(text):
        key, first, again = repeated
        message = f"got {key} twice in {path}, expected it once"
        raise UsageError(message, reason="bad-config", hint=f"lines {first} and {again}")
    known = {p.name: p for p in ctx.command.params if p.name and p.name != "config"}
    defaults = {
        str(key).replace("-", "_"): _default(known, str(key), value, path)
        for key, value in values.items()
    }
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def example(parameter: click.Parameter) -> str:
    """Write a line of the file for an option."""
    if getattr(parameter, "is_flag", False):
        value = "true"
    elif isinstance(parameter.type, click.Choice):
        value = str(parameter.type.choices[0])
    else:
        value = _EXAMPLES.get(parameter.metavar or "", "/warm")
    return f"{_spelt(parameter)}: {f'[{value}]' if _many(parameter) else value}"


def _default(known: Mapping[str, click.Parameter], key: str, value: Any, path: str) -> Any:
    """Check one key of the YAML file against the option it names."""
    parameter = known.get(key.replace("-", "_"))
    if parameter is None:
        names = sorted(map(_spelt, known.values()))
        raise UsageError(
            f"got the key {key!r} in {path}, expected one of this verb's options",
            reason="bad-config",
            hint=" ".join(filter(None, [did_you_mean(key, names), f"known: {', '.join(names)}"])),
        )
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, (bool, str)):
            raise _wrong(parameter, key, value, path, "true or false")
        return value
    return (_words if _many(parameter) else _word)(parameter, key, value, path)


def _words(parameter: click.Parameter, key: str, value: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(parameter, key, value, path, "a list of words")
    for number, item in enumerate(value, 1):
        if not isinstance(item, _PLAIN):
            raise _wrong(parameter, f"item {number} of {key}", item, path, "a word")
    return [str(item) for item in value]


def _word(parameter: click.Parameter, key: str, value: Any, path: str) -> str | int | float:
    if value is False and "off" in (parameter.metavar or "").split("|"):
        return "off"  # a word of the option's, and YAML's for false
    if isinstance(value, bool) or not isinstance(value, _PLAIN):
        raise _wrong(parameter, key, value, path, "one word")
    return value


def _wrong(parameter: click.Parameter, what: str, value: Any, path: str, wanted: str) -> UsageError:
    return UsageError(
        f"got {what}: {_shown(value, secret=secret_name(_spelt(parameter)))} in {path}, expected {wanted}",
        reason="bad-config",
        hint=f"as `{example(parameter)}`",
    )


def _shown(value: Any, *, secret: bool = False) -> str:
    """Show a plain value, and of others, and of secrets, what they are in words of YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, _PLAIN) and not secret:
        return repr(value)[:_SHOWN]
    return next((name for kind, name in _NAMES.items() if isinstance(value, kind)), "another value")


def _many(parameter: click.Parameter) -> bool:
    return getattr(parameter, "multiple", False) or parameter.nargs == -1


def _spelt(parameter: click.Parameter) -> str:
    return (parameter.name or "").replace("_", "-")
