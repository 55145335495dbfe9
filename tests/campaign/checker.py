"""What must hold of a volume and of pods beside it, read from the disk alone.

With `truth` it shares no code with warmer, nor with other tests: the standard library reads the formats
that docs/volume.md tells. It does not ask warmer what is right: it is told what the models and the
engines of a campaign truly make (`Truth`), and compares bytes.

As a program it judges a volume: ``checker.py VOLUME [WARM_DIR...]`` prints what is wrong.
"""

import hashlib
import json
import os
import re
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import itertools

from truth import (
    Ledger,
    Truth,
    Wrong,
    argv_digest,
    kernel,
    manifest,
    names_in,
    read,
    read_json,
    tree,
)

GENERATION = re.compile(r"[1-9][0-9]*", re.ASCII)
ASIDE = re.compile(r"([a-z]+)-([0-9a-f]{64})-([1-9][0-9]*)-[0-9a-f]{8}(\.gone)?", re.ASCII)
TAKEN = re.compile(r"([a-z]+)-([0-9a-f]{64})-([1-9][0-9]*)", re.ASCII)
GROWING = ("flashinfer", "jit")
"""Kinds that models share: a generation holds all that the one before it held."""
KERNELS = ("compile", "flashinfer", "jit", "bytecode")


def judge(volume, truth, ledger, *, warm=()):
    """Look at all there is; return what is wrong, one sentence each."""
    wrong, top = Wrong(), os.path.join(volume, "v1")
    seen = {}
    for kind, key, number, directory in _generations(top, wrong):
        if (kind, key, number) not in ledger.damaged:
            seen[kind, key, number] = _whole(directory, (kind, key, number), truth, wrong)
    _once(seen, ledger, top, wrong)
    _growing(seen, top, wrong)
    for kind, key, number, directory in _hidden(top, wrong):
        if (kind, key, number) not in ledger.damaged:
            _whole(directory, (kind, key, number), truth, wrong)
    for name in names_in(f"{top}/taken"):
        empty = TAKEN.fullmatch(name) and os.path.getsize(f"{top}/taken/{name}") == 0
        wrong.unless(empty, f"{name} in taken is no taken number")
    _uses(f"{top}/uses", wrong)
    for place in (volume, *warm):
        _secrets(place, truth.secrets, wrong)
    return wrong


def believed(warm, truth, *, version, gpu, model, gone=False):
    """Look at a pod whose probe says that it is ready: it must hand off what is right for it.

    Args:
        warm: its warm dir, under the path by which it is reached here.
        truth: what is right.
        version: of the pod's vLLM.
        gpu: the pod's.
        model: its name.
        gone: as in `Ledger`: numbers may have been given anew.
    """
    wrong = Wrong()
    handoff = read_json(f"{warm}/handoff/handoff.json", wrong)
    if handoff is None:
        return wrong
    script = read(f"{warm}/handoff/serve").decode(errors="replace")
    missing = [word for word in handoff["argv"] if word not in script]
    wrong.unless(not missing, f"serve is of another handoff: it lacks {missing}")
    env = read(f"{warm}/handoff/env").decode(errors="replace")
    missing = [name for name, value in handoff["env"].items() if value not in env]
    wrong.unless(not missing, f"env is of another handoff: it lacks {missing}")
    target = bytes.fromhex(truth.targets[f"{version}\t{gpu}"])
    for piece in handoff["pieces"]:
        if piece["verdict"] != "sealed":
            continue
        kind, directory = piece["kind"], piece["directory"]
        sealed = f"{directory}/seal.json"
        anew = gone and hashlib.sha256(read(sealed)).hexdigest() != piece["seal_sha256"]
        if kind != "weights" and (anew or not os.path.isdir(directory)):
            # Collected since, by a gc that takes this pod for long gone, or removed by something
            # else, which forgot its number too: its tree is still its own.
            for path, found in tree(f"{warm}/cache/{kind}", wrong).items():
                _right_kernel(f"{warm}/cache/{kind}/{path}", path, found, target, wrong)
            continue
        factors = (read_json(f"{directory}/key.json", wrong) or {"factors": {}})["factors"]
        if kind == "weights":
            held = {path: one[1] for path, one in tree(f"{directory}/files", wrong).items()}
            right = held == truth.models[model]
            wrong.unless(right, f"the weights handed off are not those of {model}")
            continue
        wrong.unless(
            factors.get("engine.vllm") == version and factors.get("hardware.name", gpu) == gpu,
            f"{kind} of vLLM {factors.get('engine.vllm')} is handed to a pod of {version} on {gpu}",
        )
        held = tree(f"{warm}/cache/{kind}", wrong)
        listed = manifest(directory, wrong)
        torn = [path for path, one in listed.items() if held.get(path) != one]
        wrong.unless(not torn, f"the tree of {kind} is torn: {torn[:3]}")
        if kind == "compile":
            built = argv_digest(handoff)
            hit = any(f"/{built}/" in path for path in listed)
            wrong.unless(hit, "the server's arguments are not those its kernels were built with")
        for path in held.keys() & listed.keys():
            _right_kernel(f"{warm}/cache/{kind}/{path}", path, held[path], target, wrong)
    return wrong


