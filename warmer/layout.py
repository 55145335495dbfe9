"""Every name warmer uses on the volume and in the warm dir, drawn in one place.

The volume, shared by many pods and written by warmer alone::

    <volume>/v1/                            a new format gets a new directory; never migrated in place
        pieces/<kind>/<key>/<generation>/   one immutable published directory; generations count from 1
            key.json                        the named factors the key was made of, for people and diffs
            files/...                       weights: the model's files, plain, as the engine reads them
            tree.tar.zst, manifest.json     kernels: one archive, and what is inside it
            seal.json                       written last: every file's size and sha256
        staging/<kind>-<key>-<nonce>/       a generation being filled; becomes one by rename
                                            (a push's: what goes to a bucket and is removed)
        locks/<kind>-<key>.lock             held while that key is being filled; replaced at a takeover
        locks/gc.lock                       one gc at a time works on a volume
        refs/<slug>.json                    what a moving revision resolved to, when the hub was asked
        loaders/<weights key>-<versions>.json  which of vLLM's loaders was measured to be fastest here
        uses/<pod>.json                     what a warm dir was handed; its age is the file's own
        uses/<pod>.live                     locked by the server while it runs
        uses/since                          how long uses have been recorded: the file's own age
        crashes/<kind>-<key>-<generation>.<start>  that a start ended before the server was ready
        quarantine/                         generations found corrupt, or that crashed the engine
        trash/                              generations that nothing needs, hidden until removed
        taken/<kind>-<key>-<generation>     the last number of a key whose generation was removed
        collected.json                      how many bytes every gc has removed, for the sidecars' metrics
        doctor/<nonce>/                     what `warmer doctor` tries things in; removed when it ends

The warm dir, local to a pod, mounted at the same absolute path in warmer and in the server::

    <warm dir>/
        cache/<kind>/<family>/...           what the engine's cache variables point at
        cache/<kind>.restored.json          which generation `cache/<kind>` was unpacked from
        cache/bytecode/start.json           what a start finds out and maps, beside the bytecode it loads
        cache.cold/<kernels>/<kind>/...     what they point at once these kernels crashed the engine twice
        starts/<kernels>-warm-<start>       a start that is on its way, or ended before it was ready
        starts/<kernels>.plain              one ended before it was ready: later ones go without levers
        starts/<kernels>.crashed            two did: no start gets these kernels
        models/<slug>/<revision>            symlink to the weights' files/: the `--model` string
        config/                             what vLLM would keep under HOME, whose place it hashes
        shim/                               package metadata that a renamed engine build lacks
        handoff/{handoff.json,env,keys.json,serve,plan.json}, and the scripts that those run
        handoff/early.json                  while a prefill is at work: what `serve --wait` may start in
        logs/                               what the engine said while kernels were built
        lock                                one prefill at a time works in a warm dir
        use                                 the name of this warm dir's record under uses/
        served                              a server was started since the trees were made
        server.json                         how, and on what; locked by it while it runs
        outcome.json                        what the last prefill did, for the sidecar's metrics
        sidecar.lock                        one sidecar at a time works in a warm dir
        harvest/                            the sidecar's copies of trees, while it packs them
"""

from __future__ import annotations

import os
from typing import Final

FORMAT: Final = "v1"
"""Version of the volume's format: the name of the directory everything lives under."""

SEAL: Final = "seal.json"
KEY: Final = "key.json"
FILES: Final = "files"
ARCHIVE: Final = "tree.tar.zst"
MANIFEST: Final = "manifest.json"

HANDOFF_FILES: Final = (
    *("check.py", "ready.py", "start.py", "early.py", "ahead.py", "installed.py"),
    *("env", "keys.json", "serve", "handoff.json"),
)
"""In the order they are written: `handoff.json` last says the others are there."""


