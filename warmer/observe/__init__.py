"""Observe: ask the machine and the volume for facts. Nothing here changes anything."""
