"""Where a server will answer, and whether it does (`warmer.handoff.ready`)."""

import http.server
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from warmer.handoff import ready

LOCAL = "127.0.0.1"
REPOSITORY = os.path.join(os.path.dirname(__file__), "..", "..")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ([], (LOCAL, 8000)),
        (["serve", "/m", "--port", "1"], (LOCAL, 1)),
        (["--port=1", "--port", "2"], (LOCAL, 2)),
        (["--port", "1", "--port=2"], (LOCAL, 2)),
        (["--host", "0.0.0.0"], (LOCAL, 8000)),
        (["--host=::"], ("::1", 8000)),
        (["--host", "10.0.0.7", "--port", "9"], ("10.0.0.7", 9)),
        (["--chat-template", "--port 5", "--x", ""], (LOCAL, 8000)),
    ],
    ids=str,
)
def test_it_is_read_from_the_arguments_the_last_of_which_wins(words, address):
    assert ready.find(words).address == address


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "0"],
        ["--port"],
        ["--port", "eight"],
        ["--port", "70000"],
        ["--headless"],
        ["--config", "/is/not/there.yaml"],
    ],
    ids=str,
)
def test_what_cannot_be_known_is_not_guessed(words):
    assert ready.find(words) is None


def test_a_file_of_vllms_own_says_it_where_the_arguments_do_not(tmp_path):
    path = tmp_path / "vllm.yaml"
    path.write_text(
        "model: x\nhost: \"::\"  # all\n'port': 81 # ours\nnested:\n  port: 5\n", encoding="utf-8"
    )
    assert ready.find(["--config", str(path)]).address == ("::1", 81)
    assert ready.find(["--config", str(path), "--port", "9"]).address == ("::1", 9)
    path.write_text("port: $PORT\n", encoding="utf-8")
    assert ready.find([f"--config={path}"]) is None


def test_a_file_of_vllms_own_says_all_that_the_arguments_may(tmp_path):
    """Or a server that nobody sees become ready counts as crashed whenever it ends."""
    path = tmp_path / "vllm.yaml"

    def find(text):
        path.write_text(text, encoding="utf-8")
        return ready.find(["--config", str(path)])

    assert find("port : 81\n: no name\n").address == (LOCAL, 81)
    assert find("ssl_keyfile: k\nssl-certfile: c\n").plain is False
    assert find("grpc: true\n").plain is False
    assert find("grpc: false\nheadless: No\nnested:\n  ssl-keyfile: k\n").plain is True
    assert find('uds: "/run/vllm socket" # here\n').uds == "/run/vllm socket"
    assert find("headless: true\n") is None


@contextmanager
def answering(status, address=(LOCAL, 0), server_class=socketserver.TCPServer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def address_string(self):
            return "a client"

        def log_message(self, *_):
            pass

    with server_class(address, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_a_server_is_ready_that_calls_itself_healthy(status, healthy):
    with answering(status) as (_, port):
        assert ready.find(["--port", str(port)]).ready() is healthy
    assert ready.find(["--port", str(port)]).ready() is False, "nobody listens any more"


def test_a_server_behind_a_socket_is_asked_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = ready.find(["--uds", "a socket"])
    assert server.ready() is False
    with answering(200, "a socket", socketserver.UnixStreamServer):
        monkeypatch.chdir("/")
        assert server.ready() is True


SPOKEN = [["--ssl-keyfile", "k"], ["--ssl-certfile=c"], ["--ssl_keyfile", "k"], ["--grpc"]]


@pytest.mark.parametrize("words", SPOKEN)
def test_of_one_that_speaks_no_plain_http_the_open_port_is_seen(words):
    with socket.create_server((LOCAL, 0)) as listening:
        asked = ready.find([*words, "--port", str(listening.getsockname()[1])])
        assert asked.ready() is True
    assert asked.ready() is False


def test_one_that_accepts_and_says_nothing_is_not_ready(monkeypatch):
    monkeypatch.setattr(ready, "_ANSWER", 0.05)
    with socket.create_server((LOCAL, 0)) as listening:
        assert ready.find(["--port", str(listening.getsockname()[1])]).ready() is False


# --- the end of a server --------------------------------------------------------------------------


class Never:
    def ready(self):
        return False


@pytest.fixture
def child():
    """A process that lives until something is written to it."""
    inside, outside = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(outside)
        os.read(inside, 1)
        os._exit(0)
    os.close(inside)
    yield pid, outside
    os.close(outside)
    os.waitpid(pid, 0)


def test_the_end_of_a_server_is_seen_before_anybody_has_reaped_it(child):
    pid, end = child
    held = ready._opened(pid)
    os.write(end, b".")
    assert ready._watch(Never(), pid, held) == "ended"
    os.close(held)


def test_without_a_descriptor_of_the_process_its_end_is_seen_too(child, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(ready, "_PATIENCE", 1.0)
    pid, _ = child
    assert ready._opened(pid) is None
    assert ready._watch(Never(), pid, None) == "old"
    assert ready._watch(Never(), 2**22 + 1, None) == "ended"  # no kernel gives such a number


def test_a_server_that_lives_long_has_not_crashed_at_load(child, monkeypatch):
    monkeypatch.setattr(ready, "_PATIENCE", 0.0)
    pid, _ = child
    held = ready._opened(pid)
    assert not select.select([held], [], [], 0)[0]
    assert ready._watch(Never(), pid, held) == "old"
    os.close(held)


def test_a_record_whose_name_no_locale_can_say_is_told_all_the_same(child, tmp_path):
    """Else it lay there unlocked, and a start that went well counted as crashed."""
    pid, _ = child
    starts = os.path.join(os.fsencode(tmp_path), b"st\xe4rts")
    work = (
        "import os, sys; sys.stdout.reconfigure(encoding='utf-8', errors='strict')\n"
        "from warmer.handoff import ready; sys.exit(ready.main(sys.argv[1:]))"
    )
    words = [str(pid), starts, tmp_path / "cold", tmp_path / "crashes", "mark", "", "compile-k-1"]
    argv = [sys.executable, "-c", work, *words, "--", "--port", "1"]
    done = subprocess.run(argv, capture_output=True, timeout=30, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [os.path.join(starts, name) for name in os.listdir(starts)] == [done.stdout.strip()]
