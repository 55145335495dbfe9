"""What servers and logs say is a measure, or the documented refusal; and is read in linear time."""

import contextlib
import gzip
import json
import os
import sys
import time

import pytest
from google.protobuf import json_format
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

HERE = os.path.dirname(__file__)
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]
from hostile import TEXTS, documents, examples
from otlprequest import REQUEST

from warmer.report import handed, log, otlp, spans
from warmer.tune import capture, exposition, observed, prometheus
from warmer.tune.observed import BadMetricsError

# --- logs

LOG = [
    "[+1.234] ", "[+", "(APIServer pid=1) ", "(Worker pid=", "INFO 11-28 10:00:00 [x.py:1] ",
    "INFO 11-28 99:99:99 [", "INFO:     ", "2026-01-01 10:00:00,123 - INFO - flashinfer.jit: ",
    "vLLM API server version 0.32.0", "Loading weights took 1.5 seconds", "torch.compile took 3 s in total",
    "Dynamo bytecode transform time: ", "9" * 12, ".", " s", "\x1b[32m", "\x1b]", "\r", "\n", "\ufffd",
    "Application startup complete.", "Starting to load model x", "Graph capturing finished in 5 secs, took 1.0 GiB",
    "Capturing CUDA graphs (x):   0%|   | 0/51 [", "Building JIT module x", "Available KV cache memory: ",
    "Compiling a graph for compile range (1, 2) takes 1 s", "non-default args: ", "init engine (profile, create kv cache, warmup model) took 5 s",
]  # fmt: skip
LINES = st.lists(st.sampled_from(LOG) | st.text(max_size=5), max_size=25).map("".join)


