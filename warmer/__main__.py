"""``warmer <verb>``: the probe by itself, every other verb through the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run one verb and exit with its status."""
    if sys.argv[1:2] == ["check"]:
        from warmer import check  # noqa: PLC0415 - the probe must not pay for the other verbs

        check.run(sys.argv[2:])
    from warmer import cli  # noqa: PLC0415 - as above

    cli.main()


if __name__ == "__main__":
    main()
