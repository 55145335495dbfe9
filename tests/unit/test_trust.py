"""Keys and signatures: what is accepted, and what is refused in words."""

import os
import shutil
import stat
import subprocess
from dataclasses import replace

import pytest

from warmer import seal, trust
from warmer.errors import UsageError, VolumeError
from warmer.trust import ANYBODY, Trust

FILES = (seal.SealedFile("key.json", 2, "a" * 64), seal.SealedFile("tree.tar.zst", 9, "b" * 64))
SEAL = seal.Seal("jit", "k" * 64, 3, "n", "2026-01-01", "warmer", "engine run", 1.0, FILES, {})


@pytest.fixture
def key(tmp_path):
    """The path of a private key."""
    path = str(tmp_path / "key")
    trust.generate(path)
    return path


@pytest.fixture
def other(tmp_path):
    path = str(tmp_path / "other")
    trust.generate(path)
    return path


def read(path):
    with open(path, encoding="ascii") as f:
        return f.read()


def refused(reason, *words, **keys):
    with pytest.raises(UsageError) as caught:
        trust.load(keys.get("signing_key"), keys.get("trusted_keys"))
    assert caught.value.reason == reason
    for word in ("got ", "expected ", *words):
        assert word in caught.value.message, caught.value.message
    assert caught.value.hint
    return caught.value.message


def signed(key, record=SEAL):
    by = trust.load(key, None)
    return replace(record, signatures=by.sign(seal.statement(record)))


def objection(by, record):
    return by.objection(seal.statement(record), record.signatures)


# --- signatures ----------------------------------------------------------------------------------


def test_a_signed_seal_is_accepted_by_who_trusts_the_key_also_after_it_was_written(key):
    readers = trust.load(None, f"{key}.pub")
    record = seal.parse(seal.encode(signed(key)), where="here")
    assert objection(readers, record) == ""
    assert objection(ANYBODY, SEAL) == ""
    assert "no signature" in objection(readers, SEAL)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "compile"},
        {"key": "j" * 64},
        {"files": FILES[:1]},
        {"files": (*FILES, seal.SealedFile("more", 0, "c" * 64))},
        {"files": (replace(FILES[0], path="key"), FILES[1])},
        {"files": (replace(FILES[0], size=3), FILES[1])},
        {"files": (replace(FILES[0], sha256="c" * 64), FILES[1])},
    ],
)
def test_a_signature_is_of_the_kind_the_key_and_every_file(key, changed):
    record = replace(signed(key), **changed)
    assert "not one of what it states" in objection(trust.load(key, None), record)


def test_what_is_signed_is_what_the_page_says():
    assert (
        seal.statement(replace(SEAL, files=FILES[::-1]))
        == (
            f'{{"files":[["key.json",2,"{"a" * 64}"],["tree.tar.zst",9,"{"b" * 64}"]],'
            f'"key":"{"k" * 64}","kind":"jit","statement":"warmer piece","version":1}}'
        ).encode()
    )


def test_a_signature_holds_wherever_the_piece_is_copied_to(key):
    moved = replace(signed(key), generation=7, nonce="m", needs={"jit": 2}, files=FILES[::-1])
    assert objection(trust.load(key, None), moved) == ""


@pytest.mark.parametrize("value", ["", "!", "AAAA", "A" * 88, "é"])
def test_a_signature_that_is_none_is_an_objection(key, value):
    record = signed(key)
    record = replace(record, signatures=dict.fromkeys(record.signatures, value))
    assert objection(trust.load(key, None), record)


def test_another_key_is_named(key, other):
    why = objection(trust.load(other, None), signed(key))
    assert next(iter(trust.load(key, None).keys)) in why


def test_a_name_of_a_trusted_key_over_another_keys_signature_is_an_objection(key, other):
    (mine,), (theirs,) = (signed(k).signatures.items() for k in (key, other))
    record = replace(SEAL, signatures={mine[0]: theirs[1]})
    assert objection(trust.load(key, None), record)


