"""A pod's own identity (IRSA): a token in a file, for which AWS's STS gives keys. boto3's own chain does it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from warmer.errors import SourceError
from warmer.fill.sources.s3 import S3
from warmer.urls import parse_model

ROLE = "arn:aws:iam::123456789012:role/warmer"
KEYS = ("KEYOFTHEROLE", "secret-of-the-role", "session-of-the-role")
GIVEN = (
    '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
    "<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>"
    "<SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>"
    "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
    "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
).format(*KEYS)
EMPTY = (
    "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


@pytest.fixture
def aws():
    """STS and S3 at one address: yields the URL, what STS was asked, and with what S3 was."""
    asked, signed = [], []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, text):
            self.send_response(200)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append({name: value for name, (value,) in parse_qs(body).items()})
            self._answer(GIVEN)

        def do_GET(self):
            signed.append((self.headers["Authorization"], self.headers["X-Amz-Security-Token"]))
            self._answer(EMPTY)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked, signed
        server.shutdown()


def test_a_pods_own_identity_becomes_the_keys_that_requests_are_signed_with(
    aws, monkeypatch, tmp_path
):
    url, asked, signed = aws
    (tmp_path / "token").write_text("token-of-the-pod")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    environment = {
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "HOME": str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError) as caught:
        S3(parse_model("s3://models/llama")).resolve()
    assert caught.value.reason == "not-found", "the bucket answered, and is empty"
    assert {(a["Action"], a["RoleArn"], a["WebIdentityToken"]) for a in asked} == {
        ("AssumeRoleWithWebIdentity", ROLE, "token-of-the-pod")
    }
    assert signed
    for authorization, token in signed:
        assert f"Credential={KEYS[0]}/" in authorization
        assert token == KEYS[2]
    assert not [secret for secret in KEYS if secret in f"{caught.value}{caught.value.hint}"]
