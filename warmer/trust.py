"""Whose kernels are restored: Ed25519 signatures over what a seal states.

Kernel pieces are code (shared objects, pickles, bytecode), and whoever can write on the volume can
publish one. With trusted keys, a piece counts only if one of them signed it. A signature covers a
piece's kind, key and bytes, not the number it has on one volume (`warmer.seal.statement`).

Keys are PEM as OpenSSL writes it: PKCS #8 private, SubjectPublicKeyInfo public. The cryptography
package is imported only where there is a key.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from warmer.errors import UsageError, VolumeError, using

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SHOWN: Final = 3
_PRIVATE: Final = "an Ed25519 private key in PEM, without a password"
_PUBLIC: Final = "Ed25519 public keys in PEM, one after the other"


@dataclass(frozen=True, slots=True)
class Trust:
    """Who is trusted, and as whom this warmer signs.

    Attributes:
        keys: key id → raw public key of 32 bytes; empty trusts whoever can write on the volume.
        signing: id of the key to sign with, and the raw private key; None signs nothing.
    """

    keys: Mapping[str, bytes] = field(default_factory=dict)
    signing: tuple[str, bytes] | None = field(default=None, repr=False)

    @property
    def forbids_publishing(self) -> bool:
        """Whether what this warmer published would be trusted by none that trusts as it does."""
        return bool(self.keys) and self.signing is None

    def sign(self, statement: bytes) -> dict[str, str]:
        """Sign; returns key id → signature in base64, empty where there is no signing key."""
        if self.signing is None:
            return {}
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - see above

        name, raw = self.signing
        signature = ed25519.Ed25519PrivateKey.from_private_bytes(raw).sign(statement)
        return {name: base64.b64encode(signature).decode()}

    def objection(self, statement: bytes, signatures: Mapping[str, str]) -> str:
        """Say why a statement is not to be trusted; empty where it is."""
        if not self.keys:
            return ""
        if not signatures:
            return "it carries no signature"
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see above
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

        ours = signatures.keys() & self.keys.keys()
        if not ours:
            named = sorted(name for name in signatures if _KEY_ID.fullmatch(name))[:_SHOWN]
            return f"none of --trusted-keys signed it, but {', '.join(named) or 'nobody known'}"
        for name in sorted(ours):
            key = ed25519.Ed25519PublicKey.from_public_bytes(self.keys[name])
            try:
                key.verify(base64.b64decode(signatures[name], validate=True), statement)
            except (InvalidSignature, ValueError):
                continue
            return ""
        return f"the signature by {', '.join(sorted(ours))} is not one of what it states"


ANYBODY: Final = Trust()
"""Whoever can write on the volume is trusted, and nothing is signed."""


def load(signing_key: str | None, trusted_keys: str | None) -> Trust:
    """Read the keys.

    Args:
        signing_key: a file's path, or the PEM text itself.
        trusted_keys: likewise; several keys may follow each other, for one to replace another.

    Raises:
        UsageError: they are not there, or no such keys, or nobody would trust what is signed.
    """
    keys: dict[str, bytes] = {}
    if trusted_keys is not None:
        flag = "--trusted-keys"
        keys = {key_id(raw): raw for raw in _public_keys(_text(trusted_keys, flag), flag)}
    if signing_key is None:
        return Trust(keys)
    private = _private_key(_text(signing_key, "--signing-key"))
    public = private.public_key().public_bytes_raw()
    own = key_id(public)
    if keys and own not in keys:
        raise UsageError(
            f"got --signing-key {own}, expected one of --trusted-keys ({', '.join(sorted(keys))})",
            reason="untrusted-key",
            hint="add its public key to --trusted-keys everywhere before anything is signed by it",
        )
    return Trust(keys or {own: public}, (own, private.private_bytes_raw()))


def generate(path: str) -> str:
    """Make a key: `path` is the private one, for its owner alone, `path`.pub the public one.

    Returns:
        Its id.

    Raises:
        UsageError: one of them is there already.
        VolumeError: they cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

    for place in (path, f"{path}.pub"):
        if os.path.lexists(place):
            _refuse_to_replace(place)
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key()
    spki = public.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    pkcs8 = private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    _write(path, pkcs8, mode=0o600)
    try:
        _write(f"{path}.pub", spki, mode=0o644)
    except (UsageError, VolumeError):
        os.unlink(path)
        raise
    return key_id(public.public_bytes_raw())


def key_id(public: bytes) -> str:
    """Name a public key: 16 hex digits of its sha256."""
    return hashlib.sha256(public).hexdigest()[:16]


def _text(value: str, flag: str) -> str:
    if "-----BEGIN" in value:
        return value
    try:
        with open(value, encoding="ascii") as f:
            return f.read()
    except UnicodeDecodeError as exc:
        raise _not_a_key(flag, "other bytes than text") from exc
    except (OSError, ValueError) as exc:
        # Not the value: it may be a key without its first line.
        why = exc.strerror if isinstance(exc, OSError) else "no path at all"
        raise UsageError(
            f"got {flag} that cannot be opened ({why}), expected a readable file, or PEM",
            reason="no-key-file",
            hint="`warmer keygen FILE` makes one; mount it where warmer runs",
        ) from None


def _public_keys(text: str, flag: str) -> list[bytes]:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

    found: list[bytes] = []
    for block in _PEM.finditer(text):
        try:
            key = serialization.load_pem_public_key(block[0].encode())
        except Exception as exc:  # whatever a parser has to say of it
            raise _not_a_key(flag, f"a block of {block[1]}") from exc
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise _not_a_key(flag, f"a key of another kind ({type(key).__name__})")
        found.append(key.public_bytes_raw())
    if not found:
        raise _not_a_key(flag, "no PEM at all")
    if text.count("-----BEGIN") != len(found):
        raise _not_a_key(flag, "a key that is cut off")
    return found


def _private_key(text: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except Exception as exc:  # as above; the text may be a secret
        raise _not_a_key("--signing-key", "something else") from exc
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _not_a_key("--signing-key", f"a key of another kind ({type(key).__name__})")
    return key


def _not_a_key(flag: str, got: str) -> UsageError:
    expected = _PRIVATE if flag == "--signing-key" else _PUBLIC
    return UsageError(
        f"got {got} for {flag}, expected {expected}",
        reason="bad-key",
        hint="`warmer keygen FILE` makes FILE, to sign with, and FILE.pub, to trust",
    )


def _write(path: str, data: bytes, *, mode: int) -> None:
    with using("the key's directory"):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            _refuse_to_replace(path)
        with open(descriptor, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(descriptor)


def _refuse_to_replace(path: str) -> NoReturn:
    raise UsageError(
        f"got {path}, which is there, expected a new name",
        reason="key-exists",
        hint="a key that is replaced can sign no more; remove it yourself if that is meant",
    )