def test_keys_rotate_by_trusting_both_for_a_while(key, other, tmp_path):
    both = tmp_path / "both.pub"
    both.write_text(f"the old one\n{read(f'{key}.pub')}\nthe new one:\n{read(f'{other}.pub')}")
    readers = trust.load(None, str(both))
    assert len(readers.keys) == 2
    assert {objection(readers, signed(k)) for k in (key, other)} == {""}
    twice = replace(SEAL, signatures=signed(key).signatures | signed(other).signatures)
    assert objection(trust.load(other, None), twice) == ""


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_is_for_its_owner_alone_and_is_never_replaced(key):
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    before = read(key), read(f"{key}.pub")
    for gone in (None, key, f"{key}.pub"):
        if gone:
            os.rename(gone, f"{gone}.away")
        with pytest.raises(UsageError) as caught:
            trust.generate(key)
        assert caught.value.reason == "key-exists"
        if gone:
            os.rename(f"{gone}.away", gone)
        assert (read(key), read(f"{key}.pub")) == before


def test_a_key_that_cannot_be_written_is_6(tmp_path):
    with pytest.raises(VolumeError):
        trust.generate(str(tmp_path / "nowhere" / "key"))


def test_who_signs_trusts_itself_and_must_be_trusted_by_who_is_named(key, other):
    assert trust.load(key, None).keys == trust.load(None, f"{key}.pub").keys
    assert trust.load(key, f"{key}.pub") == trust.load(key, None)
    refused("untrusted-key", signing_key=key, trusted_keys=f"{other}.pub")


def test_who_trusts_and_cannot_sign_may_not_publish(key):
    assert trust.load(None, f"{key}.pub").forbids_publishing
    assert not trust.load(key, f"{key}.pub").forbids_publishing
    assert not Trust().forbids_publishing


def test_keys_may_be_given_as_text(key):
    assert trust.load(read(key), read(f"{key}.pub")) == trust.load(key, f"{key}.pub")


def test_no_private_key_is_shown(key):
    loaded = trust.load(key, None)
    shown = repr(loaded) + str(loaded)
    assert loaded.signing is not None
    assert str(loaded.signing[1]) not in shown
    text = read(key).replace("PRIVATE", "UNKNOWN")
    assert "".join(text.split("\n")[1:2]) not in refused("bad-key", signing_key=text)


def test_a_file_that_is_not_there_is_told_but_not_the_value_which_may_be_a_secret(key):
    half = read(key).split("\n")[1]
    for flag in ("signing_key", "trusted_keys"):
        for value in ("/nowhere/key", half, half * 9, "a\0b"):
            assert value not in refused("no-key-file", flag.replace("_", "-"), **{flag: value})


@pytest.mark.parametrize("data", [b"", b"text\n", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\nAA\n"])
def test_what_is_no_key_is_refused(tmp_path, data):
    path = tmp_path / "key"
    path.write_bytes(data)
    for flag in ("signing_key", "trusted_keys"):
        refused("bad-key", "Ed25519", **{flag: str(path)})


def test_a_private_key_is_not_to_be_handed_to_those_who_only_trust(key):
    refused("bad-key", "PRIVATE KEY", trusted_keys=key)
    refused("bad-key", signing_key=f"{key}.pub")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_keys_of_openssl_are_read_and_those_of_another_kind_refused(tmp_path, key):
    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "theirs")
    openssl("pkey", "-in", "theirs", "-pubout", "-out", "theirs.pub")
    loaded = trust.load(str(tmp_path / "theirs"), str(tmp_path / "theirs.pub"))
    assert objection(loaded, signed(str(tmp_path / "theirs"))) == ""
    openssl("pkey", "-in", key, "-pubout", "-out", "mine.pub")
    assert read(tmp_path / "mine.pub") == read(f"{key}.pub")

    openssl("genpkey", "-algorithm", "ed448", "-out", "other")
    openssl("pkey", "-in", "other", "-pubout", "-out", "other.pub")
    refused("bad-key", "Ed448", signing_key=str(tmp_path / "other"))
    refused("bad-key", "Ed448", trusted_keys=str(tmp_path / "other.pub"))
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", "locked")
    refused("bad-key", "without a password", signing_key=str(tmp_path / "locked"))


def test_a_key_that_is_cut_off_is_told_and_not_left_out(key, other):
    text = read(f"{key}.pub") + read(f"{other}.pub")[:40]
    refused("bad-key", "cut off", trusted_keys=text)


def test_names_that_are_no_key_ids_are_not_shown(key):
    record = replace(SEAL, signatures={"\ud800\x1b[31m": "x", "a" * 10**6: "y"})
    why = objection(trust.load(key, None), record)
    assert why.isprintable()
    assert len(why) < 100
