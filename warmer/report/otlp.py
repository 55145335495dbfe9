"""OpenTelemetry's wire format, as far as a start needs it: bodies → spans, spans → a recording. Pure.

A body is an ``ExportTraceServiceRequest`` (opentelemetry-proto), as protobuf or as JSON, and may be
compressed. Whoever reaches the port sends what he likes: bodies are bounded before and after they
are unpacked, and what is no request is refused as a whole.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format, message
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from warmer.report.spans import NAMES, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
MOST: Final = 4 << 20
"""Bytes of a body, as sent and unpacked. vLLM's exporter sends 512 spans at once, some 0.4 MB."""
_ID: Final = 32
"""Bytes of an id at most; the standard has 16, and 24 when they were taken for base64."""

_PROCESS: Final = ("vllm.process_id", "service.instance.id")
"""Resource attributes that tell processes apart; the first that there is."""
_NAME: Final = "vllm.process_name"
_RANK: Final = re.compile(r"Worker_(\d{1,6})", re.ASCII)
"""The resource attribute by which a worker says which rank it is (v1/executor/multiproc_executor.py)."""
_BILLION: Final = 1_000_000_000


class BodyError(ValueError):
    """A body that is no request.

    Attributes:
        status: what HTTP says of it.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def decode(body: bytes, *, kind: str, encoding: str) -> list[Span]:
    """Read the spans of a start out of one body; those of requests are left.

    Args:
        body: as sent.
        kind: its ``Content-Type``.
        encoding: its ``Content-Encoding``, or empty.

    Raises:
        BodyError: it is too long, of another kind, or broken.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind not in (PROTOBUF, JSON):
        raise BodyError(415, f"got a body of type {kind or 'none'}, expected {PROTOBUF} or {JSON}")
    raw = _unpacked(body, encoding.strip().lower())
    if kind == JSON:
        return _spans(_from_json(raw), _hex_in_base64)
    try:
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(raw)
    except (message.DecodeError, RecursionError) as exc:
        raise BodyError(400, f"got {len(raw)} bytes that are no trace request") from exc
    return _spans(request, bytes.hex)


def rejecting(number: int) -> bytes:
    """Answer a request of which `number` spans were not kept; 0: all were."""
    answer = trace_service_pb2.ExportTraceServiceResponse()
    if number:
        answer.partial_success.rejected_spans = number
        answer.partial_success.error_message = "no room for more spans of a start"
    body: bytes = answer.SerializeToString()
    return body


def recording(spans: Iterable[Span]) -> str:
    """Write spans as a file that `recorded` reads: a JSON request a line, a process each.

    It is the format of the OpenTelemetry Collector's file exporter. Names, times and ids only: no
    attribute that could hold a path or a host.
    """
    processes: dict[str, list[Span]] = {}
    for span in spans:
        processes.setdefault(span.process, []).append(span)
    return "".join(json.dumps(_request(*item)) + "\n" for item in processes.items())


def recorded(text: str) -> list[Span]:
    """Read what `recording`, or a Collector's file exporter, wrote.

    Raises:
        BodyError: a line is no request.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    return [
        span
        for line in lines
        for span in decode(line.encode(errors="replace"), kind=JSON, encoding="")
    ]


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        raw, rest = body[:MOST], body[MOST:]
    elif encoding in ("gzip", "deflate"):
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either head
        try:
            raw = unpack.decompress(body, MOST)
        except zlib.error as exc:
            raise BodyError(400, f"got a body that is no {encoding}") from exc
        rest = unpack.unconsumed_tail
        if not rest and not unpack.eof:
            raise BodyError(400, f"got {encoding} that is cut short")
    else:
        raise BodyError(415, f"got a body in {encoding}, expected gzip or none")
    if rest:
        raise BodyError(413, f"got a body of more than {MOST} bytes")
    return raw


def _from_json(raw: bytes) -> trace_service_pb2.ExportTraceServiceRequest:
    request = trace_service_pb2.ExportTraceServiceRequest()
    try:
        json_format.Parse(raw.decode(), request, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise BodyError(400, "got JSON that is no trace request") from exc
    return request


def _hex_in_base64(number: bytes) -> str:
    """An id as JSON has it: OTLP writes it in hex, and protobuf's parser took that for base64."""
    return base64.b64encode(number).decode()


def _spans(
    request: trace_service_pb2.ExportTraceServiceRequest, name: Callable[[bytes], str]
) -> list[Span]:
    return [
        Span(
            span.name,
            name(span.trace_id),
            name(span.span_id),
            process,
            span.start_time_unix_nano / _BILLION,
            max(span.end_time_unix_nano, span.start_time_unix_nano) / _BILLION,
            span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
            rank,
        )
        for resource in request.resource_spans
        for process, rank in [_process(resource)]
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name in NAMES and len(span.trace_id) <= _ID and len(span.span_id) <= _ID
    ]


def _process(resource: trace_pb2.ResourceSpans) -> tuple[str, int | None]:
    """Which process, and which rank that is."""
    said = {each.key: each.value.string_value for each in resource.resource.attributes}
    process = next((said[key][:_ID] for key in _PROCESS if said.get(key)), "")
    rank = _RANK.fullmatch(said.get(_NAME, ""))
    return process, int(rank[1]) if rank else None


def _request(process: str, spans: list[Span]) -> dict[str, Any]:
    attributes = [{"key": _PROCESS[0], "value": {"stringValue": process}}]
    if (rank := spans[0].rank) is not None:
        attributes.append({"key": _NAME, "value": {"stringValue": f"Worker_{rank}"}})
    written = [
        {
            "traceId": span.trace,
            "spanId": span.id,
            "name": span.name,
            "startTimeUnixNano": str(round(span.begin * _BILLION)),
            "endTimeUnixNano": str(round(span.end * _BILLION)),
            "status": {"code": trace_pb2.Status.STATUS_CODE_ERROR} if span.failed else {},
        }
        for span in spans
    ]
    return {
        "resourceSpans": [
            {"resource": {"attributes": attributes}, "scopeSpans": [{"spans": written}]}
        ]
    }