def staged(volume, keys):
    """Name the stagings of some (kind, key)."""
    names = names_in(os.path.join(volume, "v1", "staging"))
    return [name for name in names if any(name.startswith(f"{k}-{d}-") for k, d in keys)]


def handed(warm):
    """Read what a warm dir was handed: (kind, key, number) of each sealed piece."""
    handoff = read_json(f"{warm}/handoff/handoff.json", Wrong()) or {"pieces": ()}
    found = [piece for piece in handoff["pieces"] if piece["verdict"] == "sealed"]
    return {(one["kind"], one["key"], one["generation"]) for one in found}


def published(volume):
    """List what is published: (kind, key, number)."""
    return {found[:3] for found in _generations(os.path.join(volume, "v1"), Wrong())}


def broken(volume):
    """List what is not what its seal says, published or hidden by a gc: (kind, key, number)."""
    top, found = os.path.join(volume, "v1"), {}
    for *place, at in (*_generations(top, Wrong()), *_hidden(top, Wrong())):
        _whole(at, tuple(place), Truth(), found.setdefault(tuple(place), Wrong()))
    return {place for place, wrong in found.items() if wrong}


# --- one generation ------------------------------------------------------------------------------


def _generations(top, wrong):
    pieces = f"{top}/pieces"
    for kind in names_in(pieces):
        for key in names_in(f"{pieces}/{kind}"):
            for number in names_in(f"{pieces}/{kind}/{key}"):
                at = f"{pieces}/{kind}/{key}/{number}"
                if wrong.unless(GENERATION.fullmatch(number), f"{at} is no generation"):
                    yield kind, key, int(number), at


def _hidden(top, wrong):
    for name in names_in(f"{top}/trash"):
        found = ASIDE.fullmatch(name)
        wrong.unless(found, f"{name} in the trash is no generation")
        if found and not found[4] and os.path.exists(f"{top}/trash/{name}/seal.json"):
            yield found[1], found[2], int(found[3]), f"{top}/trash/{name}"


def _whole(at, place, truth, wrong):
    """Judge one generation; return its seal, or None where that cannot be read."""
    kind, key, number = place
    seal = read_json(f"{at}/seal.json", wrong)
    if seal is None:
        return None
    told = seal["kind"], seal["key"], seal["generation"], seal["schema_version"]
    wrong.unless(told == (kind, key, number, 1), f"{at} has the seal of {told}")
    sealed = {file["path"]: (file["size"], file["sha256"]) for file in seal["files"]}
    held = tree(at, wrong)
    held.pop("seal.json", None)
    gone = sorted(sealed.keys() - held.keys())
    more = sorted(held.keys() - sealed.keys())
    other = sorted(path for path in sealed.keys() & held.keys() if sealed[path] != held[path])
    wrong.unless(not gone, f"{at} lacks {gone[:3]}")
    wrong.unless(not more, f"{at} has more than its seal: {more[:3]}")
    wrong.unless(not other, f"{at} has other bytes than its seal: {other[:3]}")
    factors = (read_json(f"{at}/key.json", wrong) or {"factors": {}})["factors"]
    text = json.dumps({"factors": factors, "kind": kind}, sort_keys=True, separators=(",", ":"))
    makes = hashlib.sha256(text.encode()).hexdigest()
    wrong.unless(makes == key, f"{at} has factors of another key")
    if kind == "weights":
        _right_weights(at, factors, sealed, truth, wrong)
    elif kind in KERNELS:
        _right_manifest(at, factors, truth, wrong)
    return seal