@examples(250)
@given(LINES)
def test_a_log_of_anything_is_read_and_no_phase_is_negative(text):
    found = log.parse(text.split("\n"))
    assert all(seconds >= 0 for seconds in found.phases.values())
    price = capture.from_log(text.split("\n"))
    assert price is None or (price.seconds >= 0 and price.memory >= 0)
    json.dumps(found.phases, allow_nan=False)


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "unit",
    ["INFO 11-28 10:00:00 [", "INFO 11-28 10:00:00 (", "(x pid=", "(", "(x pid=1", "[+1", "\x1b]", "\x1b[0",
     "2026-01-01 10:00:00,123 - a - x", "2026-01-01 10:00:00,123 - ", "\r", "INFO: ", "INFO:", "1" ,
     "INFO 11-28 10:00:00 [x] Time spent downloading weights for : 1.", ": 1.", " [", "Capturing CUDA graphs",
     "Capturing CUDA graphs: 0%|", "(INFO 11-28 10:00:00 (a pid=1) ["],
)  # fmt: skip
def test_a_line_without_end_takes_no_longer_than_its_length(unit):
    began = time.process_time()
    line = unit * (MEGABYTE // len(unit))
    log.parse([line])
    capture.from_log([line])
    assert time.process_time() - began < 10, "a quadratic reader takes minutes"


@examples(60)
@given(documents({"pieces": [{"kind": "compile", "verdict": "sealed", "generation": 1}]}), LINES)
def test_what_a_hostile_handoff_explains_is_a_clause(data, text):
    start = log.parse(text.split("\n"))
    with contextlib.suppress(ValueError, RecursionError):
        handoff = json.loads(data)
        if isinstance(handoff, dict):
            found = handed.explained(start, handoff, crashed=False)
            assert all(isinstance(clause, str) for clause in found.built)


# --- spans

BODIES = documents(REQUEST)


@examples(250)
@given(
    BODIES,
    st.sampled_from([otlp.JSON, otlp.PROTOBUF]),
    st.sampled_from(["", "gzip", "deflate", "x"]),
)
def test_a_body_is_spans_or_refused(body, kind, encoding):
    data = gzip.compress(body, 1, mtime=0) if encoding == "gzip" and len(body) % 2 else body
    with contextlib.suppress(otlp.BodyError):
        _told(otlp.decode(data, kind=kind, encoding=encoding))


@examples(120)
@given(st.data(), st.binary(max_size=8))
def test_a_spoilt_protobuf_is_spans_or_refused(data, more):
    raw = bytearray(_protobuf())
    for byte in more:
        raw[data.draw(st.integers(0, len(raw) - 1))] = byte
    with contextlib.suppress(otlp.BodyError):
        _told(otlp.decode(bytes(raw), kind=otlp.PROTOBUF, encoding=""))


@examples(100)
@given(st.lists(st.binary(max_size=20) | BODIES, max_size=3))
@example([b'{"resourceSpans": "\xed\xb0\x80"}'])
def test_a_recording_is_spans_or_refused(lines):
    with contextlib.suppress(otlp.BodyError):
        _told(otlp.recorded(b"\n".join(lines).decode(errors="surrogateescape")))


HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
NANOS = st.integers(0, 1 << 41).map(lambda n: n / 1024)
SPANS = st.builds(
    lambda name, trace, ident, process, begin, length, failed: spans.Span(
        name, trace, ident, process, begin, begin + length, failed
    ),
    st.sampled_from(sorted(spans.NAMES)), HEX, HEX.map(lambda s: s[:16]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), NANOS, st.integers(0, 100), st.booleans(),
)  # fmt: skip


@examples(60)
@given(st.lists(SPANS, max_size=4))
def test_spans_are_read_as_they_were_recorded(some):
    def near(ones):
        return sorted(
            (s.name, s.id, s.process, round(s.begin, 3), round(s.end, 3), s.failed) for s in ones
        )

    assert near(otlp.recorded(otlp.recording(some))) == near(some)
    _told(some)


def _told(found):
    start = spans.read(found)
    assert all(seconds >= 0 for seconds in start.phases.values())
    otlp.recording(found)


def _protobuf():
    request = trace_service_pb2.ExportTraceServiceRequest()
    json_format.ParseDict(REQUEST, request)
    return request.SerializeToString()


# --- metrics

METRICS = [
    "vllm:iteration_tokens_total_bucket", "vllm:generation_tokens_total", "process_start_time_seconds",
    "{", "}", 'le="', 'le="1.0"', 'le="+Inf"', 'model_name="m"', ",", '"', "\\", " ", "1", "1e308", "NaN", "+Inf",
    "-1", "# TYPE ", "# HELP", "\n", "=", "{}", " # {} 1", "1 1700000000", "\t",
]  # fmt: skip
SCRAPES = st.lists(st.sampled_from(METRICS) | st.text(max_size=3), max_size=20).map("".join)
VALUE = st.sampled_from(["0", "1", "5", "1e308", "NaN", "+Inf", "-1", "x", "9" * 400])
BUCKETS = st.lists(
    st.builds(
        'vllm:iteration_tokens_total_bucket{{model_name="{}",le="{}"}} {}\n'.format,
        st.sampled_from(["m", "n"]), VALUE | st.just("8"), VALUE,
    ),
    max_size=6,
).map("".join)  # fmt: skip


@examples(300)
@given(SCRAPES | BUCKETS, BUCKETS)
def test_a_scrape_is_steps_or_refused(text, before):
    with contextlib.suppress(BadMetricsError):
        found = exposition.read(text)
        for model in exposition.models(found):
            with contextlib.suppress(BadMetricsError):
                _steps(observed.from_buckets(exposition.counted(found, model).buckets))
            with contextlib.suppress(BadMetricsError):
                since = exposition.read(before)
                _steps(observed.from_buckets(exposition.counted(found, model, since=since).buckets))


ANSWER = {
    "status": "success",
    "data": {
        "resultType": "matrix",
        "result": [
            {"metric": {"le": "8", "model_name": "m"}, "values": [[1, "5"], [2, "6"]]},
            {"metric": {"le": "+Inf", "model_name": "m"}, "values": [[1, "5"], [2, "6"]]},
        ],
    },
}


def answer(*values, le="+Inf"):
    changed = json.loads(json.dumps(ANSWER))
    changed["data"]["result"][1]["values"] = [[n, value] for n, value in enumerate(values)]
    changed["data"]["result"][1]["metric"]["le"] = le
    return json.dumps(changed).encode()


@examples(250)
@given(documents(ANSWER))
@example(answer(10**400))
@example(answer("1e308", "1e308"))
def test_an_answer_of_prometheus_is_steps_or_refused(body):
    with contextlib.suppress(BadMetricsError):
        _steps(prometheus.read(body)[0])


@pytest.mark.parametrize("values", [(10**400,), ("1e308", "1e308")], ids=["whole", "sum"])
def test_numbers_beyond_all_that_can_be_counted_are_refused(values):
    with pytest.raises(BadMetricsError):
        prometheus.read(answer(*values))


def _steps(found):
    if found is not None:
        assert 0 < found.weight < float("inf")
        assert 1 <= found.quantile(0.5) <= 2 * observed.LARGEST
        assert 0 <= found.covered(8) <= 1 + 1e-9


@examples(40)
@given(st.integers(200, 4000), st.sampled_from(['a="b",', '\\"', "{", ",", "=", '"'.ljust(2)]))
def test_a_long_line_of_labels_is_read_or_refused(count, unit):
    with contextlib.suppress(BadMetricsError):
        exposition.read(f"vllm:generation_tokens_total{{{unit * count}}} 1\n")


@examples(30)
@given(TEXTS)
def test_a_question_to_prometheus_holds_any_name(name):
    assert prometheus.query("tokens", name).count("{") >= 1
