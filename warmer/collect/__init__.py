"""Collect garbage: look, find what is needed, decide, hide first and remove later."""
