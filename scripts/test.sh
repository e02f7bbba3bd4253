#!/usr/bin/env bash
# Every check of this repository, with the tools it needs. The checks themselves are recipes of `cargo xtask`.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: scripts/test.sh [--no-install]

Installs what the checks need where it is missing (on Debian, as root or with sudo), then runs all of them:
format, house rules, shell scripts, units, dependency policy, clippy without warnings, all tests including the
simulation and the black-box tests of the shipped programs, documentation, and the quickstart.

  --no-install    install nothing; checks whose tool is missing are skipped, loudly

Exit code 0 means that every check passed, 69 that this machine lacks what they need. On two cores a first run takes about half an hour, a later one less.
One check alone: `cargo xtask NAME`; `cargo xtask --help` lists them.
TXT
}

flags=()
for argument in "$@"; do
  case "$argument" in
    -h | --help) usage; exit 0 ;;
    --no-install) flags=(--no-install) ;;
    *) printf 'error: unknown argument %s\n' "$argument" >&2; usage >&2; exit 2 ;;
  esac
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"

# How to run something as root; nothing when we are.
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)

# Installs a Debian package.
install_package() {
  [ "${#flags[@]}" -eq 0 ] || return 1
  command -v apt-get >/dev/null 2>&1 || return 1
  if [ "${#as_root[@]}" -gt 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || return 1
  fi
  printf 'installing %s\n' "$1"
  if ! DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "$1" >/dev/null 2>&1; then
    "${as_root[@]}" apt-get update -qq || return 1
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "$1" >/dev/null || return 1
  fi
}

# Installs a package when a command is missing. What still is missing then, the check that needs it says.
need() {
  command -v "$1" >/dev/null 2>&1 && return 0
  install_package "$2" && command -v "$1" >/dev/null 2>&1
}

# PostgreSQL, without the cluster that Debian would make and start with it: the tests start servers of their own.
need_postgresql() {
  local initdb settings=/etc/postgresql-common/createcluster.conf
  for initdb in /usr/lib/postgresql/*/bin/initdb; do
    [ -x "$initdb" ] && return 0
  done
  install_package postgresql-common || return 1
  "${as_root[@]}" sed -i 's/^#* *create_main_cluster.*/create_main_cluster = false/' "$settings" || return 1
  install_package postgresql
}

# The rule by which no service starts, while it is there for us; whoever interrupts us would have no later one start.
rule=''
drop_rule() {
  [ -z "$rule" ] || "${as_root[@]}" rm -f "$rule"
  rule=''
}
trap drop_rule EXIT

# A server and the package it is in, without the service that Debian would start with it: nothing that is installed
# meanwhile may start one. A machine that has a rule about that keeps it.
need_server() {
  local place package=${2:-$1}
  for place in /usr/bin /usr/sbin /usr/local/bin; do
    [ ! -x "$place/$1" ] || return 0
  done
  [ "${#flags[@]}" -eq 0 ] || return 1
  local status=0
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    # Noted before it is there.
    rule=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$rule" >/dev/null || status=1
    [ "$status" -ne 0 ] || "${as_root[@]}" chmod 755 "$rule" || status=1
  fi
  [ "$status" -ne 0 ] || install_package "$package" || status=1
  drop_rule
  # Where it would have started with the next boot as well.
  if [ "$status" -eq 0 ] && [ -d /run/systemd/system ]; then
    "${as_root[@]}" systemctl disable --quiet "$1" 2>/dev/null || true
  fi
  return "$status"
}

# A Debian that boots in a container, with nginx as its packages have it, outside the repository: made once, it takes
# two minutes and 250 MB. One from before nginx was in it is made anew.
need_machine() {
  local caches=${XDG_CACHE_HOME:-${HOME:?}/.cache}/viworks
  local image=$caches/machine-bookworm
  [ "$(id -u)" -eq 0 ] || { printf 'a machine for the packages: only root can start one; what needs it is skipped\n'; return 1; }
  need systemd-nspawn systemd-container || return 1
  if [ -e "$image/usr/lib/systemd/systemd" ] && [ -e "$image/usr/sbin/nginx" ]; then return 0; fi
  [ "${#flags[@]}" -eq 0 ] || return 1
  need debootstrap debootstrap || return 1
  mkdir -p "$caches"
  # Whole or not at all.
  rm -rf "$image.part"
  printf 'making an image of a machine in %s\n' "$image"
  local packages=systemd,systemd-sysv,dbus,nginx-light,libnginx-mod-stream
  if debootstrap --variant=minbase --include="$packages" bookworm "$image.part" >"$caches/debootstrap.log" 2>&1; then
    rm -rf "$image.part"/var/cache/apt/archives/*.deb "$image"
    mv "$image.part" "$image"
  else
    printf 'no image: %s\n' "$(tail -n 1 "$caches/debootstrap.log")"
    rm -rf "$image.part"
    return 1
  fi
}

# A disk that becomes full on the way lets tests fail that have nothing to do with it, half an hour later.
need_room() {
  local free
  # In GiB, rounded up; where df tells nothing, nothing is refused.
  free=$(df -P -BG -- "$1" 2>/dev/null | awk 'NR == 2 { sub(/G/, "", $4); print $4 }') || free=''
  case $free in '' | *[!0-9]*) return 0 ;; esac
  [ "$free" -lt "$2" ] || return 0
  printf 'error: %s GiB are free where %s is, and the checks need %s: make room there, or %s\n' \
    "$free" "$1" "$2" "$3" >&2
  exit 69
}

printf '\n== room\n'
# More than half of what is compiled is there for the next compilation, which continuous integration never has.
[ "${CI:-}" != true ] || export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"
compiled=${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-$root/target}}
# The tests start servers and copies of machines beside what is compiled, which is there once they have run here.
if [ -d "$compiled/debug/deps" ]; then gib=4; elif [ "${CARGO_INCREMENTAL:-1}" = 0 ]; then gib=8; else gib=12; fi
place=$compiled
while [ ! -e "$place" ]; do place=$(dirname -- "$place"); done
need_room "$place" "$gib" 'set CARGO_TARGET_DIR to a folder on another disk'
need_room "${TMPDIR:-/tmp}" 4 'set TMPDIR to a folder on another disk'
printf 'enough\n'

printf '\n== tools\n'
if ! command -v cargo >/dev/null 2>&1; then
  for candidate in "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/cargo/bin; do
    if [ -x "$candidate/cargo" ]; then PATH="$candidate:$PATH"; export PATH; break; fi
  done
fi
command -v cargo >/dev/null 2>&1 || { printf 'error: cargo was not found; install a Rust toolchain (https://rustup.rs)\n' >&2; exit 69; }
need cc build-essential || { printf 'error: no C compiler (cc); on Debian: apt-get install build-essential\n' >&2; exit 69; }
need curl curl || true
need openssl openssl || true
need python3 python3 || true
need faketime faketime || true
need ping iputils-ping || true
need shellcheck shellcheck || true
need_postgresql || true
need_server redis-server || true
# Valkey is not in every distribution that has Redis.
if command -v valkey-server >/dev/null 2>&1 || { command -v apt-cache >/dev/null 2>&1 && apt-cache show valkey-server >/dev/null 2>&1; }; then
  need_server valkey-server || true
else
  printf 'valkey-server: no package of it here; what needs it is skipped\n'
fi
need_server nginx nginx-light || true
# It passes TLS through by a module of its own package.
if [ -x /usr/sbin/nginx ] && [ ! -e /usr/lib/nginx/modules/ngx_stream_module.so ]; then
  install_package libnginx-mod-stream || true
fi
# What the bench measures beside the backend.
need_server nats-server || true
need_server mosquitto || true
need_machine || true
cargo --version
rustc --version

exec cargo xtask ${flags[@]+"${flags[@]}"} all
