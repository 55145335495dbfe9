"""What the engine completed in its build run, kept in the compile piece: a warm start is compared with it.

That piece is of one model at one revision, and of one command line: it should complete the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Final

from warmer import regular
from warmer.errors import using

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "answer.json"
_VERSION: Final = 1


def keep(tree: str, tokens: Sequence[int]) -> None:
    """Write the answer into the tree of a build run; without tokens there is none, nor an earlier one.

    Args:
        tree: of the compile piece, nobody's but ours now.
        tokens: ids of the greedy completion that the engine was asked for.

    Raises:
        VolumeError: the warm dir failed.
    """
    path = os.path.join(tree, NAME)
    with using("the warm dir"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if tokens:
            with open(path, "w", encoding="utf-8") as f:
                json.dump({"schema_version": _VERSION, "tokens": [*tokens]}, f)


def kept(tree: str) -> tuple[int, ...]:
    """Read what the build run completed; empty where nobody has noted that, or not in these words.

    Args:
        tree: of the compile piece, restored.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using("the warm dir"):
        try:
            data = regular.read(os.path.join(tree, NAME))
        except (FileNotFoundError, regular.OddFileError):
            return ()
    with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        record = json.loads(data)
        if record["schema_version"] == _VERSION:
            return tuple(int(token) for token in record["tokens"])
    return ()
