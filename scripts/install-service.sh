#!/bin/sh
# Installs the services of ViWorkS where no package can: what the packages do, from a folder, without the network.
set -eu
umask 022
# With it, `cd` might go elsewhere and say so on standard output.
unset CDPATH

usage() {
  cat <<'TXT'
usage: install-service.sh install|uninstall|purge [OPTIONS] backend|gateway|cli...

  install      installs, or upgrades: keeps configuration, keys, state and every catalogue file that was changed
  uninstall    stops and removes programs and units; keeps configuration, keys and state
  purge        uninstalls, and removes configuration, keys, state and the user

  --from DIR   where bin/, systemd/, catalogue/, man/ and completions/ are; the folder above this script when left out
  --root DIR   puts everything below DIR, and starts and stops nothing; / is as good as none
  --dry-run    prints what would be done, and does nothing

For systemd 252 and later. On Debian take the packages: what dpkg has installed is refused here.
Exit codes: 0 done, 2 called wrongly, 6 it belongs to a package, 69 something that it needs is missing.
TXT
}

complain() { printf 'error: %s\n' "$2" >&2; exit "$1"; }

# The last word of everything that changes something.
run() {
  if [ -n "$dry_run" ]; then
    printf 'would run: %s\n' "$*"
  else
    "$@"
  fi
}

# Whether services are ours to start and stop.
is_live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# Older ones ignore lines of the units, and with them parts of the sandbox.
check_systemd() {
  for tool in systemctl systemd-sysusers systemd-tmpfiles; do
    command -v "$tool" >/dev/null 2>&1 || complain 69 "$tool is missing"
  done
  version=$(systemctl --version | sed -n '1s/^systemd \([0-9][0-9]*\).*/\1/p')
  # To be rid of it takes no particular one.
  [ "$verb" = install ] || return 0
  [ -n "$version" ] || complain 69 'systemctl does not say which version of systemd this is'
  [ "$version" -ge 252 ] || complain 69 "this is systemd $version, and the units need 252 or later, as Debian 12 has it"
}

# What a package has brought is a package's to change: dpkg would not know of it, and bring its own again.
check_package() {
  names "$1"
  command -v dpkg-query >/dev/null 2>&1 || return 0
  [ -d "$root/var/lib/dpkg" ] || return 0
  if owner=$(dpkg-query --admindir="$root/var/lib/dpkg" --search "/usr/bin/$program" 2>/dev/null); then
    package=${owner%%:*}
    complain 6 "/usr/bin/$program belongs to the package $package: upgrade it by dpkg --install, or remove it first, by dpkg --remove $package"
  fi
}

# What an administrator has decided about a unit: enabled, disabled, masked; not-found, or nothing, before it is there.
enabled() { systemctl is-enabled "$1" 2>/dev/null || true; }

# One file with its mode, by a rename: a program that runs may be replaced.
put() { # MODE SOURCE TARGET
  target=$root$3
  run mkdir -p "$(dirname -- "$target")"
  run install -m "$1" -- "$2" "$target.new"
  run mv -f -- "$target.new" "$target"
}

# The same where it is there.
put_if_there() { [ ! -e "$2" ] || put "$@"; }

drop() { if [ -e "$root$1" ]; then run rm -f -- "$root$1"; fi; }

drop_if_empty() { # FOLDER
  if [ -d "$root$1" ]; then run rmdir --ignore-fail-on-non-empty -- "$root$1"; fi
}

# A file of the catalogue: what somebody changed stays, and what nobody changed follows the shipped one.
put_catalogue() { # SOURCE NAME
  live=$root/etc/viworks/commands.d/$2
  shipped=$root/usr/share/viworks/catalogue/$2
  if [ -e "$live" ] && ! { [ -e "$shipped" ] && cmp -s -- "$live" "$shipped"; }; then
    printf 'kept: %s; the shipped one is %s\n' "$live" "$shipped"
  elif [ -e "$shipped" ] && [ ! -e "$live" ]; then
    printf 'kept away: %s was removed; the shipped one is %s\n' "$live" "$shipped"
  else
    put 644 "$1" "/etc/viworks/commands.d/$2"
  fi
  put 644 "$1" "/usr/share/viworks/catalogue/$2"
}

# What each part is called.
names() {
  case $1 in
    backend) program=viworks-backend-agent user=viworks-backend section=8 helper='' ;;
    gateway)
      program=viworks-gateway-agent user=viworks-gateway section=8 helper=viworks-gateway-helper
      slice=system-viworks_helper.slice
      ;;
    cli) program=viworks user='' section=1 helper='' ;;
    *) usage >&2; complain 2 "no part is called $1" ;;
  esac
}

# Where it stands that a unit is being installed for the first time.
mark_of() { printf '%s' "/usr/share/viworks/begun-$1"; }

