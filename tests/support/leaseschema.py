"""A Lease as a Kubernetes API server takes it: what decodes, what is valid, and how it says no.

Every word as 1.33 said it (lease-transcript.json); what was not recorded follows its source: values
of a wrong type, times which do not parse, names that differ, several complaints at once.
"""

import json
import re
from datetime import UTC, datetime

GROUP, API_VERSION = "coordination.k8s.io", "coordination.k8s.io/v1"
RESOURCE = f"leases.{GROUP}"
# Field → its type in Go, in the order in which the server writes them.
SPEC = {
    "holderIdentity": "string",
    "leaseDurationSeconds": "int32",
    "acquireTime": "time",
    "renewTime": "time",
    "leaseTransitions": "int32",
    "strategy": "string",
    "preferredHolder": "string",
}
METADATA = (
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
)
_IN_GO = {
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
}
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NO_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.',"
    " and must start and end with an alphanumeric character (e.g. 'example.com', regex used for"
    f" validation is '{_SUBDOMAIN}')"
)
# Go's layout of a MicroTime, and the elements of it which its errors name.
_LAYOUT = "2006-01-02T15:04:05.000000Z07:00"
_ELEMENTS = re.findall(r"\.000000|Z07:00|\d+|[-T:]", _LAYOUT)
_PATTERNS = {".000000": r"\.\d{6}", "Z07:00": r"Z|[+-]\d\d:\d\d"}

quote = json.dumps


class StatusError(Exception):
    """An answer other than success, as a `Status`."""

    def __init__(self, code, reason, message, details=None):
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.body |= {"message": message} | ({"reason": reason} if reason else {})
        self.body |= ({} if details is None else {"details": details}) | {"code": code}


def details_of(name="", *, kind="leases", **more):
    return ({"name": name} if name else {}) | {"group": GROUP, "kind": kind} | more


def not_found(name):
    message = f"{RESOURCE} {quote(name)} not found"
    return StatusError(404, "NotFound", message, details_of(name))


def already_exists(name):
    message = f"{RESOURCE} {quote(name)} already exists"
    return StatusError(409, "AlreadyExists", message, details_of(name))


def conflict(name, why):
    message = f"Operation cannot be fulfilled on {RESOURCE} {quote(name)}: {why}"
    return StatusError(409, "Conflict", message, details_of(name))


def bad_request(message):
    return StatusError(400, "BadRequest", message)


def invalid(name, errors, *, kind="Lease"):
    """`errors` holds (field, what is wrong with it), at least one."""
    told = [f"{field}: {wrong}" for field, wrong in errors]
    causes = []
    for field, wrong in errors:
        reason = "FieldValueRequired" if wrong.startswith("Required") else "FieldValueInvalid"
        causes.append({"reason": reason, "message": wrong, "field": field})
    why = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    message = f"{kind}.{GROUP} {quote(name)} is invalid: {why}"
    return StatusError(422, "Invalid", message, details_of(name, kind=kind, causes=causes))


def parse_json(data):
    try:
        value = json.loads(data)
    except ValueError as error:
        value = error
    if not isinstance(value, dict):
        raise bad_request(f"couldn't get version/kind; json parse error: {value}")
    return value


def decode(body, *, validation="Warn"):
    """Return the metadata and the spec in a body as the server understands them, and warnings."""
    version, kind = (body.get("apiVersion") or API_VERSION), (body.get("kind") or "Lease")
    if version != API_VERSION:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version"
            f" ({API_VERSION})"
        )
    if kind != "Lease":
        raise _undecodable(f"got a {kind}")
    metadata, spec = body.get("metadata") or {}, body.get("spec") or {}
    _require(metadata, dict, "Lease.metadata", "v1.ObjectMeta")
    _require(spec, dict, "Lease.spec", "v1.LeaseSpec")
    unknown = [name for name in body if name not in {"kind", "apiVersion", "metadata", "spec"}]
    unknown += [f"metadata.{name}" for name in metadata if name not in METADATA]
    unknown += [f"spec.{name}" for name in spec if name not in SPEC]
    complaints = [f"unknown field {quote(name)}" for name in unknown]
    taken = {name: _typed(name, spec[name]) for name in SPEC if spec.get(name) is not None}
    if complaints and validation == "Strict":
        raise _undecodable(f"strict decoding error: {', '.join(complaints)}")
    return metadata, taken, complaints if validation == "Warn" else []


def _undecodable(why):
    return bad_request(f'Lease in version "v1" cannot be handled as a Lease: {why}')


def _typed(name, value):
    if SPEC[name] == "time":
        _require(value, str, "", "string")
        return micro_time(value)
    _require(value, str if SPEC[name] == "string" else int, f"LeaseSpec.spec.{name}", SPEC[name])
    return value


def _require(value, wanted, field, go):
    if type(value) is wanted:
        return
    got = _IN_GO[type(value)] + (f" {value}" if isinstance(value, float) else "")
    where = f"struct field {field}" if field else "value"
    raise _undecodable(f"json: cannot unmarshal {got} into Go {where} of type {go}")


def micro_time(text):
    """Return a MicroTime as the server writes it: in UTC and with exactly six digits."""
    rest = text
    for element in _ELEMENTS:
        pattern = _PATTERNS.get(element) or re.sub(r"\d", r"\\d", element)
        if not (match := re.match(pattern, rest, re.ASCII)):
            why = f"cannot parse {quote(rest)} as {quote(element)}"
            raise _undecodable(f"parsing time {quote(text)} as {quote(_LAYOUT)}: {why}")
        rest = rest[match.end() :]
    if rest:
        raise _undecodable(f"parsing time {quote(text)}: extra text: {quote(rest)}")
    try:
        when = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        which = str(error).split()[0]
        raise _undecodable(f"parsing time {quote(text)}: {which} out of range") from None
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def check_name(name):
    if not name:
        return [("metadata.name", "Required value: name or generateName is required")]
    wrong = ["must be no more than 253 characters"] if len(name) > 253 else []
    wrong += [] if re.fullmatch(_SUBDOMAIN, name, re.ASCII) else [_NO_SUBDOMAIN]
    return [("metadata.name", f"Invalid value: {quote(name)}: {each}") for each in wrong]


def check_spec(spec):
    wrong = []
    if (seconds := spec.get("leaseDurationSeconds", 1)) <= 0:
        wrong.append(("leaseDurationSeconds", f"{seconds}: must be greater than 0"))
    if (count := spec.get("leaseTransitions", 0)) < 0:
        wrong.append(("leaseTransitions", f"{count}: must be greater than or equal to 0"))
    return [(f"spec.{field}", f"Invalid value: {what}") for field, what in wrong]
