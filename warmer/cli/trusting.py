"""Whose kernels count: option values → keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from warmer import trust
from warmer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES: Final = {"trusted_keys": "WARMER_TRUSTED_KEYS", "signing_key": "WARMER_SIGNING_KEY"}


def read(values: Mapping[str, Any], environment: Mapping[str, str]) -> trust.Trust:
    """Read whose kernels count, and as whom warmer signs.

    Args:
        values: of the verb's options.
        environment: where an empty variable shows, which click takes for none at all.

    Raises:
        UsageError: they are no keys, or a variable is set and empty.
    """
    for name, variable in _VARIABLES.items():
        if name in values and environment.get(variable, "-").strip() == "":
            raise UsageError(
                f"got an empty {variable}, expected keys",
                reason="empty-key",
                hint="unset it to trust whoever can write on the volume",
            )
    return trust.load(values.get("signing_key"), values.get("trusted_keys"))
