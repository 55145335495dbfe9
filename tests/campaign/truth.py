"""What is right, what was seen before, and how a volume is read; of the campaign's checker.

As `checker`: the standard library alone, and nothing of warmer.
"""

import dataclasses
import hashlib
import json
import os
import stat


@dataclasses.dataclass
class Truth:
    """What is right, as those know it who made the models and the engines.

    Attributes:
        models: name → {path: sha256} of the files that an engine loads.
        targets: (version of vLLM, name of the GPU), with a tab between → what the engine's bytes
            follow from, in hexadecimal.
        secrets: what no file may hold.
    """

    models: dict = dataclasses.field(default_factory=dict)
    targets: dict = dataclasses.field(default_factory=dict)
    secrets: tuple = ()


@dataclasses.dataclass
class Ledger:
    """What was seen at earlier looks: a generation is what it was, for ever.

    Attributes:
        nonces: (kind, key, number) → the nonce of its seal.
        collected: whether a gc has run: what it removed is gone, though its number stays known.
        gone: whether generations may be gone without a trace: something other than warmer removed.
        damaged: generations that something other than warmer has damaged; nothing is asked of them.
    """

    nonces: dict = dataclasses.field(default_factory=dict)
    collected: bool = False
    gone: bool = False
    damaged: set = dataclasses.field(default_factory=set)


class Wrong(list):
    """What is wrong: sentences."""

    def unless(self, holds, sentence):
        if not holds:
            self.append(sentence)
        return holds


def tree(top, wrong):
    """Every file below a directory: path → (size, sha256). Only regular files may be there."""
    found = {}
    for directory, below, names in os.walk(top):
        for name in (*names, *(one for one in below if os.path.islink(f"{directory}/{one}"))):
            path = os.path.join(directory, name)
            if wrong.unless(stat.S_ISREG(os.lstat(path).st_mode), f"{path} is no regular file"):
                data = read(path)
                found[os.path.relpath(path, top)] = (len(data), hashlib.sha256(data).hexdigest())
    return found


def kernel(path, target):
    """What the campaign's engine makes at this path, for this version and GPU; None: not known."""
    words = path.split("/")
    if "torch_aot_compile" in words:
        key = words[words.index("torch_aot_compile") + 1]
        return hashlib.shake_256(b"aot" + key.encode() + target).digest(40_000)
    if "fxgraph" in words and words[-1] == "artifact":
        key = words[words.index("fxgraph") + 2]
        return hashlib.shake_256(b"graph" + key.encode() + target).digest(9_000)
    if words[-1].endswith(".so"):
        variable = {"workspace": b"FLASHINFER_WORKSPACE_BASE", "tvm_ffi": b"TVM_FFI_CACHE_DIR"}
        made = hashlib.shake_256(variable.get(words[0], b"") + target).digest(5_000)
        return made if words[0] in variable else None
    return None


def argv_digest(handoff):
    """What the campaign's engine names its artifacts by: the model, and what it hashes of argv."""
    words, free = [], ("--host", "--port", "--jit-monitor-mode")
    queue = iter(handoff["argv"])
    for word in queue:
        if word.partition("=")[0] not in free:
            words.append(word)
        elif "=" not in word:
            next(queue)
    made = json.dumps([handoff["model_path"], *words])
    return hashlib.sha256(made.encode()).hexdigest()


def manifest(at, wrong):
    listed = (read_json(f"{at}/manifest.json", wrong) or {"files": ()})["files"]
    return {file["path"]: (file["size"], file["sha256"]) for file in listed}


def names_in(path):
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path):
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def read_json(path, wrong):
    try:
        return json.loads(read(path))
    except ValueError:
        wrong.append(f"{path} is no JSON")
        return None
