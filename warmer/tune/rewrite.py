"""Capture sizes put into the text of a warmer YAML file, and nothing else in it changed. Pure.

The file's ``serve-args`` are vLLM's words. The text is edited where PyYAML says that the words
stand, so that comments and spelling stay; what comes out is read again and compared with what it
should say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from warmer import yamltext

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAG: Final = "--cudagraph-capture-sizes"
_KEYS: Final = ("serve-args", "serve_args")


class NotEditableError(ValueError):
    """The file is not one that can be changed safely. Says why, as a clause."""


def words(text: str) -> list[str]:
    """Return the file's ``serve-args``.

    Raises:
        NotEditableError: it is no YAML of warmer's.
    """
    return [str(word) for word in _listed(_loaded(text))]


def rewrite(text: str, sizes: Sequence[int]) -> str:
    """Return the text with these sizes among its ``serve-args``, instead of others or at the end.

    Raises:
        NotEditableError: it cannot be done without touching something else.
    """
    before = _loaded(text)
    listed = _listed(before)
    first, last = _where(listed)
    new: list[str | int] = [FLAG, *sizes]
    expected = dict(before or {})
    key = next((key for key in _KEYS if key in expected), _KEYS[0])
    expected[key] = [*listed[:first], *new, *listed[last:]]
    after = _edited(text, (first, last), new)
    try:
        same = yamltext.load(after) == expected
    except (yamltext.NotYamlError, RecursionError):
        same = False
    if not same:
        raise NotEditableError("YAML in a form that cannot be edited without changing more")
    return after


def _loaded(text: str) -> dict[Any, Any] | None:
    try:
        found = yamltext.load(text)
    except yamltext.NotYamlError as exc:
        raise NotEditableError(f"no YAML ({exc})") from exc
    if found is not None and not isinstance(found, dict):
        raise NotEditableError(f"{type(found).__name__} instead of keys and values")
    return found


def _listed(loaded: dict[Any, Any] | None) -> list[Any]:
    keys = [key for key in _KEYS if key in (loaded or {})]
    if len(keys) > 1:
        raise NotEditableError(f"both {keys[0]} and {keys[1]}")
    found = (loaded or {})[keys[0]] if keys else None
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(w, (str, int, float)) for w in found):
        raise NotEditableError("serve-args that are no list of words")
    return found


def _where(listed: Sequence[Any]) -> tuple[int, int]:
    """Find the words that give sizes now; the end of the list where none do."""
    spelled = [str(word).partition("=")[0].replace("_", "-") for word in listed]
    at = [number for number, name in enumerate(spelled) if name == FLAG]
    if len(at) > 1:
        raise NotEditableError(f"{FLAG} twice among serve-args")
    if not at:
        return len(listed), len(listed)
    end = at[0] + 1
    while end < len(listed) and not str(listed[end]).startswith("-"):
        end += 1
    return at[0], end


def _edited(text: str, span: tuple[int, int], new: Sequence[str | int]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next(((key, node) for key, node in pairs if key.value in _KEYS), None)
    if found is None:
        if text and not text.endswith("\n"):
            text += newline
        return text + newline.join([f"{_KEYS[0]}:", *_lines(new, 2)]) + newline
    key, node = found
    if not isinstance(node, yaml.SequenceNode):  # a key without a value
        return _with_lines(text, key.end_mark.line + 1, 0, _lines(new, 2), newline)
    if node.flow_style:
        return _in_a_flow(text, node, span, ", ".join(map(str, new)))
    items = node.value[span[0] : span[1]]
    lines = _lines(new, node.start_mark.column)
    if not items:
        return _with_lines(text, node.value[-1].end_mark.line + 1, 0, lines, newline)
    first, last = items[0].start_mark.line, items[-1].end_mark.line
    said = _comments(text, items, node.start_mark.column)
    return _with_lines(text, first, last - first + 1, [*said, *lines], newline)


def _comments(text: str, items: Sequence[yaml.Node], indent: int) -> list[str]:
    """What people wrote between and beside lines that go: each becomes a line of its own."""
    old = text.splitlines()
    ends = {item.end_mark.line: item.end_mark.column for item in items}
    found = []
    for number in range(items[0].start_mark.line, items[-1].end_mark.line + 1):
        rest = old[number][ends.get(number, 0) :].strip()
        if rest.startswith("#"):
            found.append(f"{' ' * indent}{rest}")
    return found


def _in_a_flow(text: str, node: yaml.SequenceNode, span: tuple[int, int], plain: str) -> str:
    """Edit ``[a, b]``."""
    items = node.value[span[0] : span[1]]
    if items:
        begin, end = items[0].start_mark.index, items[-1].end_mark.index
        if "#" in text[begin:end]:
            raise NotEditableError("a comment among the sizes of a [list]")
        return text[:begin] + plain + text[end:]
    if node.value:
        end = node.value[-1].end_mark.index
        return f"{text[:end]}, {plain}{text[end:]}"
    return f"{text[: node.start_mark.index]}[{plain}]{text[node.end_mark.index :]}"


def _lines(new: Sequence[str | int], indent: int) -> list[str]:
    return [f"{' ' * indent}- {word}" for word in new]


def _with_lines(text: str, at: int, removed: int, lines: Sequence[str], newline: str) -> str:
    """Put lines in before line `at`, in the place of as many as are removed there."""
    old = text.splitlines(keepends=True)
    if at and old[at - 1].endswith("\n"):
        newline = "\r\n" if old[at - 1].endswith("\r\n") else "\n"
    if at and at == len(old) and not old[-1].endswith("\n"):
        old[-1] += newline
    return "".join([*old[:at], *(line + newline for line in lines), *old[at + removed :]])
