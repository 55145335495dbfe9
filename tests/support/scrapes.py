"""A vLLM's /metrics, recorded, and a web server of a few lines that says what a test wants said."""

import http.server
import os
import threading
import urllib.parse

METRICS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tune", "metrics")
EARLIER = os.path.join(METRICS, "earlier-0.32.txt")
LATER = os.path.join(METRICS, "later-0.32.txt")
MODEL = "demo/tiny-llama"


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


class Web:
    """Answers every request with `status` and `body`; `asked` has what it was asked."""

    def __init__(self):
        self.status, self.body, self.headers, self.asked = 200, b"", {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                fields = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
                outer.asked.append((self.path, fields, dict(self.headers)))
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            def do_GET(self):
                self.do_POST()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
