"""What goes wrong with a request to the local hub."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the requests it hits, `times` times (None: always).

    In this order, and adding up: `stall` seconds; `reset` the connection (RST); `status`, with the
    `code` and `message` of the real Hub unless given, and `retry_after`; then of the body, so
    never of a HEAD: `truncate` what was announced after N bytes (RST there with `reset`),
    `corrupt` its middle byte, send it at `rate` bytes a second, announce `lie` bytes more than
    there are, or send `all` of a file where a range was asked for.
    """

    path: str = ""  # a regex, searched in the path; "" is in every one
    method: str | None = None
    times: int | None = None
    stall: float = 0.0
    reset: bool = False
    status: int | None = None
    code: str | None = None
    message: str | None = None
    retry_after: int | None = None
    truncate: int | None = None
    corrupt: bool = False
    rate: float | None = None
    lie: int = 0
    all: bool = False

    def hits(self, method: str, path: str) -> bool:
        of_body = self.corrupt or self.lie or self.all or self.rate or self.truncate is not None
        methods = {self.method or method} - ({"HEAD"} if of_body else set())
        return self.times != 0 and method in methods and bool(re.search(self.path, path))