# Whether a unit is new: also where an earlier call broke off before it had enabled it.
is_fresh() { [ ! -e "$root/usr/lib/systemd/system/$1" ] || [ -e "$root$(mark_of "$1")" ]; }

# Before the unit is there, so that no call takes it for one of an earlier version.
mark() {
  run mkdir -p "$root/usr/share/viworks"
  run touch -- "$root$(mark_of "$1")"
}

# What an earlier version had is left for one restart of all of them.
start_unit() { # UNIT FRESH
  case $2$(enabled "$1") in
    # Somebody does not want it.
    yesmasked*) printf 'left alone: %s is masked\n' "$1" ;;
    # Without a configuration it does not start, and that is no failure.
    yes*) run systemctl enable --now "$1" ;;
    *) again="$again $1" ;;
  esac
}

stop_unit() { # UNIT
  if ! is_live || [ ! -e "/usr/lib/systemd/system/$1" ]; then return 0; fi
  # Also one that waits to be started again.
  run systemctl stop "$1"
  case $(enabled "$1") in
    masked*) ;;
    *) run systemctl disable "$1" ;;
  esac
}

install_part() {
  names "$1"
  for file in "$program" $helper; do
    [ -f "$from/bin/$file" ] || complain 69 "$from/bin/$file is missing: $from is no archive of a release that was unpacked; --from DIR says where one is"
  done
  put 755 "$from/bin/$program" "/usr/bin/$program"
  for file in $program $helper; do
    for page in "$from/man/$file.$section" "$from/man/$file-"*".$section"; do
      put_if_there 644 "$page" "/usr/share/man/man$section/$(basename -- "$page")"
    done
  done
  # What is left are pages of verbs that this version has no more.
  for file in $program $helper; do
    for page in "$root/usr/share/man/man$section/$file-"*".$section"; do
      [ -e "$from/man/$(basename -- "$page")" ] || drop "${page#"$root"}"
    done
  done
  put_if_there 644 "$from/completions/$program.bash" "/usr/share/bash-completion/completions/$program"
  put_if_there 644 "$from/completions/_$program" "/usr/share/zsh/site-functions/_$program"
  put_if_there 644 "$from/completions/$program.fish" "/usr/share/fish/vendor_completions.d/$program.fish"
  if [ "$1" = cli ]; then
    put_if_there 755 "$from/scripts/production_validation.sh" /usr/share/viworks/production_validation.sh
  fi
  [ -n "$user" ] || return 0
  # What is new is enabled; what an earlier version had is restarted, as far as it runs.
  fresh='' fresh_helper='' again=''
  if is_fresh "$program.service"; then
    fresh=yes
    mark "$program.service"
  fi
  if [ -n "$helper" ] && is_fresh "$helper.socket"; then
    fresh_helper=yes
    mark "$helper.socket"
  fi
  put 644 "$from/systemd/$program.service" "/usr/lib/systemd/system/$program.service"
  put 644 "$from/systemd/sysusers.d/$user.conf" "/usr/lib/sysusers.d/$user.conf"
  put 644 "$from/systemd/tmpfiles.d/$user.conf" "/usr/lib/tmpfiles.d/$user.conf"
  if [ -n "$helper" ]; then
    put 755 "$from/bin/$helper" "/usr/bin/$helper"
    put 644 "$from/systemd/$helper.socket" "/usr/lib/systemd/system/$helper.socket"
    put 644 "$from/systemd/$helper@.service" "/usr/lib/systemd/system/$helper@.service"
    put 644 "$from/systemd/$slice" "/usr/lib/systemd/system/$slice"
    for file in "$from"/helper.d/*.toml; do
      put_if_there 644 "$file" "/usr/share/viworks/helper.d/$(basename -- "$file")"
    done
  fi
  if [ "$1" = backend ]; then
    for file in "$from"/nginx/*.conf; do
      put_if_there 644 "$file" "/usr/share/viworks/nginx/$(basename -- "$file")"
    done
    for file in generate_spki_pin.sh rotate_certificates.sh; do
      put_if_there 755 "$from/scripts/$file" "/usr/share/viworks/$file"
    done
  fi
  if [ "$1" = gateway ]; then
    for file in "$from"/catalogue/*.toml; do
      if [ -e "$file" ]; then put_catalogue "$file" "$(basename -- "$file")"; fi
    done
  fi
  if is_live; then
    run systemd-sysusers "$user.conf"
    run systemd-tmpfiles --create "$user.conf"
    run systemctl daemon-reload
    [ -z "$helper" ] || start_unit "$helper.socket" "$fresh_helper"
    start_unit "$program.service" "$fresh"
    # In one step: the agent ends before its helper's socket does, and starts after it.
    # shellcheck disable=SC2086
    [ -z "$again" ] || run systemctl try-restart $again
  fi
  for unit in "$program.service" "$helper.socket"; do drop "$(mark_of "$unit")"; done
  case $1 in
    backend)
      [ -e "$root/etc/viworks/backend/backend.toml" ] ||
        printf 'next: set the backend up by viworks-backend-agent pki init; docs/operations/services.md has what to type\n'
      ;;
    gateway)
      [ -e "$root/etc/viworks/gateway.toml" ] ||
        printf 'next: viworks-gateway-agent enroll, with a ticket of viworks ticket create; then systemctl start %s\n' "$program"
      ;;
  esac
}

uninstall_part() {
  names "$1"
  if [ -n "$user" ]; then stop_unit "$program.service"; fi
  if [ -n "$helper" ]; then
    stop_unit "$helper.socket"
    for file in "bin/$helper" "lib/systemd/system/$helper.socket" "lib/systemd/system/$helper@.service" \
      "lib/systemd/system/$slice"; do
      drop "/usr/$file"
    done
  fi
  drop "/usr/bin/$program"
  for file in $program $helper; do
    for page in "$root/usr/share/man/man$section/$file.$section" "$root/usr/share/man/man$section/$file-"*".$section"; do
      drop "${page#"$root"}"
    done
  done
  drop "/usr/share/bash-completion/completions/$program"
  drop "/usr/share/zsh/site-functions/_$program"
  drop "/usr/share/fish/vendor_completions.d/$program.fish"
  if [ "$1" = cli ]; then
    drop /usr/share/viworks/production_validation.sh
    drop_if_empty /usr/share/viworks
  fi
  [ -n "$user" ] || return 0
  if [ "$1" = backend ]; then
    for file in generate_spki_pin.sh rotate_certificates.sh; do drop "/usr/share/viworks/$file"; done
  fi
  for unit in "$program.service" "$helper.socket"; do drop "$(mark_of "$unit")"; done
  drop "/usr/lib/systemd/system/$program.service"
  drop "/usr/lib/sysusers.d/$user.conf"
  drop "/usr/lib/tmpfiles.d/$user.conf"
  if is_live; then run systemctl daemon-reload; fi
}

purge_part() {
  uninstall_part "$1"
  case $1 in
    backend)
      run rm -rf -- "$root/var/lib/viworks-backend" "$root/etc/viworks/backend" "$root/usr/share/viworks/nginx"
      ;;
    gateway)
      run rm -rf -- "$root/var/lib/viworks-gateway" "$root/etc/viworks/conf.d" "$root/etc/viworks/commands.d" \
        "$root/etc/viworks/helper.d" "$root/usr/share/viworks/catalogue" "$root/usr/share/viworks/helper.d" \
        "$root/etc/viworks/.enrolling"
      # What enroll has told to put aside has keys and identities as well.
      run rm -rf -- "$root/etc/viworks/before-"[0-9]* "$root/var/lib/viworks-gateway.before-"[0-9]*
      for file in gateway.toml gateway.crt gateway.key ca.crt identity.json; do drop "/etc/viworks/$file"; done
      ;;
    cli) return 0 ;;
  esac
  # What another part has there stays.
  for folder in /etc/viworks /usr/share/viworks; do drop_if_empty "$folder"; done
  if is_live && getent passwd "$user" >/dev/null; then run userdel "$user"; fi
}

main() {
  verb='' from='' root='' dry_run='' parts=''
  while [ "$#" -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --from | --root)
        [ "$#" -ge 2 ] || complain 2 "$1 needs a folder"
        [ -d "$2" ] || complain 2 "$2 is no folder"
        folder=$(cd -- "$2" && pwd -P)
        case $1 in --from) from=$folder ;; *) root=${folder%/} ;; esac
        shift
        ;;
      --dry-run) dry_run=yes ;;
      install | uninstall | purge)
        [ -z "$verb" ] || complain 2 "both $verb and $1"
        verb=$1
        ;;
      backend | gateway | cli) parts="$parts $1" ;;
      *) usage >&2; complain 2 "unknown argument $1" ;;
    esac
    shift
  done
  if [ -z "$verb" ] || [ -z "$parts" ]; then usage >&2; complain 2 'what is to be done, and to which part?'; fi
  [ -n "$from" ] || from=$(cd -- "$(dirname -- "$0")/.." && pwd)
  if [ -z "$root" ] && [ -z "$dry_run" ] && [ "$(id -u)" -ne 0 ]; then complain 69 'only root can install services; --root DIR or --dry-run can do without'; fi
  if is_live; then check_systemd; fi
  for part in $parts; do check_package "$part"; done
  for part in $parts; do "${verb}_part" "$part"; done
}

# Called last, so that a part of this file does nothing.
main "$@"
