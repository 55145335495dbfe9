"""The YAML file of ``--config``: a verb's options as keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from warmer import yamltext
from warmer.errors import UsageError
from warmer.secrecy import secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click

_SHOWN: Final = 100


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
        message = f"got --config {path} with a {type(values).__name__}, expected keys and values"
        raise UsageError(message, reason="bad-config", hint=hint)
    known = {p.name: p for p in ctx.command.params if p.name and p.name != "config"}
    defaults = {
        str(key).replace("-", "_"): _default(known, str(key), value, path)
        for key, value in values.items()
    }
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _default(known: Mapping[str, click.Parameter], key: str, value: Any, path: str) -> Any:
    """Check one key of the YAML file against the option it names."""
    names = ", ".join(sorted(name.replace("_", "-") for name in known))
    parameter = known.get(key.replace("-", "_"))
    if parameter is None:
        raise UsageError(
            f"got the key {key!r} in {path}, expected one of this verb's options",
            reason="bad-config",
            hint=f"known: {names}",
        )
    many = getattr(parameter, "multiple", False) or parameter.nargs == -1
    items = value if isinstance(value, list) else [value]
    if isinstance(value, list) != many or not all(
        isinstance(item, (str, int, float)) for item in items
    ):
        plain = isinstance(value, (str, int, float, bool)) and not secret_name(key)
        shown = repr(value)[:_SHOWN] if plain else f"a {type(value).__name__}"
        raise UsageError(
            f"got {key}: {shown} in {path}, expected {'a list of words' if many else 'one word'}",
            reason="bad-config",
            hint=f"known: {names}",
        )
    return [str(item) for item in items] if many else value
