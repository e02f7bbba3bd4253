#!/usr/bin/env bash
# Go or no-go: the checks of a live installation, or of one that is made for them.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: scripts/production_validation.sh --self-contained [--strict] [--previous DIR] [--report DIR] [--only CHECKS]
       scripts/production_validation.sh --url URL --key FILE (--gateway DIR | --backend-config FILE) [--door URL]
                                        [--report DIR] [--only CHECKS]

  --self-contained        starts an installation of its own, with nginx, PostgreSQL and Redis where they are installed,
                          kills its parts, and removes it; needs a Rust toolchain
  --strict                what could not be tried is a no-go as well
  --previous DIR          the programs of the version before, for the rehearsal of a rollback; without it those that
                          `cargo xtask skew` built, if it did

  --url URL               the API of a live installation; needs viworks and viworks-gateway-agent, and nothing else
  --key FILE              the API key
  --gateway DIR           a gateway that was issued for this run and never ran; revoke it afterwards
  --backend-config FILE   on the backend's host, instead of --gateway: issues one, and revokes it afterwards

  --door URL              where machines enrol, https://HOST:PORT; without it door_url in the gateway's configuration,
                          which one that is issued here has from public_url in [enrolment]; without that as well, the
                          check of enrolment is skipped

  --report DIR            where validation.json and validation.xml (JUnit) go
  --only CHECKS           only these, separated by commas

Ends with 0 for GO, 20 for NO-GO, 2 when it was called wrongly, and with another code when there is no verdict.
TXT
}

complain() { printf 'error: %s\n' "$1" >&2; usage >&2; exit 2; }

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
mode='' own='' url='' key='' gateway='' config='' door='' report=''
passed=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --self-contained) mode=own; shift; continue ;;
    --strict) own="$1"; passed+=("$1"); shift; continue ;;
    --url | --key | --gateway | --backend-config | --door | --previous | --report | --only) ;;
    *) complain "unknown argument $1" ;;
  esac
  [ $# -gt 1 ] || complain "$1 needs a value"
  case "$1" in
    --url) url=$2 ;;
    --key) key=$2 ;;
    --gateway) gateway=$2 ;;
    --backend-config) config=$2 ;;
    --door) door=$2; passed+=("$1" "$2") ;;
    --report) report=$2 ;;
    --previous) own="$1"; passed+=("$1" "$2") ;;
    *) passed+=("$1" "$2") ;;
  esac
  shift 2
done

if [ "$mode" = own ]; then
  [ -z "$url$key$gateway$config$door" ] || complain '--self-contained has an installation of its own'
  [ -f "$root/Cargo.toml" ] || { printf 'error: --self-contained is for a checkout of the repository, which this is not: %s\n' "$root" >&2; exit 69; }
  command -v cargo >/dev/null 2>&1 || { printf 'error: cargo was not found; install a Rust toolchain (https://rustup.rs)\n' >&2; exit 69; }
  [ -z "$report" ] || passed+=(--report "$report")
  exec cargo run --quiet --locked --manifest-path "$root/Cargo.toml" -p viworks-e2e --bin production_validation -- "${passed[@]}"
fi

[ -z "$own" ] || complain "$own is for --self-contained"
if [ -z "$url" ] || [ -z "$key" ]; then complain 'name an installation (--url and --key), or take --self-contained'; fi
if [ -n "$gateway" ] && [ -n "$config" ]; then complain 'either --gateway or --backend-config'; fi
[ -n "$gateway$config" ] || complain 'it needs a gateway of its own: --gateway DIR, or --backend-config FILE on the backend'"'"'s host'
command -v viworks >/dev/null 2>&1 || { printf 'error: viworks was not found; install the package viworks-cli\n' >&2; exit 69; }

