#!/usr/bin/env bash
# Every check of this repository: format, lints, all tests, documentation, dependency policy, the quickstart itself.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: scripts/test.sh [--no-install]

Installs what the checks need where it is missing (on Debian, as root or with sudo), then runs all of them:
format, clippy without warnings, all tests including the simulation and the black-box tests of the shipped programs,
documentation, dependency policy, shell scripts, and the quickstart.

  --no-install    install nothing; checks whose tool is missing are skipped, loudly

Exit code 0 means that every check passed. On two cores a first run takes about twenty minutes, a later one less.
TXT
}

install=yes
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage; exit 0 ;;
    --no-install) install=no ;;
    *) printf 'error: unknown argument %s\n' "$argument" >&2; usage >&2; exit 2 ;;
  esac
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"
started=$SECONDS
skipped=()

say() { printf '\n== %s  (%d s)\n' "$*" "$((SECONDS - started))"; }

skip() {
  skipped+=("$1")
  printf '!! SKIPPED: %s\n' "$1"
}

# Installs a Debian package when a command is missing.
need() {
  local command=$1 package=$2
  command -v "$command" >/dev/null 2>&1 && return 0
  [ "$install" = yes ] || return 1
  command -v apt-get >/dev/null 2>&1 || return 1
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  printf 'installing %s\n' "$package"
  if ! DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "$package" >/dev/null 2>&1; then
    "${as_root[@]}" apt-get update -qq || return 1
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "$package" >/dev/null || return 1
  fi
  command -v "$command" >/dev/null 2>&1
}

say 'tools'
if ! command -v cargo >/dev/null 2>&1; then
  for candidate in "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/cargo/bin; do
    if [ -x "$candidate/cargo" ]; then PATH="$candidate:$PATH"; export PATH; break; fi
  done
fi
command -v cargo >/dev/null 2>&1 || { printf 'error: cargo was not found; install a Rust toolchain (https://rustup.rs)\n' >&2; exit 69; }
need cc build-essential || { printf 'error: no C compiler (cc); on Debian: apt-get install build-essential\n' >&2; exit 69; }
need openssl openssl || skip 'certificates against OpenSSL: openssl is missing'
if ! need python3 python3; then
  skip 'the reference agent in Python: python3 is missing'
  export VIWORKS_WITHOUT_PYTHON=1
fi
need faketime faketime || skip 'a backend whose wall clock is set: faketime is missing'
if [ "$(id -u)" -ne 0 ] || ! unshare --mount true 2>/dev/null; then
  skip 'mounts that hang, limits on processes, process 1: they need root and namespaces'
fi
need ping iputils-ping || printf 'note: ping is missing; net.ping uses its own fallback\n'
cargo --version
rustc --version

say 'format'
cargo fmt --all --check

say 'lints'
cargo clippy --locked --quiet --workspace --all-targets -- -D warnings

say 'programs'
cargo build --locked --quiet --workspace
cargo build --locked --quiet --target-dir target/fault-points -p viworks-gateway-agent -p viworks-backend-agent \
  --features viworks-gateway-agent/fault-points,viworks-backend-agent/fault-points

say 'tests'
cargo test --locked --workspace

say 'documentation'
RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --no-deps --workspace

say 'dependency policy'
if [ -n "$(cargo tree --locked --workspace --edges normal,build -i ring 2>/dev/null)" ]; then
  printf 'error: ring is in the dependency tree; aws-lc-rs is the one provider\n' >&2
  exit 1
fi
if command -v cargo-deny >/dev/null 2>&1; then
  cargo deny --locked check licenses bans sources
else
  skip 'licences and bans: cargo-deny is not installed (cargo install cargo-deny)'
fi

say 'shell scripts'
if need shellcheck shellcheck; then
  shellcheck scripts/*.sh .ci/run
else
  skip 'shell scripts: shellcheck is missing'
fi

say 'quickstart'
demo=$(mktemp -d)
trap 'rm -rf -- "$demo"' EXIT
VIWORKS_CONFIG_DIR="$demo/config" ./scripts/quickstart.sh --once --data-dir "$demo/demo data"

say 'done'
for what in "${skipped[@]}"; do printf '!! SKIPPED: %s\n' "$what"; done
printf 'every check that ran has passed\n'
