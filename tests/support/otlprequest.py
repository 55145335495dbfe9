"""One small request of OTLP/JSON: two spans of a start, one of which failed."""

SPAN = {
    "name": "Overall Loading", "traceId": "ab" * 16, "spanId": "cd" * 8, "status": {"code": 2},
    "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001000000000",
}  # fmt: skip
REQUEST = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "vllm.process_id", "value": {"stringValue": "7"}}]},
            "scopeSpans": [{"spans": [SPAN, SPAN | {"name": "Load weights", "spanId": "ef" * 8}]}],
        }
    ]
}
