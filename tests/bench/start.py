"""A cold and a warm start of a real vLLM side by side: the demo, ending in one JSON line."""

import os
import sys

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "demo", "demo.py")

os.execv(sys.executable, [sys.executable, DEMO, "--json", *sys.argv[1:]])
