"""What Grafana's own types (grafana-foundation-sdk) make of a dashboard."""

import enum
import json
import typing

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard


def read(board):
    """Read a dashboard and write it again.

    Returns:
        what does not fit the types, as pairs of a place and the value there; and the places of what the
        types do not know and therefore drop.
    """
    plugins.register_default_plugins()
    known = dashboard.Dashboard.from_json(board)
    written = json.loads(JSONEncoder().encode(known))
    return misfits(known, dashboard.Dashboard, "board"), lost(board, written)


def misfits(value, hint, where):
    """Where a value is none of its type's. The types are annotated classes and enumerations."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (typing.Any, object):  # a panel's options: of a class by the panel's type
        hint = type(value)
        if not hasattr(value, "to_json"):
            return []
    if origin is typing.Union:
        every = [misfits(value, one, where) for one in inner]
        return [] if [] in every else max(every, key=len)
    if origin in (list, dict) and isinstance(value, origin):
        pairs = value.items() if origin is dict else enumerate(value)
        return [m for key, one in pairs for m in misfits(one, inner[-1], f"{where}[{key!r}]")]
    if isinstance(value, dict) and hasattr(hint, "from_json"):  # some are left as they came
        value = hint.from_json(value)
    if not _fits(value, hint):
        return [(where, value)]
    hints = typing.get_type_hints(type(value)) if hasattr(value, "to_json") else {}
    names = vars(value).keys() & hints.keys() if hints else ()
    return [m for n in names for m in misfits(getattr(value, n), hints[n], f"{where}.{n}")]


def _fits(value, hint):
    """Whether a value that holds no others is of its type."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if not isinstance(hint, type):
        return False
    if issubclass(hint, enum.Enum):
        return value in [each.value for each in hint]
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, (float, int) if hint is float else hint)


def lost(given, kept, where=""):
    """Name what of one JSON value is not in another, which may hold more."""
    if isinstance(given, dict) and isinstance(kept, dict):
        found = [f"{where}.{name}" for name in given.keys() - kept.keys()]
        for name in given.keys() & kept.keys():
            found += lost(given[name], kept[name], f"{where}.{name}")
        return found
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [m for n, pair in pairs for m in lost(*pair, f"{where}[{n}]")]
    return [] if given == kept else [where]
