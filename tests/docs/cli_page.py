"""Render docs/cli.md from the program itself: ``python tests/docs/cli_page.py > docs/cli.md``."""

import os
import subprocess
import sys

from warmer.cli import VERBS

HEAD = """\
# Command line

Generated from the program by `make docs`; a test compares it.

Options win over variables (`--warm-dir` is `WARMER_WARM_DIR`), those over the YAML file named by
`--config`, whose keys are the options' names. Results go to stdout, logs to stderr: JSON when stderr is
no terminal. With `--json`, stdout is one JSON object; programs ignore fields they do not know. Errors are
one line on stderr, `warmer: got X, expected Y`, then `hint: ...`; with `--json` also
`{"error": {"code", "reason", "message", "hint"}}` on stdout.

| code | meaning |
|---|---|
| 0 | warm / done |
| 1 | not warm: pieces are missing (named on stdout); `gc`: a record of use cannot be read |
| 2 | usage or configuration error |
| 3 | another owner is filling (check), or waiting for it ran past `--wait`; another gc is at work |
| 4 | the source, or the lock's service, failed: not found, denied, rate-limited past the budget, unreachable |
| 5 | integrity: bytes do not match what the source or the seal says |
| 6 | the volume or the warm dir failed: no space, read-only, permission, I/O error |
| 7 | the engine run that builds kernels failed |
| 70 | a bug in warmer (traceback on stderr) |
| 130 / 143 | interrupted / terminated, with staging cleaned up |

## Completion

In bash 4.4 or newer, zsh and fish: verbs, options, the words that an option takes, and paths. A line for
the shell's own file:

```sh
eval "$(_WARMER_COMPLETE=bash_source warmer)"                   # ~/.bashrc
eval "$(_WARMER_COMPLETE=zsh_source warmer)"                    # ~/.zshrc, behind compinit
_WARMER_COMPLETE=fish_source warmer | source                    # ~/.config/fish/completions/warmer.fish
```

Nothing is looked at but the words typed: no volume, no network. What comes after `--` is vLLM's, and is not completed.
"""


def help_of(*words):
    """What the program prints for --help, as a user sees it 80 columns wide."""
    env = dict(os.environ, COLUMNS="80", PYTHONPATH=os.pathsep.join(sys.path))
    env = {name: value for name, value in env.items() if not name.startswith("WARMER_")}
    argv = [sys.executable, "-m", "warmer", *words, "--help"]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout


def page():
    parts = [HEAD, "## warmer\n\n```\n" + help_of() + "```\n"]
    parts += [f"## warmer {verb}\n\n```\n{help_of(verb)}```\n" for verb in VERBS]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
