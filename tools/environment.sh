# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes and activates .venv with the tested versions of everything.
#
#   LLSA_GEN_PYTHON   the interpreter to build .venv from; otherwise the first one below that runs and is >= 3.11

# The minor version that constraints.txt was resolved and tested with comes first.
LLSA_GEN_PYTHONS=(python3.11 python3.12 python3.13 python3.14 python3 python)

fail() {
  printf 'error: %s\n' "$@" >&2
  exit 1
}

is_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n "${LLSA_GEN_PYTHON:-}" ]]; then
    is_python "$LLSA_GEN_PYTHON" || fail "LLSA_GEN_PYTHON=$LLSA_GEN_PYTHON is no Python >= 3.11"
    echo "$LLSA_GEN_PYTHON"
    return
  fi
  for candidate in "${LLSA_GEN_PYTHONS[@]}"; do
    if is_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.11 found; tried: ${LLSA_GEN_PYTHONS[*]}" \
    "next: install one, or name it: LLSA_GEN_PYTHON=/path/to/python $0"
}

# What an environment depends on, as one line: the interpreter, its version and the two files that say what goes in.
environment_stamp() {
  "$1" - "$2" <<'PYTHON'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f"{sys.version}\n{sys.base_prefix}\n{root}\n".encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PYTHON
}

install_environment() {
  local root=$1 python=$2 venv=$1/.venv
  echo "making .venv with $("$python" --version) (once per change of pyproject.toml or constraints.txt)" >&2
  "$python" -m venv --clear "$venv" || fail "could not make $venv; Debian and Ubuntu need the package python3-venv"
  # constraints.txt pins torch, so pip takes a CPU build where one is configured and never a second version.
  # A terminal shows the progress of downloads, a log only what went wrong.
  local volume=--quiet
  [[ ! -t 2 ]] || volume=--no-input
  "$venv/bin/python" -m pip install "$volume" --disable-pip-version-check \
    -c "$root/constraints.txt" -e "$root[test,demo,train]" || fail "could not install into $venv (see above)"
}

# The interpreter is looked for and the packages installed only when the stamp of .venv is not the one of now.
ensure_environment() {
  local root python stamp
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=$(find_python)
  stamp=$(environment_stamp "$python" "$root")
  if [[ ! -x "$root/.venv/bin/python" || "$(cat "$root/.venv/.llsa-gen-stamp" 2>/dev/null)" != "$stamp" ]]; then
    install_environment "$root" "$python"
    echo "$stamp" >"$root/.venv/.llsa-gen-stamp"
  fi
  export VIRTUAL_ENV=$root/.venv PATH=$root/.venv/bin:$PATH
  unset PYTHONHOME
  cd "$root"
}

ensure_environment
