"""`warmer report --otlp`: what reaches its port, from the exporter that vLLM uses and from others."""

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from warmer import listen
from warmer.errors import UsageError
from warmer.report import otlp, spans

REPOSITORY = Path(__file__).parent.parent.parent
LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def listener():
    with listen.Listener(listen.Address("127.0.0.1", 0), linger=0.0) as one:
        yield one


def exported(url, process, names, compression=Compression.NoCompression):
    """Send spans of ten seconds each, nested, by the exporter that vLLM uses."""
    provider = TracerProvider(resource=Resource({"vllm.process_id": process}))
    exporter = OTLPSpanExporter(url, compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("vllm")
    with contextlib.ExitStack() as open_spans:
        for name in names:
            open_spans.enter_context(tracer.start_as_current_span(name))
    provider.shutdown()


def post(url, body, kind=otlp.PROTOBUF, **headers):
    headers = {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status
    except urllib.error.HTTPError as exc:
        return exc.code


def lines(name="spans-cold-0.31.jsonl"):
    return (LOGS / name).read_text(encoding="utf-8").splitlines()


def replay(url, name="spans-cold-0.31.jsonl"):
    for line in lines(name):
        assert post(url, line.encode(), otlp.JSON) == 200


@pytest.mark.parametrize("compression", list(Compression)[:3], ids=lambda c: c.value)
def test_the_exporter_of_vllm_is_understood(listener, compression):
    exported(listener.url, "1", ["Overall Loading", "llm_request"], compression)
    exported(listener.url, "2", ["Prepare model"], compression)
    assert {(span.name, span.process) for span in listener.spans()} == {
        ("Overall Loading", "1"),
        ("Prepare model", "2"),
    }
    assert listener.wait(0)


def test_what_is_sent_again_is_kept_once(listener):
    replay(listener.url)
    first = listener.spans()
    replay(listener.url)
    assert listener.spans() == first
    assert spans.read(first).phases["engine_init"] == 39.956


def test_bad_bodies_get_4xx_and_lose_nothing(listener):
    replay(listener.url)
    before = listener.spans()
    assert len(before) == 13
    good = lines()[0].encode()
    bomb = gzip.compress(b"\0" * (otlp.MOST + 1))
    assert post(listener.url, b"\xff" * 999) == 400
    assert post(listener.url, good, otlp.JSON, Content_Encoding="gzip") == 400
    assert post(listener.url, gzip.compress(good)[:-20], otlp.JSON, Content_Encoding="gzip") == 400
    assert post(listener.url, bomb, Content_Encoding="gzip") == 413
    assert post(listener.url, b"\0" * (otlp.MOST + 1)) == 413
    assert post(listener.url, b"\0" * (otlp.MOST * 4)) == 413
    assert post(listener.url, good, "text/plain") == 415
    assert post(listener.url, good, otlp.JSON, Content_Encoding="br") == 415
    assert post(listener.url.replace("traces", "logs"), good, otlp.JSON) == 404
    assert listener.spans() == before
    exported(listener.url, "9", ["Load model"])
    assert len(listener.spans()) == len(before) + 1


def raw(listener, *pieces):
    """Write bytes as they are; what comes back until the other side closes."""
    port = int(listener.url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


HEAD = b"POST /v1/traces HTTP/1.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"\r\n{}", b"411"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"411"),
        (HEAD + b"Content-Length: -1\r\n\r\n{}", b"411"),
        (HEAD + b"Content-Length: 9" + b"9" * 40 + b"\r\n\r\n{}", b"413"),
        (HEAD + b"Content-Length: 500\r\n\r\n{}", b"400"),  # and then hung up
        (b"GET /v1/traces HTTP/1.1\r\n\r\n", b"501"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),  # gRPC
        (b"\x16\x03\x01\r\n\r\n", b"400"),  # TLS
    ],
    ids=["no length", "chunked", "negative", "endless", "cut", "GET", "gRPC", "TLS"],
)
def test_other_talk_is_refused_and_the_next_one_is_served(listener, request_, status):
    answer = raw(listener, request_)
    assert status in answer.split(b"\r\n")[0] or b"Error code: " + status in answer
    replay(listener.url)
    assert spans.finished(listener.spans())


def test_more_senders_than_there_is_room_for_are_asked_to_come_again(listener):
    port = int(listener.url.split(":")[2].split("/")[0])
    with contextlib.ExitStack() as idle:
        for _ in range(listen._CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            idle.enter_context(connection)
            connection.sendall(b"POST")
        answers = set()
        while 503 not in answers:  # the last of them may still be on their way
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            with contextlib.suppress(ConnectionError):
                client.request("GET", "/")
                answers.add(client.getresponse().status)
        exporting = threading.Thread(target=exported, args=(listener.url, "1", ["Load model"]))
        exporting.start()
    exporting.join(60)  # the exporter tries again, as the standard says
    assert [span.name for span in listener.spans()] == ["Load model"]


def test_spans_beyond_what_is_kept_are_told_to_be_lost(listener, monkeypatch):
    monkeypatch.setattr(listen, "_MOST", 3)
    replay(listener.url)
    assert len(listener.spans()) == 3


def test_waiting_ends_without_a_start(listener):
    exported(listener.url, "1", ["Load model"])
    assert not listener.wait(0.05)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("4318", "127.0.0.1", 4318),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:4318", "::1", 4318),
        ("node-7:4318", "node-7", 4318),
    ],
)
def test_addresses_are_read(text, host, port):
    assert listen.address(text) == (host, port)


