"""YAML as people write it → plain values, or the one error that it is none.

PyYAML's own errors are of what is no YAML. Values that look like a date, a number or a tag and are
none (``2026-13-01``, ``0b_``, ``!!int ""``) end in whatever its constructors meet, and lists in
lists in the interpreter's limit. An anchor may make a short text a huge value, so no value is
shown whole.
"""

from __future__ import annotations

from typing import Any


class NotYamlError(ValueError):
    """The text is no YAML. Says where, as a clause: ``an error in line 3``; never what is there."""


def load(text: str | bytes) -> Any:
    """Read one document.

    Raises:
        NotYamlError: it is no YAML, or a value in it is none.
    """
    import yaml  # noqa: PLC0415 - 0.02 s, where there is YAML alone

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"an error in line {mark.line + 1}" if mark is not None else "an error"
        raise NotYamlError(where) from exc
    except RecursionError as exc:
        raise NotYamlError("more levels than can be read") from exc
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as exc:
        raise NotYamlError("a value that is none") from exc


def twice(text: str) -> tuple[str, int, int] | None:
    """Find a key of the top level that is there twice, ``warm_dir`` and ``warm-dir`` being one.

    Args:
        text: what `load` took; it keeps the last of them.

    Returns:
        The key, and the lines of the two; None where each is there once.
    """
    import yaml  # noqa: PLC0415 - as above

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = key.value.replace("_", "-"), key.start_mark.line + 1
        if name in lines:
            return name, lines[name], line
        lines[name] = line
    return None
