"""Fails."""

raise SystemExit("this went wrong")
