"""`vllm serve` arguments as data: parsed without vLLM, into one spelling. Pure.

vLLM's parser takes ``--max-model-len 512``, ``--max-model-len=512``, ``--max_model_len 512``,
``-tp 2``, ``-O2``, ``--compilation-config.mode 3`` and flags with several values. All are read
here as *flag → list of occurrences, each a list of values*: a superset of what any parser could
make of them, so that two command lines that read the same are the same, and a difference that
might matter is never lost.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from warmer.errors import UsageError
from warmer.model import LEVELS, canonical, too_deep
from warmer.secrecy import secret_inside, secret_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Flags = dict[str, list[list[str]]]

# Short spellings of vLLM's parser (vllm/engine/arg_utils.py, launchers/cli_args.py in 0.32).
_SHORT: Final = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-q": "--quantization",
    "-cc": "--compilation-config",
    "-sc": "--speculative-config",
    "-ac": "--attention-config",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-asc": "--api-server-count",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpe": "--data-parallel-external-lb",
    "-dpm": "--data-parallel-multi-port-external-lb",
    "-dc": "--diffusion-config",
    "-ep": "--enable-expert-parallel",
}
_LONG: Final = {"--device-memory-utilization": "--gpu-memory-utilization"}
_NUMBER: Final = re.compile(r"-\d+(\.\d*)?$")
_TWO_WORDS: Final = re.compile(r"(--[A-Za-z][^\s={]*)\s")
_SECRET: Final = {"--api-key", "--hf-token"}
_OWNED: Final = {
    "--model": "the model comes from warmer's own --model",
    "--revision": "the revision is part of warmer's --model: hf://org/name@revision",
    "--code-revision": "remote code comes with the model at its pinned revision",
    "--download-dir": "the weights are on the volume already",
}


def parse(argv: Sequence[str]) -> Flags:
    """Read `vllm serve` arguments.

    Args:
        argv: the words after ``--``; without ``vllm``, ``serve`` and the model.

    Returns:
        Canonical long flag → occurrences in order, each a list of its values.

    Raises:
        UsageError: a positional word, two words in one, a secret, or a flag that warmer owns.
    """
    flags: Flags = {}
    current: list[str] | None = None
    for word in argv:
        if two := _TWO_WORDS.match(word):
            _refuse({_split(two[1])[0]: []})
            raise UsageError(  # without the value, in which a secret may be
                f"got the one word '{two[1]} ...' among the vLLM arguments, expected the flag and its "
                "value as two words",
                reason="bad-value",
                hint=f"write {two[1]} and its value apart, each quoted by itself, or {two[1]}=VALUE",
            )
        if _is_flag(word) and word != "--":
            name, value = _split(word)
            current = [] if value is None else [_canonical_value(value)]
            flags.setdefault(name, []).append(current)
        elif current is None or word == "--":
            raise UsageError(
                f"got the word {word!r} among the vLLM arguments and after no flag, expected flags only",
                reason="positional-argument",
                hint="name the model with warmer's --model; after -- come vLLM's flags",
            )
        else:
            current.append(_canonical_value(word))
    _refuse(flags)
    return flags


def integer(flags: Flags, name: str, default: int) -> int:
    """Read the last value given to an integer flag.

    Raises:
        UsageError: the value is not an integer.
    """
    occurrences = flags.get(name)
    if not occurrences:
        return default
    text = occurrences[-1][0] if occurrences[-1] else ""
    try:
        return int(text)
    except ValueError as exc:
        raise UsageError(
            f"got {name} {text!r}, expected an integer",
            reason="bad-value",
            hint="see vllm serve --help",
        ) from exc


def order(argv: Sequence[str], beside: Callable[[str], bool]) -> list[str]:
    """Name the flags whose order may decide what they mean, as they stand; none where none does.

    Of ``--max-model-le 1 --max-model-len 2`` vLLM's parser takes the last. Parts of one JSON
    argument are merged in their order, and not at all where one says ``-cc.`` and one
    ``--compilation-config.``.

    Args:
        argv: the words after ``--``.
        beside: whether a flag is not asked about.
    """
    given: list[tuple[str, str]] = []
    for word in filter(_is_flag, argv):
        name, _ = _split(word)
        # The short spelling of a part is told from the long one.
        stands = word.partition("=")[0] if "." in name and word[1] != "-" else name
        if not beside(name):
            given.append((stands, "--" + name[5:] if name.startswith("--no-") else name))
    rivals = {
        one
        for one, a in given
        for other, b in given
        if one != other and (_begins(a, b) or _begins(b, a) or _parts_of_one(one, other, a, b))
    }
    return [stands for stands, _ in given if stands in rivals]


def _begins(short: str, long: str) -> bool:
    return len(short) > 3 and long.startswith(short)


def _parts_of_one(one: str, other: str, a: str, b: str) -> bool:
    head, dot, _ = a.partition(".")
    spelt_alike = one.partition(".")[0] == other.partition(".")[0]
    return bool(dot) and b.startswith(f"{head}.") and not spelt_alike


def spelt(names: Iterable[str], flag: str) -> list[str]:
    """The names that set a flag in vLLM's parser: whole, abbreviated, or part by part of its JSON."""
    heads = ((name, name.partition(".")[0]) for name in names)
    return [name for name, head in heads if flag == head or _begins(head, flag)]


