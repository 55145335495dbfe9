"""What is taken out of texts, and what is left there."""

import pytest

from warmer import secrecy


@pytest.mark.parametrize(
    "text",
    ["hf://gpt2@main", "hf://org/name@0123", "s3://bucket/prefix@0123", "k8s://ns/prefix?lease=30"],
)
def test_a_model_and_its_revision_are_no_password(text):
    assert secrecy.redact(f"got no answer for {text}", {}) == f"got no answer for {text}"
    assert not secrecy.secret_value(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:sesame@host/path",
        "https://sesame@host/path",
        "redis://:sesame@host",
        "hf://user:sesame@org/name",
        "hf://hf_sesame@org/name",
        "xhf://sesame@host",
    ],
)
def test_a_password_in_an_address_is_taken_out(text):
    assert "sesame" not in secrecy.redact(f"got no answer from {text}", {})
    assert secrecy.secret_value(text)
