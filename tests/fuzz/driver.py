"""Fuzz one target, guided by what its parser's code is seen to do (atheris, libFuzzer).

    python tests/fuzz/driver.py TARGET CORPUS [libFuzzer's flags]

A crash is an exception that the target does not know, an input that takes longer than LIMIT seconds,
or one that makes the process large; the input is kept where -artifact_prefix says.
"""

import importlib
import os
import sys
import tempfile

import atheris

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]

# warmer's own code, and what it leaves to others that is Python: what they do guides mutations too.
SEEN = ["warmer", "planted", "yaml", "tarfile", "prometheus_client", "botocore.parsers"]
MODULES = ("planted", "pod_targets", "word_targets", "volume_targets")


def found(name):
    """Import what has the target, and nothing that is not needed for it: instrumenting takes seconds."""
    with atheris.instrument_imports(include=SEEN, enable_loader_override=False):
        for module in MODULES:
            if target := importlib.import_module(module).TARGETS.get(name):
                return target
    raise SystemExit(f"got {name}, expected a target of {', '.join(MODULES)}")


LIMITS = (f"-timeout={os.environ.get('LIMIT', '20')}", "-rss_limit_mb=1024", "-print_final_stats=1")


def main():
    name, corpus, *flags = sys.argv[1:]
    target = found(name)
    os.makedirs(corpus, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        with open(os.path.join(corpus, f"seed-{number}"), "wb") as f:
            f.write(seed)
    with tempfile.NamedTemporaryFile("w", suffix=".dict", encoding="utf-8") as words:
        # libFuzzer's dictionaries know \\ \" and \xAB; the words are written so, but for quotes.
        words.writelines(
            '"{}"\n'.format(word.replace('"', '\\"')) for word in map(_spelled, target.words)
        )
        words.flush()
        argv = [sys.argv[0], corpus, *LIMITS, f"-max_len={target.longest}", *flags]
        if target.words:
            argv.append(f"-dict={words.name}")
        atheris.Setup(argv, target.run)
        atheris.Fuzz()


def _spelled(word):
    """A word with its backslashes, but for those of \\xAB, doubled."""
    parts = word.split("\\x")
    return "\\x".join(part.replace("\\", "\\\\") for part in parts)


if __name__ == "__main__":
    main()
