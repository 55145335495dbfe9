"""What `warmer.report.spans` and `warmer.report.otlp` make of recorded spans, and of what is none."""

import gzip
import json
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from warmer.cli.report import command
from warmer.errors import UsageError
from warmer.report import otlp, spans
from warmer.report.log import parse
from warmer.report.spans import Span

LOGS = Path(__file__).parent / "logs"
SHARED = ("engine_process", "weights", "warmup", "engine_init")
"""What logs and spans tell of the same moments."""


def recorded(name):
    return otlp.recorded((LOGS / name).read_text(encoding="utf-8"))


def span(name, begin, end, process="1", *, trace="t"):
    return Span(name, trace, f"{name} {begin} {process}", process, begin, end, failed=False)


@pytest.mark.parametrize("which", ["cold", "warm"])
def test_the_spans_of_a_recorded_start_say_what_its_log_says(which):
    start = spans.read(recorded(f"spans-{which}-0.31.jsonl"))
    with (LOGS / f"{which}-0.31.log").open(encoding="utf-8", newline="\n") as file:
        log = parse(file)
    assert start.clock == "spans"
    for phase in SHARED:
        assert start.phases[phase] == pytest.approx(log.phases[phase], abs=0.02), phase
    # The API server's imports, its config and its HTTP server are in the log alone.
    assert start.total_s == start.phases["ready"] < log.total_s
    assert start.phases["config"] < log.phases["config"]
    assert start.cache == "unknown"


def test_a_server_that_was_stopped_early_still_tells_what_it_had_sent():
    start = spans.read(recorded("spans-cut-0.28.jsonl"))
    assert start.total_s == 58.544
    assert start.phases["warmup"] == 41.16
    assert "engine_init" not in start.phases


def test_a_start_on_a_gpu_tells_of_its_weights_and_of_dynamo_what_its_log_does():
    start = spans.read(recorded("spans-h200-warm-0.26.jsonl"))
    assert start.phases["weights"] == pytest.approx(2.65, abs=0.02)
    assert start.phases["dynamo"] == pytest.approx(3.91, abs=0.005)
    assert start.phases["compile"] == pytest.approx(0.244, abs=0.01)  # what was loaded has no span
    assert "engine_init" not in start.phases
    assert start.total_s == pytest.approx(14.54, abs=0.01)


def test_a_start_that_failed_was_never_ready():
    came = recorded("spans-failed-0.25.jsonl")
    assert spans.finished(came)
    start = spans.read(came)
    assert start.total_s is None
    assert start.phases == {"config": 6.3}
    assert start.failed == "Worker init"
    printed = invoke(LOGS / "spans-failed-0.25.jsonl").output
    assert "the start failed, in the span 'Worker init'" in printed
    assert start.recognised


def test_spans_sent_twice_or_in_another_order_change_nothing():
    came = recorded("spans-cold-0.31.jsonl")
    assert spans.read([*reversed(came), *came]) == spans.read(came)


def test_of_two_starts_the_one_that_was_ready_first_is_told():
    one = [span("Overall Loading", 0, 9, trace="a"), span("Prepare model", 1, 4, trace="a")]
    two = [span("Overall Loading", 2, 7, trace="b"), span("Prepare model", 3, 5, trace="b")]
    assert spans.read([*one, *two]).phases == {"engine_init": 2.0, "ready": 5.0}
    unfinished = [span("Worker init", 1, 2, trace="c"), span("Load weights", 2, 5, trace="c")]
    assert spans.read([*unfinished, span("Worker init", 0, 1, trace="d")]).phases["weights"] == 3.0


def test_the_parts_of_a_gpu_start_are_told_apart():
    worker = "2"
    came = [
        span("Overall Loading", 0, 100),
        span("EngineCoreProc init", 5, 99, "e"),
        span("Loading (GPU)", 12, 40, worker),
        span("Load weights", 14, 38, worker),
        span("Download weights - HF", 14, 30, worker),
        span("Prepare model", 40, 98, "e"),
        span("Dynamo bytecode transform", 41, 45, worker),
        span("Inductor compilation", 45, 55, worker),
        span("Compile graph", 46, 54, worker),  # inside it
        span("Allocate KV cache", 60, 62, worker),
        span("Warmup (GPU)", 62, 97, worker),
        span("DeepGemm warmup", 63, 70, worker),  # inside it
        span("Capture model", 72, 90, worker),
        span("Load weights", 14, 37, "3"),  # another rank, beside it
        span("Capture model", 72, 91, "3"),
    ]
    assert spans.read(came).phases == {
        "config": 5.0,
        "engine_process": 7.0,
        "download": 16.0,
        "weights": 23.0,  # rank 3 had nothing to download
        "dynamo": 4.0,
        "compile": 10.0,
        "jit": 17.0,
        "memory_profile": 7.0,
        "graph_capture": 19.0,
        "engine_init": 58.0,
        "ready": 100.0,
    }