class Volume:
    """Paths on a volume. Holds no state but its root and touches no disk.

    Args:
        root: the directory the volume is mounted at.
    """

    __slots__ = ("root", "top")

    def __init__(self, root: str) -> None:
        self.root = root
        self.top = os.path.join(root, FORMAT)

    @property
    def pieces(self) -> str:
        """Every published generation of every kind."""
        return os.path.join(self.top, "pieces")

    @property
    def staging(self) -> str:
        """Generations being filled."""
        return os.path.join(self.top, "staging")

    @property
    def quarantine(self) -> str:
        """Generations found corrupt."""
        return os.path.join(self.top, "quarantine")

    @property
    def trash(self) -> str:
        """Generations that nothing needs, hidden from readers and not removed yet."""
        return os.path.join(self.top, "trash")

    @property
    def taken(self) -> str:
        """Names of numbers that may not be given again though nothing is left of them."""
        return os.path.join(self.top, "taken")

    @property
    def uses(self) -> str:
        """Records of what warm dirs were handed."""
        return os.path.join(self.top, "uses")

    @property
    def since(self) -> str:
        """The file that is as old as the recording of uses on this volume."""
        return os.path.join(self.top, "uses", "since")

    @property
    def crashes(self) -> str:
        """Names of starts that ended before the server was ready, by the generations they had."""
        return os.path.join(self.top, "crashes")

    @property
    def collected(self) -> str:
        """How many bytes every gc has removed."""
        return os.path.join(self.top, "collected.json")

    @property
    def doctor(self) -> str:
        """The private directories of running doctors."""
        return os.path.join(self.top, "doctor")

    def kind(self, kind: str) -> str:
        """All keys of one kind."""
        return os.path.join(self.pieces, kind)

    def key(self, kind: str, digest: str) -> str:
        """All generations of one piece."""
        return os.path.join(self.pieces, kind, digest)

    def generation(self, kind: str, digest: str, number: int) -> str:
        """One published generation."""
        return os.path.join(self.pieces, kind, digest, str(number))

    def staged(self, kind: str, digest: str, nonce: str) -> str:
        """One claim's private directory; unique because the nonce is."""
        return os.path.join(self.staging, f"{kind}-{digest}-{nonce}")

    def lock(self, kind: str, digest: str) -> str:
        """The file whose kernel lock means "this key is being filled"."""
        return os.path.join(self.top, "locks", f"{kind}-{digest}.lock")

    def use(self, name: str) -> str:
        """What the warm dir of this name was handed."""
        return os.path.join(self.uses, f"{name}.json")

    def live(self, name: str) -> str:
        """The file that the server keeps locked which runs from the warm dir of this name."""
        return os.path.join(self.uses, f"{name}.live")

    @property
    def gc_lock(self) -> str:
        """Held by the one gc that works on the volume."""
        return os.path.join(self.top, "locks", "gc.lock")

    def loader(self, name: str) -> str:
        """What was measured of vLLM's loaders, for one model and one set of versions."""
        return os.path.join(self.top, "loaders", f"{name}.json")

    def ref(self, slug: str) -> str:
        """What the moving revisions of one model last resolved to."""
        return os.path.join(self.top, "refs", f"{slug}.json")


class WarmDir:
    """Paths in a warm dir. Holds no state but its root and touches no disk.

    Args:
        root: absolute path, the same in the warmer's container and in the server's.
    """

    __slots__ = ("root",)

    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def cache(self) -> str:
        """Parent of every kind's tree."""
        return os.path.join(self.root, "cache")

    def tree(self, kind: str) -> str:
        """The tree that one kernel kind's cache variables point into."""
        return os.path.join(self.root, "cache", kind)

    def restored(self, kind: str) -> str:
        """The record of which generation `tree(kind)` holds."""
        return os.path.join(self.root, "cache", f"{kind}.restored.json")

    @property
    def notes(self) -> str:
        """What a start finds out and maps: restored with the bytecode that it loads."""
        return os.path.join(self.root, "cache", "bytecode", "start.json")

    @property
    def cold(self) -> str:
        """Parent of the trees of starts that do not get the kernels of `cache`."""
        return os.path.join(self.root, "cache.cold")

    @property
    def starts(self) -> str:
        """Starts that are on their way, or ended before the server was ready."""
        return os.path.join(self.root, "starts")

    def crashed(self, mark: str) -> str:
        """Says that the kernels with this mark crashed the engine twice: no start gets them."""
        return os.path.join(self.root, "starts", f"{mark}.crashed")

    def model(self, slug: str, revision: str) -> str:
        """The path given to the engine as its model: the same whatever the volume's mount."""
        return os.path.join(self.root, "models", slug, revision)

    @property
    def config(self) -> str:
        """What vLLM would keep under HOME; it hashes where that is."""
        return os.path.join(self.root, "config")

    @property
    def shim(self) -> str:
        """Package metadata that a renamed engine build lacks."""
        return os.path.join(self.root, "shim")

    @property
    def handoff(self) -> str:
        """What the server container needs."""
        return os.path.join(self.root, "handoff")

    @property
    def plan(self) -> str:
        """The pieces the running prefill wants; lets the probe tell busy from missing."""
        return os.path.join(self.root, "handoff", "plan.json")

    @property
    def early(self) -> str:
        """What the running prefill foretells of the handoff, for a server that imports meanwhile."""
        return os.path.join(self.root, "handoff", "early.json")

    @property
    def logs(self) -> str:
        """What the engine said while kernels were built."""
        return os.path.join(self.root, "logs")

    @property
    def lock(self) -> str:
        """Held by the one prefill that works in this warm dir."""
        return os.path.join(self.root, "lock")

    @property
    def use(self) -> str:
        """Holds the name of this warm dir's record among the volume's uses."""
        return os.path.join(self.root, "use")

    @property
    def keys(self) -> str:
        """The keys of the pieces that the server builds, for the sidecar."""
        return os.path.join(self.root, "handoff", "keys.json")

    @property
    def served(self) -> str:
        """Says that a server was started since the trees were made: the next is not the first."""
        return os.path.join(self.root, "served")

    @property
    def server(self) -> str:
        """How the server was started, and on what; it keeps the file locked while it runs."""
        return os.path.join(self.root, "server.json")

    @property
    def outcome(self) -> str:
        """What the last prefill did."""
        return os.path.join(self.root, "outcome.json")

    @property
    def sidecar_lock(self) -> str:
        """Held by the one sidecar that works in this warm dir."""
        return os.path.join(self.root, "sidecar.lock")

    @property
    def harvest(self) -> str:
        """A warm dir within this one: the sidecar's copies of the trees, while it packs them."""
        return os.path.join(self.root, "harvest")
