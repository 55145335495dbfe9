"""Buckets that cannot keep a lock: which error, what to do about it, and no secret in it."""

import http.server
import json
import os
import socket
import sys
import threading
import urllib.parse
from contextlib import contextmanager

import pytest
from botocore.config import Config

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import owner
import runs
import s3
from proxy import Proxy

from warmer.fill import claim
from warmer.fill.locks import UnansweredError
from warmer.fill.locks import s3 as s3_lock


def objects(bucket):
    return {"mechanism": "s3", "place": bucket, "prefix": "locks"}


def kept(bucket):
    listed = s3.seaweed().client().list_objects_v2(Bucket=bucket, Prefix="locks/")
    return [found["Key"] for found in listed.get("Contents", [])]


@pytest.mark.parametrize(
    "keys",
    [s3.Keys("AKIAPLANTED", "planted-secret"), s3.Keys("testkey", "planted-secret")],
    ids=["unknown key", "wrong secret"],
)
def test_wrong_keys_are_denied_and_not_repeated(refused, bucket, use, keys):
    use(s3.seaweed().environment(keys))
    error = refused(objects(bucket), keys.secret_key)
    assert error.reason == "lock-denied"
    assert kept(bucket) == []


def test_no_keys_at_all_are_denied_with_what_to_give(refused, bucket, use):
    environment = s3.seaweed().environment()
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    use(environment)
    error = refused(objects(bucket))
    assert error.reason == "lock-denied"
    assert "AWS_ACCESS_KEY_ID" in error.hint


def test_expired_credentials_are_told_from_wrong_ones(refused, bucket, use):
    with s3.ExpiredCredentials(s3.seaweed()) as expired:
        use(expired.environment())
        error = refused(objects(bucket), expired.keys.secret_key, expired.keys.token)
    assert error.reason == "lock-denied"
    assert "expired" in error.hint


def test_credentials_that_may_only_read_are_denied_before_anything_is_filled(refused, bucket, use):
    use(s3.seaweed().environment(s3.Seaweed.reader))
    error = refused(objects(bucket), s3.Seaweed.reader.secret_key)
    assert error.reason == "lock-denied"
    assert "s3:PutObject" in error.hint
    assert kept(bucket) == []


def test_a_bucket_that_is_absent_is_named(refused, use):
    use(s3.rclone().environment())  # the other makes the buckets it lacks
    error = refused(objects("no-such-bucket"))
    assert error.reason == "no-bucket"
    assert "no-such-bucket" in error.message


def test_a_bucket_that_ignores_conditions_is_refused_each_time(refused, use):
    server = s3.rclone()
    use(server.environment())
    name = server.bucket()
    for _ in range(2):
        error = refused(objects(name), server.secret_key)
        assert error.reason == "no-conditional-writes"
        assert "If-None-Match" in error.hint


@pytest.mark.parametrize("only", ["If-None-Match", "If-Match"])
def test_a_bucket_that_obeys_only_one_of_the_two_conditions_is_refused(refused, bucket, use, only):
    class Deaf(Proxy):
        """Answers writes under the other condition as if there were none."""

        def take(self, head):
            fault = super().take(head)
            other = {"If-None-Match": "if-match", "If-Match": "if-none-match"}[only]
            if head.first[0] == "PUT" and other in head.headers:
                fault.status, fault.headers = 200, {"ETag": '"0123"'}
            return fault

    with Deaf(s3.seaweed().endpoint) as proxy:
        use(s3.seaweed().environment(endpoint=proxy.url))
        assert refused(objects(bucket)).reason == "no-conditional-writes"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((500, "InternalError"), "lock-unavailable"),
        ((503, "SlowDown"), "lock-unavailable"),
        ((429, "TooManyRequests"), "lock-unavailable"),
        ((400, "RequestTimeout"), "lock-unavailable"),
        ((403, "AccessDenied"), "lock-denied"),
        ((400, "InvalidBucketName"), "lock-refused"),
        ((501, "NotImplemented"), "no-conditional-writes"),
    ],
    ids=str,
)
def test_what_the_service_says_decides_the_reason(refused, bucket, use, said, reason):
    status, code = said
    with Proxy(s3.seaweed().endpoint) as proxy:
        use(s3.seaweed().environment(endpoint=proxy.url))
        proxy.fault(method="PUT", status=status, body=s3.refusal(code, "as the service says it"))
        error = refused(objects(bucket), s3.seaweed().secret_key)
    assert error.reason == reason
    assert str(status) in error.message


