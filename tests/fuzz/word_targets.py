"""Parsers of what servers say, logs hold and people type."""

from __future__ import annotations

import contextlib
import gzip
import json
import os

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from otlprequest import REQUEST
from target import JSON, Target, dumps, put, scratch, text

from warmer import argv, levers, quantities, secrecy, selection, urls, yamltext
from warmer.cli import config_file, prefill
from warmer.errors import UsageError
from warmer.fill.sources import s3_bytes
from warmer.model import canonical
from warmer.report import log, otlp, spans
from warmer.tune import capture, exposition, observed, prometheus, rewrite
from warmer.tune.observed import BadMetricsError


def _log(data: bytes) -> None:
    lines = text(data).split("\n")
    found = log.parse(lines)
    assert all(seconds >= 0 for seconds in found.phases.values())
    price = capture.from_log(lines)
    assert price is None or (price.seconds >= 0 and price.memory >= 0)
    json.dumps(found.phases, allow_nan=False)


def _told(found: list[spans.Span]) -> None:
    start = spans.read(found)
    assert all(seconds >= 0 for seconds in start.phases.values())
    otlp.recording(found)


def _otlp(kind: str, encoding: str):
    def run(data: bytes) -> None:
        with contextlib.suppress(otlp.BodyError):
            _told(otlp.decode(data, kind=kind, encoding=encoding))

    return run


def _recorded(data: bytes) -> None:
    with contextlib.suppress(otlp.BodyError):
        _told(otlp.recorded(text(data)))


def _steps(found: observed.Observed | None) -> None:
    if found is not None:
        assert 0 < found.weight < float("inf")
        assert 1 <= found.quantile(0.5) <= 2 * observed.LARGEST


def _metrics(data: bytes) -> None:
    with contextlib.suppress(BadMetricsError):
        found = exposition.read(text(data))
        for model in exposition.models(found):
            with contextlib.suppress(BadMetricsError):
                _steps(observed.from_buckets(exposition.counted(found, model).buckets))


def _prometheus(data: bytes) -> None:
    with contextlib.suppress(BadMetricsError):
        _steps(prometheus.read(data)[0])


_CONFIG = os.path.join(scratch(), "warmer.yaml")


class _Context:
    command = prefill.command
    default_map = None
    resilient_parsing = False


def _config(data: bytes) -> None:
    put(_CONFIG, data)
    ctx = _Context()
    with contextlib.suppress(UsageError):
        config_file.load(ctx, None, _CONFIG)
        assert ctx.default_map is not None
        assert all(isinstance(v, str | int | float | list) for v in ctx.default_map.values())


def _rewrite(data: bytes) -> None:
    before = data.decode(errors="replace")
    with contextlib.suppress(rewrite.NotEditableError):
        after = yamltext.load(rewrite.rewrite(before, [1, 8]))
        words = [str(w) for w in after.get("serve-args") or after["serve_args"]]
        at = words.index(rewrite.FLAG)
        assert words[at + 1 : at + 3] == ["1", "8"]


def _urls(data: bytes) -> None:
    url = text(data)
    with contextlib.suppress(UsageError):
        model = urls.parse_model(url)
        assert urls.parse_model(str(model)) == model
    with contextlib.suppress(UsageError):
        lock = urls.parse_lock(url)
        assert urls.SHORTEST_LEASE <= lock.lease <= urls.LONGEST_LEASE
    with contextlib.suppress(UsageError):
        remote = urls.parse_remote(url)
        assert urls.parse_remote(str(remote)) == remote


def _quantities(data: bytes) -> None:
    for parse in (quantities.parse_duration, quantities.parse_size, quantities.parse_rate):
        with contextlib.suppress(UsageError):
            assert 0 <= parse(text(data), "--x") < float("inf")


def _argv(data: bytes) -> None:
    words = text(data).split("\0")
    with contextlib.suppress(UsageError):
        flags = argv.parse(words)
        assert all(name.startswith("-") for name in flags)
        canonical(flags)
    with contextlib.suppress(UsageError):
        levers.parse(words)


def _files(data: bytes) -> None:
    """A repository's listing, and patterns that choose from it."""
    paths, _, patterns = text(data).partition("\0")
    some = {path for path in paths.split("\n") if path}
    chosen = selection.Selection("auto", exclude=tuple(p for p in patterns.split("\n") if p))
    assert selection.choose(some, chosen).keys() <= some


def _printable(data: bytes) -> None:
    said = secrecy.printable(text(data), 200)
    assert all(character.isprintable() for character in said)


def _refusal(data: bytes) -> None:
    status, _, body = data.partition(b"\n")
    found = s3_bytes._refusal(
        int(status) if status.isdigit() and len(status) == 3 else 403, {}, body
    )
    assert isinstance(str(found), str)