def _right_weights(at, factors, sealed, truth, wrong):
    right = truth.models.get(factors.get("name"))
    if right is not None:
        top = "files/"
        found = {path[len(top) :]: one[1] for path, one in sealed.items() if path.startswith(top)}
        wrong.unless(found == right, f"{at} is not the model {factors['name']}")


def _right_manifest(at, factors, truth, wrong):
    """The manifest tells what the archive holds; the archive's own bytes are sealed."""
    target = truth.targets.get(f"{factors.get('engine.vllm')}\t{factors.get('hardware.name')}")
    if target is not None:
        for path, (_, digest) in manifest(at, wrong).items():
            right = kernel(path, bytes.fromhex(target))
            if right is not None:
                same = hashlib.sha256(right).hexdigest() == digest
                wrong.unless(same, f"{at} has a wrong {path} for its vLLM and GPU")


def _right_kernel(place, path, found, target, wrong):
    right = kernel(path, target)
    if right is not None:
        same = (len(right), hashlib.sha256(right).hexdigest()) == found
        wrong.unless(same, f"{place} is not what this pod's engine makes")


# --- all of them ---------------------------------------------------------------------------------


def _once(seen, ledger, top, wrong):
    """No claim has published twice, no number is given twice, and nothing published is gone."""
    by = {}
    for place, seal in seen.items():
        if seal is not None:
            other = by.setdefault(seal["nonce"], place)
            wrong.unless(other == place, f"{place} and {other} are of one claim")
            before = ledger.nonces.setdefault(place, seal["nonce"])
            wrong.unless(before == seal["nonce"], f"{place} was given to two claims")
    both = (name for where in ("quarantine", "trash") for name in names_in(f"{top}/{where}"))
    aside = {_place(ASIDE, name) for name in both}
    for place in sorted(aside & seen.keys()):
        wrong.append(f"{place} is published, and its number was moved aside")
    if ledger.gone:
        return
    taken = {_place(TAKEN, name) for name in names_in(f"{top}/taken")}
    for place in sorted(ledger.nonces.keys() - seen.keys() - aside - ledger.damaged):
        del ledger.nonces[place]
        later = any(
            one[:2] == place[:2] and one[2] >= place[2] for one in seen.keys() | taken | aside
        )
        if not (ledger.collected and later):
            wrong.append(f"{place} was published, and is gone")


def _place(pattern, name):
    found = pattern.fullmatch(name)
    return (found[1], found[2], int(found[3])) if found else ("", "", 0)


def _growing(seen, top, wrong):
    """Who lost the lock published nothing: no generation repeats the one before it."""
    places = sorted(place for place, seal in seen.items() if seal is not None)
    for older, newer in itertools.pairwise(places):
        if older[:2] != newer[:2]:
            continue
        kind, key = older[:2]
        one, two = ({f["path"]: f["sha256"] for f in seen[at]["files"]} for at in (older, newer))
        beside = [seen[at].get("needs") or {} for at in (older, newer)]
        if kind in GROWING:
            at = (f"{top}/pieces/{kind}/{key}/{number}" for number in (older[2], newer[2]))
            old, new = (manifest(path, wrong).items() for path in at)
            wrong.unless(old < new, f"{newer} does not grow from {older}")
        elif beside[0] == beside[1]:  # else it was built anew beside what had taken its place
            wrong.unless(one != two, f"{newer} repeats {older}: two have published the same")


def _uses(top, wrong):
    for name in names_in(top):
        if not name.endswith(".json"):
            continue
        wrong.unless(re.fullmatch(r"[0-9a-f]{16}\.json", name), f"{name} is no record of use")
        record = read_json(f"{top}/{name}", wrong)
        if record is not None:
            known = all(re.fullmatch("[0-9a-f]{64}", one["key"]) for one in record["pieces"])
            wrong.unless(known and record.get("schema_version") == 1, f"{name} is torn")


def _secrets(top, secrets, wrong):
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            said = path.encode(errors="replace")
            if stat.S_ISLNK(mode):
                said += os.fsencode(os.readlink(path))
            elif stat.S_ISREG(mode):
                said += read(path)
            for secret in secrets:
                wrong.unless(secret.encode() not in said, f"a secret is in {path}")


if __name__ == "__main__":
    found = judge(sys.argv[1], Truth(), Ledger(), warm=sys.argv[2:])
    print("\n".join(found) or "nothing is wrong")
    sys.exit(bool(found))
