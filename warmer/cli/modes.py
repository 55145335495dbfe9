"""Who may read and write what is made on the volume and in the warm dir."""

from __future__ import annotations

import os
from typing import Final

_GROUP_READS: Final = 0o050
_OTHERS_WRITE: Final = 0o002


def let_the_group_read() -> None:
    """Make files that the group can read and others cannot write, whatever the umask was.

    The server may run as another user, with group 0 for one; kernels that others could write would
    be theirs. What is secret is made with modes of its own. Not for a process that becomes another
    program: it would inherit this.
    """
    os.umask((os.umask(0o077) & ~_GROUP_READS) | _OTHERS_WRITE)