@pytest.mark.parametrize("text", ["", "x", "65536", "-1", ":4318", "::1:4318", "a:b", "4318:", "٤"])
def test_what_is_no_address_is_a_usage_error(text):
    with pytest.raises(UsageError) as raised:
        listen.address(text)
    assert raised.value.reason == "otlp-address"


def test_a_port_in_use_is_a_usage_error(listener):
    port = int(listener.url.split(":")[2].split("/")[0])
    with pytest.raises(UsageError) as raised:
        listen.Listener(listen.Address("127.0.0.1", port))
    assert (raised.value.reason, raised.value.exit_code) == ("otlp-port", 2)
    for host in ("no-such-host.invalid", "a..b", "x" * 99):
        with pytest.raises(UsageError):
            listen.Listener(listen.Address(host, 0))


@contextlib.contextmanager
def reporting(*words):
    """The verb in a process of its own; yields it and the URL that it says it listens on."""
    argv = [sys.executable, "-m", "warmer", "report", "--otlp", "0", *map(str, words)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WARMER_")}
    with subprocess.Popen(
        argv, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, json.loads(process.stderr.readline())["url"]
        finally:
            process.kill()


def test_a_start_is_reported_recorded_and_drawn_as_it_ends(tmp_path):
    record, html = tmp_path / "spans.jsonl", tmp_path / "start.html"
    cold = LOGS / "spans-cold-0.31.jsonl"
    with reporting("--record", record, "--html", html, "--baseline", cold) as (process, url):
        replay(url, "spans-warm-0.31.jsonl")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "engine init               39.96     4.88" in out
    kept = otlp.recorded(record.read_text(encoding="utf-8"))
    assert spans.read(kept).phases["engine_init"] == 4.884
    assert "</html>" in html.read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["spans.jsonl", "start.html"]


def test_an_interruption_ends_the_listening_and_not_the_report():
    with reporting() as (process, url):
        for line in lines():
            if spans.WHOLE not in line:  # it says that the start is over
                post(url, line.encode(), otlp.JSON)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "CPU compile, warm-up" in out
    assert "the spans end before ready" in out


def test_an_interruption_before_any_span_ends_it():
    with reporting() as (process, _):
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")


def test_waiting_in_vain_says_how_vllm_is_started():
    with reporting("--wait", "0.1", "--json") as (process, url):
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    error = json.loads(out)["error"]
    assert (error["reason"], url in error["message"]) == ("no-spans", True)
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in error["hint"]