def test_an_endpoint_that_is_not_there_is_unreachable(refused, bucket, use):
    endpoint = f"http://127.0.0.1:{runs.closed_port()}"
    use(s3.seaweed().environment(endpoint=endpoint))
    error = refused(objects(bucket), s3.seaweed().secret_key)
    assert error.reason == "lock-unreachable"
    assert "AWS_ENDPOINT_URL" in error.hint


@pytest.mark.parametrize("method", ["PUT", "GET"])
@pytest.mark.parametrize(
    "answer",
    [
        {
            "status": 200,
            "body": b"<html><p>Log in, please",
            "headers": {"Content-Type": "text/html"},
        },
        {"status": 200},
        {"status": 503, "body": b"<html><p>upstream connect error"},
    ],
    ids=["portal", "empty", "gateway"],
)
def test_what_is_not_an_answer_of_s3_is_none(refused, bucket, use, method, answer):
    with Proxy(s3.seaweed().endpoint) as proxy:
        use(s3.seaweed().environment(endpoint=proxy.url))
        proxy.fault(method=method, **answer)
        assert refused(objects(bucket)).reason in ("lock-unreachable", "lock-unavailable")


def test_a_token_that_no_header_may_hold_is_not_repeated(refused, bucket, use):
    """As from a Kubernetes secret that was made with echo: it ends in a newline."""
    keys = s3.Keys("AKIAPLANTED", "planted-secret\n", "planted-session\n")
    use(s3.seaweed().environment(keys))
    error = refused(objects(bucket), "planted-secret", "planted-session")
    assert "planted-session" in str(error.__cause__), "what must not be repeated"


def test_a_role_whose_token_is_not_there_is_denied(refused, bucket, use, tmp_path):
    environment = s3.seaweed().environment()
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    role = {"AWS_ROLE_ARN": s3.ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none")}
    use(environment | role)
    assert refused(objects(bucket)).reason == "lock-denied"


@contextmanager
def identity(session):
    """A service that gives credentials for a pod's token: AWS's STS, and the agent of EKS Pod Identity."""
    given = {"AccessKeyId": session.access_key, "SecretAccessKey": session.secret_key}
    until = {"Expiration": "2999-01-01T00:00:00Z"}
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # AssumeRoleWithWebIdentity
            asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(asked[b"WebIdentityToken"][0].decode())
            inner = given | until | {"SessionToken": session.token}
            fields = "".join(f"<{name}>{value}</{name}>" for name, value in inner.items())
            action = "AssumeRoleWithWebIdentity"
            result = f"<{action}Result><Credentials>{fields}</Credentials></{action}Result>"
            self.answer(f"<{action}Response>{result}</{action}Response>")

        def do_GET(self):  # the agent's credentials
            seen.append(self.headers["Authorization"])
            self.answer(json.dumps(given | until | {"Token": session.token}))

        def answer(self, text):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.mark.parametrize("way", ["IRSA", "Pod Identity"])
def test_a_pods_token_is_all_that_a_role_needs(bucket, use, tmp_path, way):
    (tmp_path / "token").write_text("the-pods-token")
    environment = s3.seaweed().environment()
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    with identity(s3.seaweed().session()) as (url, seen):
        role = {
            "IRSA": {
                "AWS_ROLE_ARN": s3.ROLE,
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
                "AWS_ENDPOINT_URL_STS": url,
            },
            "Pod Identity": {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
            },
        }[way]
        use(environment | role)
        owner.open_lock(objects(bucket), me="me", lease=30.0).try_acquire(owner.KEY).release()
    assert seen == ["the-pods-token"]


def test_a_password_in_the_endpoint_is_not_repeated(refused, bucket, use):
    endpoint = f"http://user:planted-password@127.0.0.1:{runs.closed_port()}"
    use(s3.seaweed().environment(endpoint=endpoint))
    error = refused(objects(bucket), "planted-password")
    assert "127.0.0.1" in error.message


def test_an_endpoint_that_is_no_address_is_named(refused, bucket, use):
    use(s3.seaweed().environment(endpoint="seaweed"))
    error = refused(objects(bucket))
    assert error.reason == "no-s3"
    assert "AWS_ENDPOINT_URL" in error.hint


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path / "place") as place:
        yield place


