"""What the facts that two doctors collected mean. Pure, and the same on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from warmer.doctor.findings import (
    NO_REPLACE,
    NOT_AS_TAKEN,
    NOT_ATOMIC,
    ONE_CLIENT,
    Finding,
    instead_of_file_locks,
    of_reader,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.urls import LockUrl

_SLOW: Final = 2.0
"""Seconds within which a pod must see what another published."""

_NOT_TRIED: Final = "not tried: a row above says why, or the last one"
_TAKEN: Final = ("ENOTEMPTY", "EEXIST")


def judge(facts: Mapping[str, Any], *, role: str, url: LockUrl) -> list[Finding]:
    """Judge what was collected: all of it, or what came before the other pod left.

    Args:
        facts: of `warmer.doctor.together`.
        role: which of the two this pod was.
        url: the lock asked for here.
    """
    rows: list[tuple[str, str, Callable[[str], Finding]]] = [
        ("other pod", "b", lambda name: _other(name, facts, role)),
        ("two nodes", "b", lambda name: _nodes(name, facts)),
        ("hostnames", "b", lambda name: _hostnames(name, facts)),
        ("locks across pods", "file_a_seconds", lambda name: _locks(name, facts, url)),
        ("names across pods", "names_plain", lambda name: _names(name, facts)),
        ("publishing across", "renamed_directories", lambda name: _renamed(name, facts)),
        ("file rename across", "renamed_file", lambda name: of_reader(name, facts["renamed_file"])),
        ("replaced while open", "replaced_read", lambda name: _replaced(name, facts)),
        ("no replacing across", "publishing_left", lambda name: _publishing(name, facts)),
    ]
    if url.mechanism != "file":
        row = f"--lock {url.mechanism} across"
        needed = "service_a_tries" if _one_lock(facts) else "b"
        rows.append((row, needed, lambda name: _service(name, facts)))
    return [
        judged(name) if needed in facts else Finding(name, "skip", _NOT_TRIED)
        for name, needed, judged in rows
    ]


def _other(name: str, facts: Mapping[str, Any], role: str) -> Finding:
    other = facts["b" if role == "a" else "a"]
    found = f"this is {role.upper()}; the other is {other['hostname']}, warmer {other['warmer']}"
    return Finding(name, "ok", found)


def _nodes(name: str, facts: Mapping[str, Any]) -> Finding:
    if facts["a"]["boot"] == facts["b"]["boot"]:
        hint = "this proves nothing across nodes: run the two pods on two nodes (podAntiAffinity)"
        return Finding(name, "warn", "both pods are on one node (same boot id)", hint)
    return Finding(name, "ok", "the two boot ids differ")


def one_client(facts: Mapping[str, Any]) -> bool:
    """Whether an NFS server takes the two nodes for one client, as far as their locks tell.

    Pods with names of their own do not see their nodes' names. Two such nodes starve each other:
    each takes the other's state at the server away, over and over.
    """
    a, b = facts["a"], facts["b"]
    both = "got" in (facts["file_b_tries"], facts["file_a_tries"])
    return both and a["mount"] == "nfs4" and bool(a["boot"] != b["boot"])


def _hostnames(name: str, facts: Mapping[str, Any]) -> Finding:
    a, b = facts["a"], facts["b"]
    names = " and ".join(sorted({a["hostname"], b["hostname"]}))
    if "file_a_tries" in facts and one_client(facts):
        found = f"{names}; both pods got one lock, as do nodes that the server takes for one"
        return Finding(name, "warn", found, ONE_CLIENT)
    told_apart = a["unique_id"] and b["unique_id"] and a["unique_id"] != b["unique_id"]
    alike = a["hostname"] == b["hostname"] and a["boot"] != b["boot"]
    if alike and a["mount"].startswith("nfs") and not told_apart:
        return Finding(name, "warn", f"both are {names}", ONE_CLIENT)
    return Finding(name, "ok", names)


def _locks(name: str, facts: Mapping[str, Any], url: LockUrl) -> Finding:
    instead = instead_of_file_locks(url)
    for holder, other in (("a", "b"), ("b", "a")):
        holds, tries = facts[f"file_{holder}_holds"], facts[f"file_{other}_tries"]
        for word in (holds, tries):
            if word not in ("got", "refused"):
                return Finding(name, "warn", word, instead)
        if holds == "refused":
            return Finding(name, "warn", "a lock nobody holds is refused", instead)
        if tries == "got":
            hint = f"{ONE_CLIENT}; {instead}" if one_client(facts) else instead
            return Finding(name, "warn", "both pods hold one lock at once", hint)
    seconds = [facts[f"file_{other}_seconds"] for other in ("b", "a")]
    if None in seconds:
        found = "a lock given back by one pod is not free for the other within a minute"
        return Finding(name, "warn", found, instead)
    b, a = seconds
    found = f"exclude both ways; given back, they were B's after {b:.2f} s and A's after {a:.2f} s"
    return Finding(name, "ok", found)


def _names(name: str, facts: Mapping[str, Any]) -> Finding:
    reopened, plain = facts["names_reopened"], facts["names_plain"]
    if reopened is not None and reopened <= _SLOW:
        by_plain_looks = "later than a minute" if plain is None else f"{plain:.2f} s"
        found = (
            f"what one pod made the other saw {reopened:.2f} s after asking for it, with the "
            f"directory opened anew, as warmer does; by plain looks {by_plain_looks}"
        )
        return Finding(name, "ok", found)
    seen = "not in a minute" if reopened is None else f"only {reopened:.1f} s"
    found = f"what one pod made the other saw {seen} after asking for it"
    hint = (
        f"up to {_SLOW:.0f} s were expected: pods would fill what is there already; mount with a "
        "smaller acdirmax, or lookupcache=positive"
    )
    return Finding(name, "fail", found, hint)


def _renamed(name: str, facts: Mapping[str, Any]) -> Finding:
    seen = facts["renamed_directories"]
    if seen["partial"]:
        found = f"{seen['partial']} of {seen['directories']} directories were seen half-renamed"
        return Finding(name, "fail", found, NOT_ATOMIC)
    if not seen["directories"]:
        return Finding(name, "warn", "none was seen in time", "run it again")
    return Finding(name, "ok", f"{seen['directories']} directories were seen, each whole at once")


def _replaced(name: str, facts: Mapping[str, Any]) -> Finding:
    read = facts["replaced_read"]
    what = {"old": "the old bytes", "new": "the new bytes", "torn": "bytes of neither file"}
    found = f"who has a file open that is replaced reads {what.get(read, read)}"
    if read in ("old", "ESTALE"):
        return Finding(name, "ok", f"{found}; warmer replaces nothing it published")
    return Finding(
        name, "warn", found, "the old bytes or ESTALE were expected; warmer relies on none"
    )


def _publishing(name: str, facts: Mapping[str, Any]) -> Finding:
    tried, left = facts["publishing_tried"], facts["publishing_left"]
    if tried == "replaced" or left != ["a"]:
        found = "a directory replaced, or was mixed into, one that the other pod made"
        return Finding(name, "fail", found, NO_REPLACE)
    if tried not in _TAKEN:
        return Finding(name, "warn", f"refused ({tried})", NOT_AS_TAKEN)
    return Finding(name, "ok", f"refused ({tried})")


def _service(name: str, facts: Mapping[str, Any]) -> Finding:
    if not _one_lock(facts):
        found = f"A has --lock {facts['a']['lock']}, B has {facts['b']['lock']}"
        return Finding(name, "warn", found, "give both the same: two locks exclude nobody")
    for holder, other in (("a", "b"), ("b", "a")):
        holds, tries = facts[f"service_{holder}_holds"], facts[f"service_{other}_tries"]
        if holds != "got":
            found = "the key is not to be had" if holds == "refused" else holds
            return Finding(name, "fail", found, "look at the lock's service", "lock")
        if tries != "refused":
            found = "both pods hold one key at once" if tries == "got" else tries
            return Finding(name, "fail", found, "it does not exclude: use another --lock", "lock")
    return Finding(name, "ok", f"{facts['a']['lock']} excludes both ways")


def _one_lock(facts: Mapping[str, Any]) -> bool:
    return bool(facts["a"]["lock"] == facts["b"]["lock"])