scratch=''
name=''
# What the backend's user can do is done as that user: its files are not for root to trust, and an agent that is only
# looked at needs no rights. Nothing is done as root in a folder that is that user's: it may make links there.
as=()
clean_up() {
  code=$?
  trap - EXIT
  trap '' INT TERM HUP
  if [ -n "$name" ]; then
    revoked=0
    said=$(${as[@]+"${as[@]}"} viworks-backend-agent gateway revoke "$name" --config "$config" 2>&1 >/dev/null) || revoked=$?
    # 5: there is none. It was stopped before that.
    if [ "$revoked" -ne 0 ] && [ "$revoked" -ne 5 ]; then
      printf '%s\n' "$said" >&2
      printf 'left behind: the gateway %s; viworks-backend-agent gateway revoke %s --config %s\n' "$name" "$name" "$config" >&2
    fi
  fi
  if [ -z "$scratch" ]; then
    :
  elif [ -O "$scratch" ]; then
    rm -rf -- "$scratch"
  else
    # That user may not be allowed to take away the folder itself.
    "${as[@]}" rm -rf -- "$scratch" 2>/dev/null || rmdir -- "$scratch" || true
  fi
  exit "$code"
}
# A signal is for the validation, which ends what it has started. What is done before is done to its end, and then
# comes the clean-up: a gateway that is issued afterwards would stay.
stopped=''
validating=''
trap 'stopped=yes; [ -z "$validating" ] || kill -TERM "$validating" 2>/dev/null || true' INT TERM HUP
code=0
reports=$report
if [ -n "$config" ]; then
  command -v viworks-backend-agent >/dev/null 2>&1 || { printf 'error: viworks-backend-agent was not found; this is not the backend'"'"'s host\n' >&2; exit 69; }
  trap clean_up EXIT
  # Whoever reads it may not be allowed into the folder that we are in. If it is a link, `conf.d` is beside that.
  folder=$(realpath -- "$(dirname -- "$config")")
  config=${folder%/}/$(basename -- "$config")
  scratch=$(mktemp -d)
  owner=$(stat -L -c %U -- "$config")
  if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ]; then
    as=(setpriv --reuid "$owner" --regid "$(id -g -- "$owner")" --init-groups
      env --ignore-environment --chdir=/ PATH="$PATH" HOME="$scratch" TMPDIR="$scratch")
    # The rest of what is root's is about root's programs, settings of agents and operators among it. Only the way to
    # the API is the same.
    for variable in LANG SSL_CERT_FILE SSL_CERT_DIR \
      no_proxy NO_PROXY http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY; do
      [ -z "${!variable:-}" ] || as+=("$variable=${!variable}")
    done
    # The folder changes hands once root has nothing to do in it any more.
    install -o "$owner" -m 600 -- "$key" "$scratch/key"
    chown "$owner" "$scratch"
    key=$scratch/key
    [ -z "$report" ] || reports=$scratch/reports
  fi
  gateway=$scratch/gateway
  [ -z "$stopped" ] || exit 130
  # Noted before it is there: what ends in between leaves a gateway that is registered all the same.
  name=validation-$(date -u +%Y%m%dt%H%M%S)-$$
  ${as[@]+"${as[@]}"} viworks-backend-agent pki issue-gateway "$name" --config "$config" --out "$gateway" >/dev/null || code=$?
  [ -z "$stopped" ] || exit 130
  [ "$code" -eq 0 ] || exit "$code"
fi
[ -z "$report" ] || passed+=(--report "$reports")
${as[@]+"${as[@]}"} viworks validate --server "$url" --token-file "$key" --gateway "$gateway" ${passed[@]+"${passed[@]}"} &
validating=$!
# A signal before that line was for nobody.
[ -z "$stopped" ] || kill -TERM "$validating" 2>/dev/null || true
wait "$validating" || code=$?
while kill -0 "$validating" 2>/dev/null; do
  code=0
  wait "$validating" || code=$?
done
validating=''
if [ "$reports" != "$report" ] && [ -d "$reports" ]; then
  mkdir -p -- "$report"
  for file in validation.json validation.xml; do
    # Read by that user, written by root.
    "${as[@]}" cat -- "$reports/$file" >"$report/$file" 2>/dev/null || rm -f -- "$report/$file"
  done
fi
# Whoever stopped it is told so, unless there was a verdict before.
[ -z "$stopped" ] || [ "$code" -eq 0 ] || [ "$code" -eq 20 ] || exit 130
[ "$code" -eq 0 ] || exit "$code"
