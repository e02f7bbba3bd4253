#!/usr/bin/env bash
# Builds ViWorkS and runs its main job on this machine: a backend, three gateways over real mutual TLS, a first command.
if [ -z "${BASH_VERSION:-}" ]; then
  # Called as `sh quickstart.sh`.
  exec bash "$0" "$@"
fi
set -euo pipefail

usage() {
  cat <<'TXT'
usage: scripts/quickstart.sh [--once] [--agents N] [--data-dir DIR] [--reset] [--stores STORES]

Builds the three programs, then runs `viworks up`: its own certificates, an embedded database, a backend and three
gateways as separate processes on loopback, and a first command answered by all of them.

  --once          run it, print the answers, stop everything and exit
  --agents N      how many gateways (default 3)
  --data-dir DIR  where certificates, databases and logs live (default .viworks/dev in the repository)
  --reset         remove what an earlier run made there first
  --stores STORES where data is kept: sqlite, or postgres or postgres,redis for two backends on private servers of what
                  is installed (default sqlite)

Needs a Rust toolchain and a C compiler. Ctrl-C stops everything it started.
TXT
}

# A folder is meant from where the person stands, not from the repository.
from_here() {
  case "$1" in
    /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --data-dir=*) arguments+=("--data-dir=$(from_here "${1#--data-dir=}")") ;;
    --data-dir)
      arguments+=("$1")
      if [ $# -gt 1 ]; then shift; arguments+=("$(from_here "$1")"); fi
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

say() { printf '%s\n' "$*" >&2; }

if ! command -v cargo >/dev/null 2>&1; then
  for candidate in "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/cargo/bin; do
    if [ -x "$candidate/cargo" ]; then PATH="$candidate:$PATH"; export PATH; break; fi
  done
fi
if ! command -v cargo >/dev/null 2>&1; then
  say 'error: cargo was not found'
  say '  fix: install a Rust toolchain (https://rustup.rs), then run this script again'
  exit 69
fi
if ! command -v cc >/dev/null 2>&1; then
  say 'error: no C compiler (cc) was found; SQLite and the TLS library need one'
  say '  fix: on Debian: apt-get install build-essential'
  exit 69
fi

target=${CARGO_TARGET_DIR:-target}
if [ ! -x "$target/debug/viworks" ]; then
  say 'Building ViWorkS: the first build takes about 6 minutes on two cores, later starts take seconds.'
fi
cargo build --quiet --locked -p viworks-operator-cli -p viworks-gateway-agent -p viworks-backend-agent
exec "$target/debug/viworks" up ${arguments[@]+"${arguments[@]}"}