def test_no_spans_are_no_start():
    assert not spans.read([]).recognised
    assert not spans.read([span("llm_request", 0, 1)]).recognised


def body(name="spans-cold-0.31.jsonl"):
    line = (LOGS / name).read_text(encoding="utf-8").splitlines()[0]
    return line.encode(), otlp.decode(line.encode(), kind=otlp.JSON, encoding="")


def protobuf(names):
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number, name in enumerate(names, 1):
        scope.spans.add(
            name=name,
            trace_id=b"t" * 16,
            span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=10**18,
            end_time_unix_nano=10**18 + 5 * 10**9,
        )
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("", bytes), ("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress)],
)
def test_a_body_is_read_however_it_is_packed(encoding, pack):
    raw = protobuf(["Load weights", "llm_request"])
    (found,) = otlp.decode(pack(raw), kind=f"{otlp.PROTOBUF}; charset=x", encoding=encoding)
    assert found == Span("Load weights", "74" * 16, "00" * 7 + "01", "", 1e9, 1e9 + 5, False)


def test_json_says_the_same_as_protobuf():
    line, found = body()
    ids = [s["spanId"] for s in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    assert [one.id for one in found] == ids


BOMB = gzip.compress(b"\0" * (otlp.MOST + 1))


@pytest.mark.parametrize(
    ("raw", "kind", "encoding", "status"),
    [
        (b"\xff" * 99, otlp.PROTOBUF, "", 400),
        (b"\x0a" * 99999, otlp.PROTOBUF, "", 400),
        (b"{", otlp.JSON, "", 400),
        (b"\xff\xfe", otlp.JSON, "", 400),
        (b'{"resourceSpans": 5}', otlp.JSON, "", 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": 5}]}]}]}', otlp.JSON, "", 400),
        (b'{"x":' * 9999, otlp.JSON, "", 400),
        (protobuf(["Load weights"]), "text/plain", "", 415),
        (protobuf(["Load weights"]), "", "", 415),
        (protobuf(["Load weights"]), otlp.PROTOBUF, "zstd", 415),
        (protobuf(["Load weights"]), otlp.PROTOBUF, "gzip", 400),
        (gzip.compress(protobuf(["Load weights"]))[:-9], otlp.PROTOBUF, "gzip", 400),
        (BOMB, otlp.PROTOBUF, "gzip", 413),
        (b"\0" * (otlp.MOST + 1), otlp.PROTOBUF, "", 413),
    ],
    ids=lambda value: None if isinstance(value, int) else repr(value)[:24],
)
def test_what_is_no_request_is_refused_as_a_whole(raw, kind, encoding, status):
    with pytest.raises(otlp.BodyError) as raised:
        otlp.decode(raw, kind=kind, encoding=encoding)
    assert raised.value.status == status


def test_a_recording_is_read_as_it_was_written():
    came = recorded("spans-failed-0.25.jsonl")
    again = otlp.recorded(otlp.recording(came))
    assert [s._replace(begin=0, end=0) for s in again] == [s._replace(begin=0, end=0) for s in came]
    for one, two in zip(came, again, strict=True):
        assert (one.begin, one.end) == pytest.approx((two.begin, two.end), abs=1e-6)
    assert any(one.failed for one in came)


def invoke(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def test_the_command_reads_a_recording_where_it_reads_a_log():
    cold, warm = (LOGS / f"spans-{which}-0.31.jsonl" for which in ("cold", "warm"))
    printed = invoke(warm, "--baseline", cold).output
    assert "engine init               39.96     4.88   8.2×" in printed  # noqa: RUF001 - as drawn
    assert "spans begin after Python's imports" in printed
    mixed = json.loads(invoke(warm, "--baseline", LOGS / "cold-0.31.log", "--json").output)
    ratios = {row["phase"]: row["ratio"] for row in mixed["rows"]}
    assert ratios["config"] is None
    assert ratios["ready"] is None
    assert ratios["engine_init"] == pytest.approx(8.2, abs=0.05)


@pytest.mark.parametrize("text", ['{"resourceSpans": [', '{"resourceSpans": []}\n{"x"\n'])
def test_a_broken_recording_is_a_usage_error(tmp_path, text):
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    result = invoke(path)
    assert isinstance(result.exception, UsageError)
    assert result.exception.reason == "spans-broken"


def test_a_recording_without_a_start_is_a_usage_error(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"resourceSpans": []}\n')
    result = invoke(path)
    assert isinstance(result.exception, UsageError)
    assert result.exception.reason == "log-foreign"
