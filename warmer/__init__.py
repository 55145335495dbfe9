"""warmer: fill the caches that make vLLM start slowly, once per fleet, and hand them on."""

__version__ = "0.1.0"