def test_wrong_keys_end_prefill_with_4_and_are_printed_nowhere(place, bucket):
    secret = "planted-secret-key"
    env = s3.seaweed().environment(s3.Keys("AKIAPLANTED", secret))
    options = ("--lock", f"s3://{bucket}/models")
    place.fails(4, "lock-denied", "s3:PutObject", options=options, env=env)
    result = place.run("prefill", *options, env=env)
    assert result.code == 4
    assert secret not in result.out + result.err


def test_the_password_of_an_endpoint_that_stays_away_is_printed_nowhere(place):
    secret = "PlantedInAnEndpoint"
    endpoint = f"http://user:{secret}@127.0.0.1:{runs.closed_port()}"
    env = s3.seaweed().environment(endpoint=endpoint)
    options = ("--lock", "s3://locks/models", "--wait", "2", "--json")
    result = place.run("prefill", *options, env=env)
    assert result.code in (3, 4), "as it is taken: a wait that ended, or a lock that failed"
    assert "the lock does not answer" in result.err
    assert secret not in result.out + result.err


def test_a_service_that_is_too_slow_did_not_answer_and_is_not_taken_for_missing_credentials(
    use, monkeypatch
):
    """What timed out may have been done: only an error that says so is asked about again."""
    quick = Config(retries={"total_max_attempts": 1}, connect_timeout=0.2, read_timeout=0.2)
    monkeypatch.setattr(s3_lock, "_CONFIG", quick)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # whose connections nobody accepts
        use(
            s3.seaweed().environment()
            | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}"}
        )
        with pytest.raises(UnansweredError) as caught:
            s3_lock.S3Register("bucket", "locks")
    assert caught.value.reason == "lock-unreachable"
    assert "ReadTimeoutError" in caught.value.message


def test_a_service_too_busy_to_answer_when_the_lock_is_opened_is_asked_again(
    bucket, use, monkeypatch
):
    """As when hundreds of pods open it at once: some connections get no answer in time."""
    monkeypatch.setattr(claim, "_SILENT", 6.0)
    monkeypatch.setattr(s3_lock, "_CONFIG", s3_lock._CONFIG.merge(Config(read_timeout=0.3)))
    at = objects(bucket) | {"prefix": "busy"}
    with Proxy(s3.seaweed().endpoint) as proxy:
        use(s3.seaweed().environment(endpoint=proxy.url))
        fault = proxy.fault(method="PUT", times=2, hang="before")
        claims = claim.Claims(lambda: owner.open_lock(at, me="me", lease=30.0))
        with claims.claim(owner.KEY, wait=60.0, filled=lambda: False) as grant:
            assert grant is not None
            assert fault.times == 0, "it was asked, in vain"


def test_a_bucket_whose_conditions_were_seen_is_probed_with_two_questions(bucket, use):
    with Proxy(s3.seaweed().endpoint) as proxy:
        use(s3.seaweed().environment(endpoint=proxy.url))
        at = objects(bucket) | {"prefix": "probed"}
        for questions in (3, 2, 2):
            proxy.requests.clear()
            owner.open_register(at)
            assert [method for method, _ in proxy.requests] == ["PUT"] * questions
