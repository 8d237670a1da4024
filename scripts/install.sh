#!/usr/bin/env bash
# Installs this package (editable) and its pinned dependencies into one Python environment.
#
#   scripts/install.sh [EXTRAS]        e.g. scripts/install.sh dev
#
#   PYTHON         interpreter of the environment             (default .venv/bin/python)
#   TORCH          torch as a requirement with options of pip, such as
#                  "torch==2.14.1 --index-url ADDRESS"; or "system": torch is already installed
#                  (default: the version in requirements/torch.txt)
#   DS_BUILD_OPS   1 compiles DeepSpeed's operators now, 0 at their first use  (default 0)
#
# pip's own settings (index, proxy, cache) come from its configuration and environment.
# torch is installed first and pinned from then on, so that no other package replaces it by another
# version or by a CUDA build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
extras=${1:-}
# In quiet mode pip doesn't explain conflicts.
export PIP_QUIET=${PIP_QUIET:-1}
trap 'echo "install.sh: failed; PIP_QUIET=0 shows all messages of pip" >&2' ERR
pip_install() { "$python" -m pip install --disable-pip-version-check "$@"; }
version_of() {
    "$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install.sh: $python is older than Python 3.11; set PYTHON to a newer one" >&2
    exit 3
}
echo "install: pip, setuptools, wheel"
pip_install -r requirements/build.txt

if [ "${TORCH:-}" = system ]; then
    version_of torch >/dev/null || {
        echo "install.sh: TORCH=system, but $python has no torch" >&2
        exit 3
    }
elif [ -n "${TORCH:-}" ]; then
    echo "install: $TORCH"
    read -r -a torch <<<"$TORCH"
    pip_install "${torch[@]}"
elif ! version_of torch >/dev/null; then
    echo "install: $(grep '^torch' requirements/torch.txt)"
    pip_install -c requirements/constraints.txt -r requirements/torch.txt
fi

prefix=$("$python" -c 'import sys; print(sys.prefix)')
pins=$prefix/mslt-constraints.txt
{
    grep -v '^triton==' requirements/constraints.txt
    echo "torch==$(version_of torch)"
    # A CUDA build of torch has installed the Triton that it needs.
    echo "triton==$(version_of triton || sed -n 's/^triton==//p' requirements/constraints.txt)"
} >"$pins"

echo "install: deepspeed (built against torch $(version_of torch))"
DS_BUILD_OPS=${DS_BUILD_OPS:-0} pip_install --no-build-isolation -c "$pins" deepspeed
echo "install: mslt-ds${extras:+[$extras]}"
pip_install --no-build-isolation -c "$pins" -e ".${extras:+[$extras]}"
"$python" -m pip check