_WIRE = json_format.ParseDict(
    REQUEST, trace_service_pb2.ExportTraceServiceRequest()
).SerializeToString()
_LOG = b"""(APIServer pid=1) INFO 11-28 10:00:00 [x.py:1] vLLM API server version 0.32.0
[+1.234] (Worker pid=2) INFO 11-28 10:00:01 [x.py:1] Loading weights took 1.5 seconds
INFO 11-28 10:00:02 [monitor.py:40] torch.compile took 3 s in total
Capturing CUDA graphs (x):   0%|   | 0/51 [
2026-01-01 10:00:00,123 - INFO - flashinfer.jit: Building JIT module x
INFO 11-28 10:00:09 [core.py:402] init engine (profile, create kv cache, warmup model) took 5 s
INFO:     Application startup complete.
"""
_LOGGED = ("\\x1b[32m", "\\x1b]", "\\x0d", "[+", "(Worker pid=", " INFO ", "Graph capturing finished in 5 secs, took 1.0 GiB",
           "Starting to load model x", "Dynamo bytecode transform time: ", " seconds")  # fmt: skip
_BUCKETS = b"""# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{model_name="m",le="1.0"} 3
vllm:iteration_tokens_total_bucket{model_name="m",le="8.0"} 5
vllm:iteration_tokens_total_bucket{model_name="m",le="+Inf"} 8
vllm:generation_tokens_total{model_name="m"} 9
process_start_time_seconds 1.7e9
"""
_ANSWER = {
    "status": "success",
    "data": {
        "resultType": "matrix",
        "result": [
            {"metric": {"le": "8", "model_name": "m"}, "values": [[1, "5"], [2, "6"]]},
            {"metric": {"le": "+Inf", "model_name": "m"}, "values": [[1, "5"], [2, "6"]]},
        ],
    },
}
_YAML = b"warm-dir: /warm\nserve-args:\n  - --max-model-len\n  - 512\n  - --cudagraph-capture-sizes\n  - 1\n  - 2\nvolume: '/m' # x\n"
_YAMLED = ("&a ", "*a", "<<: ", "!!int ", "!!float ", "!!timestamp ", "? ", "2026-13-45", "0b_", "1:60", "| ", "{", "}", "- ")  # fmt: skip
TARGETS = {
    "log": Target(_log, (_LOG,), _LOGGED),
    "otlp-json": Target(_otlp(otlp.JSON, ""), (dumps(REQUEST),), JSON),
    "otlp-protobuf": Target(_otlp(otlp.PROTOBUF, ""), (_WIRE,)),
    "otlp-gzip": Target(_otlp(otlp.PROTOBUF, "gzip"), (gzip.compress(_WIRE, mtime=0),)),
    "recorded": Target(_recorded, (dumps(REQUEST) + b"\n" + dumps(REQUEST),), JSON),
    "metrics": Target(_metrics, (_BUCKETS,), ('le="', "NaN", "+Inf", "1e308", "# HELP ", "# TYPE ", "\\\\n", " # {} 1"), 2048),
    "prometheus": Target(_prometheus, (dumps(_ANSWER),), JSON),
    "config": Target(_config, (_YAML,), _YAMLED, 512),
    "rewrite": Target(_rewrite, (_YAML,), _YAMLED, 512),
    "urls": Target(
        _urls,
        (b"hf://org/name@main", b"s3://bucket/prefix?lease=30", b"k8s://namespace/prefix", b"file:///models"),
        ("://", "?lease=", "%2e", "..", "nan", "@"),
        256,
    ),
    "quantities": Target(_quantities, (b"1.5Gi", b"10 Gbit/s", b"2d"), ("Ki", "bps", "min", "\\xd9\\xa3"), 64),
    "argv": Target(
        _argv,
        (b'--max-model-len\000512\0-O3\0--x.y=1\0--no-z\0--j\0{"a": [1]}', b"fork=off\0imports=on"),
        ("--", "-tp", "-O", "=", '{"', "[[", "]]"),
        1024,
    ),
    "files": Target(_files, (b"config.json\nmodel-00001-of-00002.safetensors\nx/y.bin\0*.bin\n[a",), (".gguf", "[!", "**/", "optimizer.pt")),
    "printable": Target(_printable, ("a\x1b[31mé\u202e\n".encode(),), ("\\x1b", "\\xe2\\x80\\xae", "\\xc2\\x9b")),
    "s3-refusal": Target(
        _refusal,
        (b"403\n<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>m</Message></Error>",),
        ("<!DOCTYPE x [", "<!ENTITY a 'b'>", "&a;", "<Code/>", "xmlns='x'"),
        1024,
    ),
}  # fmt: skip