def config_files(flags: Flags) -> Iterable[str]:
    """Name the YAML files whose content is part of the command line (``--config``)."""
    return [value for occurrence in flags.get("--config", []) for value in occurrence]


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not _NUMBER.match(word)


def _split(word: str) -> tuple[str, str | None]:
    if not word.startswith("--") and word.startswith("-O") and len(word) > 2:
        return "--optimization-level", word[2:].lstrip("=")
    name, sep, value = word.partition("=")
    head, dot, rest = name.partition(".")
    long = head.startswith("--")
    if long:
        head = "--" + head[2:].replace("_", "-")
        head = _LONG.get(head, head)
    elif head not in _SHORT and head != "-O":
        # argparse knows abbreviations of these too (-t 2), and a value may follow a letter (-n2).
        longer = [short for short in _SHORT if len(head) > 1 and short.startswith(head)]
        if not longer and not sep and not dot and head[:2] in _SHORT:
            return _SHORT[head[:2]], head[2:]
        head = _SHORT[longer[0]] if len(longer) == 1 else head
    else:
        head = _SHORT.get(head, head)
    if head == "-O":
        head = "--optimization-level"
    return head + dot + rest, value if sep else None


def _canonical_value(value: str) -> str:
    """Give JSON objects and lists one spelling; leave every other value as it is."""
    if value[:1] not in "{[":
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    except RecursionError as exc:
        raise _too_deep() from exc
    if too_deep(found):
        raise _too_deep()
    return canonical(found)


def _too_deep() -> UsageError:
    return UsageError(
        f"got JSON of more than {LEVELS} levels among the vLLM arguments, expected fewer",
        reason="bad-value",
        hint="no option of vLLM's has so many",
    )


def _refuse(flags: Flags) -> None:
    for name in flags:
        # argparse takes abbreviations, so --api-k is --api-key too.
        if len(name) > 5 and any(secret.startswith(name) for secret in _SECRET):
            raise UsageError(
                f"got {name} among the vLLM arguments, which are written to the handoff; expected none",
                reason="secret-in-argv",
                hint="give it to the server container as VLLM_API_KEY or HF_TOKEN instead",
            )
        _refuse_secret_inside(name, flags[name])
        if name.startswith("--no-") and "--" + name[5:] in flags:
            raise UsageError(
                f"got both {name} and --{name[5:]}, expected one of them",
                reason="contradiction",
                hint="vLLM would take the last; say only what you mean",
            )
        if name in _OWNED:
            raise UsageError(
                f"got {name} among the vLLM arguments, expected it before --",
                reason="flag-owned-by-warmer",
                hint=_OWNED[name],
            )


def _refuse_secret_inside(name: str, occurrences: list[list[str]]) -> None:
    """Refuse ``--flag.password x`` and JSON values that hold a key named like a secret."""
    found = name if secret_name(name.rpartition(".")[2]) and "." in name else None
    for value in (value for occurrence in occurrences for value in occurrence):
        if value[:1] in ("{", "["):
            try:
                found = found or secret_inside(json.loads(value))
            except ValueError:
                continue
    if found:
        raise UsageError(
            f"got a secret, {found}, in {name} among the vLLM arguments, which are written to the "
            "handoff; expected none",
            reason="secret-in-argv",
            hint="give it to the server container in its environment instead",
        )
