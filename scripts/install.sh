#!/usr/bin/env bash
# Installs this package (editable) and its pinned dependencies into one Python environment.
#
#   scripts/install.sh [EXTRAS]        e.g. scripts/install.sh dev
#
#   PYTHON         interpreter of the environment             (default .venv/bin/python)
#   TORCH          what to give pip for torch: a requirement with options, such as
#                  "torch==2.14.1 --index-url ADDRESS"; or "system": torch is already there
#                  (default: the version in requirements/torch.txt)
#   DS_BUILD_OPS   DeepSpeed's compiled operators: 0 builds none ahead  (default 0)
#
# pip's own settings (index, proxy, cache) are taken from its configuration and environment.
# Order matters: torch comes first and is then pinned to what is installed, so that no later
# package can bring a second torch or a CUDA build of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
extras=${1:-}
# pip explains a conflict only when it isn't quiet.
export PIP_QUIET=${PIP_QUIET:-1}
trap 'echo "install.sh: failed; PIP_QUIET=0 shows all that pip has to say" >&2' ERR
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
    # A torch for CUDA has brought the Triton that it needs.
    echo "triton==$(version_of triton || sed -n 's/^triton==//p' requirements/constraints.txt)"
} >"$pins"

echo "install: deepspeed (built against torch $(version_of torch))"
DS_BUILD_OPS=${DS_BUILD_OPS:-0} pip_install --no-build-isolation -c "$pins" deepspeed
echo "install: mslt-ds${extras:+[$extras]}"
pip_install --no-build-isolation -c "$pins" -e ".${extras:+[$extras]}"
"$python" -m pip check
