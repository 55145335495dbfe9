"""A real server process under test: stamped log, health, one completion, a clean stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`argv` plus ``--host``/``--port``, started in a process group of its own.

    With `port`, which `argv` then tells, not a word is added.

    Every line it prints goes to `log`, stamped with the seconds since its start.
    """

    def __init__(self, argv, *, log, env=None, port=None):
        self.port = port or free_port()
        listening = () if port else ("--host", "127.0.0.1", "--port", str(self.port))
        self.ready_s = None
        self._starts = os.path.join(os.path.dirname(os.path.dirname(argv[0])), "starts")
        self._log = open(log, "w", encoding="utf-8")
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [*argv, *listening],
            env=dict(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_ready(self, timeout=600):
        deadline = self._started + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(url, timeout=5) as reply:
                    if reply.status == 200:
                        self.ready_s = time.monotonic() - self._started
                        return self.ready_s
            time.sleep(0.1)
        raise RuntimeError(f"the server was not ready within {timeout} s")

    def complete(self, model, prompt="Hello, world", tokens=8):
        """Ask for one greedy completion; the whole answer, with vLLM's `system_fingerprint`.

        It has the `token_ids`: with random weights the text may be empty, for a tokenizer need not
        know every token.
        """
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body["return_token_ids"] = True
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def _watched(self):
        return os.path.isdir(self._starts) and bool(os.listdir(self._starts))

    def stop(self):
        deadline = time.monotonic() + 10
        # Ended before the watch has seen that it was ready, it counts as a start that crashed.
        while self.ready_s is not None and time.monotonic() < deadline and self._watched():
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(5)
        self._log.close()

    def _copy(self):
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip("\r\n")
            self._log.write(f"[+{time.monotonic() - self._started:.3f}] {line}\n")
            self._log.flush()
