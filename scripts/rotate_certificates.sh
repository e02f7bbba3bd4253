#!/usr/bin/env bash
# Puts another server certificate in place, with its key where that changes, and takes it back when it is not shown.
set -euo pipefail
umask 077

usage() {
  cat <<'TXT'
usage: scripts/rotate_certificates.sh --config FILE --certificate FILE [--key FILE] [--ca FILE]
         [--connect HOST:PORT] [--name NAME] [--unit UNIT | --pid PID] [--names-change]
         [--force --reason TEXT] [--dry-run]

  --config FILE         the backend's configuration: it says which certificate, key, successor and address there are
  --certificate FILE    the new certificate, PEM, with those that lead to its root behind it
  --key FILE            its key, when that is another one; the key in next_key_file is found without it
  --ca FILE             what gateways verify it by (ca_file on them); client_ca_file when left out
  --connect HOST:PORT   where it is looked at afterwards; `listen` of [agents] when left out
  --name NAME           the name that is asked for there; none when left out
  --unit UNIT           the unit that is reloaded; viworks-backend-agent when left out. It may be repeated: where nginx
                        ends the gateways' TLS, --unit nginx as well
  --pid PID             the process that gets SIGHUP instead
  --names-change        the new certificate may be for fewer names than the one in place
  --force               another authority's certificate, whatever gateways lack that authority; needs --reason
  --reason TEXT         why; it is said again with what was done
  --dry-run             checks everything, says what would be done, and does nothing

Checked before anything is changed: that the key fits, that the certificate leads to that authority as a server's, that
it is valid now, that it has the names of the one in place, that gateways trust its key, and that the one in place is
shown where it is looked at afterwards. They trust the key in place
and the one of next_key_file. Where `viworks pin status` answers, that counts: another key has to be promoted there, or,
as long as nobody took a step, be the one of next_key_file and confirmed by every gateway.
A certificate that leads to another authority than the one in place is put there when `viworks authority status` says
that every gateway has that authority, connected or not, and by --force otherwise.
Then both files are kept beside themselves, replaced, the backend is reloaded and asked what it shows. When that is not
the new certificate, the files of before are put back and the backend is reloaded again.

Ends with 0, 2 when it was called wrongly, 3 when the old files are back in place, 6 when it was refused and nothing was
changed, 69 when a tool is missing, 78 when a file is not there or cannot be read, and 1 when even the way back failed.
TXT
}

complain() { printf 'error: %s\n' "$2" >&2; exit "$1"; }
# Nothing was changed: what is wrong, and what to do.
refuse() {
  printf 'refused: %s\n' "$1" >&2
  printf '  fix: %s\n' "$2" >&2
  exit 6
}
say() { printf '%s\n' "$1"; }

# How long the backend may take until it shows another certificate.
readonly PATIENCE=15

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
config='' new='' new_key='' ca='' place='' name='' pid='' names_change='' dry_run='' force='' reason=''
units=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --names-change) names_change=yes; shift; continue ;;
    --dry-run) dry_run=yes; shift; continue ;;
    --force) force=yes; shift; continue ;;
    --config | --certificate | --key | --ca | --connect | --name | --unit | --pid | --reason) ;;
    *) usage >&2; complain 2 "unknown argument $1" ;;
  esac
  [ $# -gt 1 ] || { usage >&2; complain 2 "$1 needs a value"; }
  case "$1" in
    --config) config=$2 ;;
    --certificate) new=$2 ;;
    --key) new_key=$2 ;;
    --ca) ca=$2 ;;
    --connect) place=$2 ;;
    --name) name=$2 ;;
    --unit) units+=("$2") ;;
    --pid) pid=$2 ;;
    --reason) reason=$2 ;;
  esac
  shift 2
done
if [ -z "$config" ] || [ -z "$new" ]; then usage >&2; complain 2 'name --config and --certificate'; fi
[ "${#units[@]}" -gt 0 ] || units=(viworks-backend-agent)
[[ $pid =~ ^[0-9]*$ ]] || complain 2 "$pid is no process"
[ -z "$force" ] || [[ $reason =~ [^[:space:]] ]] || complain 2 '--force needs --reason TEXT'
for tool in openssl viworks-backend-agent timeout awk; do
  command -v "$tool" >/dev/null 2>&1 || complain 69 "$tool was not found"
done
[ -n "$pid$dry_run" ] || command -v systemctl >/dev/null 2>&1 || complain 69 'systemctl was not found; name the process: --pid PID'
for file in "$config" "$new" ${new_key:+"$new_key"} ${ca:+"$ca"}; do
  [ -r "$file" ] || complain 78 "$file is not there, or cannot be read"
done

# What is in force, whichever file says so. Problems are told by check-config; here it is asked for places alone.
explained=$(viworks-backend-agent config explain --config "$config" 2>/dev/null) || true
folder=$(cd -- "$(dirname -- "$config")" && pwd)
setting() {
  printf '%s\n' "$explained" | sed -n "/^\[$1\]\$/,/^\[/s/^$2 = \"\(.*\)\" *# .*\$/\1/p" | head -n 1
}
named() {
  local value
  value=$(setting "$1" "$2")
  case "$value" in
    '' | /*) printf '%s' "$value" ;;
    credential:*) complain 6 "$2 is a credential of the service manager: replace the file that its unit names, and restart the unit" ;;
    *) printf '%s/%s' "$folder" "$value" ;;
  esac
}
certificate=$(named agents certificate_file)
key=$(named agents key_file)
next=$(named agents next_key_file)
[ -n "$ca" ] || ca=$(named agents client_ca_file)
if [ -z "$certificate" ] || [ -z "$key" ]; then
  complain 2 "$config names no certificate_file and key_file: viworks-backend-agent check-config --config $config"
fi
[ -r "$certificate" ] || complain 78 "$certificate is not there, or cannot be read"
[ -r "$key" ] || complain 78 "$key is not there, or cannot be read; run this as its owner"

pin() { "$here/generate_spki_pin.sh" "$1" 2>/dev/null || true; }
fingerprint() { openssl x509 -in "$1" -noout -fingerprint -sha256 2>/dev/null | sed 's/.*=//'; }
subject_names() {
  openssl x509 -in "$1" -noout -ext subjectAltName 2>/dev/null | sed 1d | tr ',' '\n' | tr -d ' ' | sort -u
}

# The certificate itself.
new_pin=$(pin "$new")
[ -n "$(fingerprint "$new")" ] || refuse "$new holds no certificate" 'name the certificate, PEM'
if [ -z "$new_key" ]; then
  for known in "$key" ${next:+"$next"}; do
    if [ -r "$known" ] && [ "$(pin "$known")" = "$new_pin" ]; then new_key=$known; break; fi
  done
  [ -n "$new_key" ] || refuse "the certificate is for the key $new_pin, which is neither in $key nor in ${next:-next_key_file}" \
    'have it issued for one of these keys, or name its own: --key FILE'
fi
[ "$(pin "$new_key")" = "$new_pin" ] ||
  refuse "the key in $new_key does not fit the certificate in $new" 'name the key that the certificate was asked for with'
if ! verified=$(openssl verify -purpose sslserver -CAfile "$ca" -untrusted "$new" "$new" 2>&1); then
  refuse "the certificate does not lead to $ca as a server's: $(printf '%s' "$verified" | tr '\n' ' ')" \
    'have it issued by the authority that gateways know (ca_file), for serverAuth, and put the intermediates behind it; if it is not valid yet, look at this clock'
fi
openssl x509 -in "$new" -noout -checkend 0 >/dev/null || refuse 'the certificate has ended' 'have another one issued'
if [ -z "$names_change" ]; then
  missing=$(comm -23 <(subject_names "$certificate") <(subject_names "$new") | tr '\n' ' ')
  [ -z "$missing" ] || refuse "the new certificate is not for ${missing% }, which the one in place is for" \
    'have these names in it as well, or say that nothing dials them: --names-change'
fi

# Whether gateways know the authority that it leads to. Those that are known here are told from each other by the digest
# of their certificates; a chain may lead to several of them, such as an intermediate and the root above it.
apart=$(mktemp -d) || complain 6 'a folder for what is looked at cannot be made; nothing was changed'
trap 'rm -rf -- "$apart"' EXIT
awk -v folder="$apart" '
  /^-----BEGIN CERTIFICATE-----/ { count += 1; inside = 1 }
  inside { print > (folder "/" count ".pem") }
  /^-----END CERTIFICATE-----/ { inside = 0; close(folder "/" count ".pem") }
' "$ca"
digest_of() { fingerprint "$1" | tr -d ':' | tr '[:upper:]' '[:lower:]'; }
# The authorities that a certificate leads to. The one in place may have ended, and leads there all the same.
leads_to() {
  local one
  for one in "$apart"/*.pem; do
    [ -r "$one" ] || continue
    ! openssl verify -partial_chain -no_check_time -purpose sslserver -CAfile "$one" -untrusted "$1" "$1" >/dev/null 2>&1 ||
      digest_of "$one"
  done | sort -u
}
leads_now=$(leads_to "$certificate") leads_then=$(leads_to "$new")
rm -rf -- "$apart"
trap - EXIT
forced=''
if ! comm -12 <(printf '%s\n' "$leads_now") <(printf '%s\n' "$leads_then") | grep -q .; then
  authorities=''
  if command -v viworks >/dev/null 2>&1; then
    # It ends with 20 while somebody lacks one.
    authorities=$(timeout "$PATIENCE" viworks authority status -o json 2>/dev/null) || true
    grep -q '^ *"kind": "AuthorityStatus",$' <<<"$authorities" || authorities=''
  fi
  # What is told of one authority: how many have it, then the names of the first that do not.
  told_of_authority() {
    awk -v authority="$1" '
      { sub(/^[ \t]+/, ""); sub(/,$/, "") }
      /^"authority": / { here = ($0 == "\"authority\": \"" authority "\"") }
      here && /^"(known_to|name)": / { sub(/^"[a-z_]+": /, ""); gsub(/"/, ""); print }
    ' <<<"$authorities"
  }
  everyone=$(sed -n 's/^ *"gateways": \([0-9]*\),\{0,1\}$/\1/p' <<<"$authorities")
  known='' cut_off=''
  while read -r authority; do
    [ -n "$authority" ] || continue
    told_here=$(told_of_authority "$authority")
    [ -n "$told_here" ] || continue
    known=$(head -n 1 <<<"$told_here")
    if [ "$known" = "$everyone" ]; then cut_off=''; break; fi
    # The first five; the others are counted.
    cut_off=$(sed -n '2,6p' <<<"$told_here" | paste -sd ' ' | sed 's/ /, /g')
    [ $((everyone - known)) -le 5 ] || cut_off="$cut_off and $((everyone - known - 5)) more"
  done <<<"$leads_then"
  why='' fix=''
  if [ -z "$authorities" ]; then
    why='the new certificate leads to another authority than the one in place, and viworks authority status does not tell here which gateways know it'
    fix='have viworks reach the backend from here (viworks context ls, pins:read), and come back'
  elif [ -z "$known" ]; then
    why='the new certificate leads to another authority than the one in place, which gateways are not given: each of them would refuse the server'
    fix='put the certificate of that authority behind the others in client_ca_file, reload every backend, and come back when viworks authority status says that all gateways have it'
  elif [ "$known" != "$everyone" ]; then
    why="$known of $everyone gateways know the authority that the new certificate leads to so far, and each other one would refuse the server: $cut_off"
    fix='viworks authority status says who they are and when they were connected: come back when each has it'
  fi
  if [ -n "$why" ]; then
    [ -n "$force" ] || refuse "$why" "$fix, or accept that they are cut off: --force --reason TEXT"
    forced=$why
  fi
fi

# Whether gateways trust its key.
trusted=no
for known in "$key" ${next:+"$next"}; do
  [ -r "$known" ] || continue
  [ "$(pin "$known")" != "$new_pin" ] || trusted=$known
done
told=''
if command -v viworks >/dev/null 2>&1; then
  told=$(timeout "$PATIENCE" viworks pin status -o json 2>/dev/null) || told=''
  grep -q '^ *"kind": "PinStatus",$' <<<"$told" || told=''
fi
# What is told of the new key. Each member stands on a line of its own, and a pin before what is said of it.
told_of() {
  awk -v pin="$new_pin" -v member="$1" '
    { sub(/^[ \t]+/, ""); sub(/,$/, "") }
    /^"pin": / { here = ($0 == "\"pin\": \"" pin "\"") }
    here && index($0, "\"" member "\": ") == 1 { value = substr($0, length(member) + 5); gsub(/"/, "", value); print value; exit }
  ' <<<"$told"
}
if [ -n "$told" ] && [ "$trusted" != "$key" ]; then
  gateways=$(sed -n 's/^ *"gateways": \([0-9]*\),\{0,1\}$/\1/p' <<<"$told")
  confirmed=$(told_of confirmed_by)
  case "$(told_of state)" in
    promoted) trusted=promoted ;;
    staged)
      [ "$confirmed" = "$gateways" ] ||
        refuse "$confirmed of $gateways gateways trust the key $new_pin so far, and each other one would end the connection" \
          "viworks pin status names them: come back when each has confirmed it, or accept that they are cut off: viworks pin promote $new_pin --force --reason TEXT"
      # Before the first step the backend takes over the key of next_key_file, and afterwards what was promoted.
      if [ "$trusted" = no ] || grep -q '^ *"since": [^n]' <<<"$told"; then
        refuse "every gateway trusts the key $new_pin, and the backend does not show it before it is promoted" \
          "viworks pin promote $new_pin"
      fi
      ;;
    *)
      refuse "viworks pin status does not tell of $new_pin as a key to trust: gateways would end the connection" \
        "viworks pin stage $new_pin, and viworks pin promote $new_pin when every gateway has confirmed it"
      ;;
  esac
fi
if [ "$trusted" = no ]; then
  refuse "no gateway trusts the key $new_pin yet, and each would end the connection" \
    "put the key where next_key_file in [agents] points, have gateways learn it (viworks pin stage $new_pin), and come back when viworks pin status says that they have"
fi

# Where it is looked at.
if [ -z "$place" ]; then
  place=$(setting agents listen)
  case "$place" in
    0.0.0.0:*) place=127.0.0.1:${place##*:} ;;
    '[::]:'*) place="[::1]:${place##*:}" ;;
  esac
  if [ "$(setting agents proxy_protocol)" = require ] || [ "$(setting agents tls_ends_at)" = proxy ]; then
    complain 2 'gateways come by a proxy: say where it takes them, --connect HOST:PORT'
  fi
fi
case "$place" in
  *:0 | '') complain 2 'nothing says where the backend takes gateways: --connect HOST:PORT' ;;
esac

say "certificate  $certificate"
say "  now        $(pin "$certificate")  $(openssl x509 -in "$certificate" -noout -enddate | sed 's/notAfter=/ends /')"
say "  new        $new_pin  $(openssl x509 -in "$new" -noout -enddate | sed 's/notAfter=/ends /')"
if [ "$new_pin" = "$(pin "$key")" ]; then change_key=''; say "key          $key stays"; else change_key=yes; say "key          $key is replaced by that of $new_key"; fi
if [ -n "$pid" ]; then say "reload       SIGHUP to $pid"; else say "reload       systemctl reload ${units[*]}"; fi
say "look at      $place"
[ -z "$forced" ] || say "forced       $forced ($reason)"
if [ "$(fingerprint "$certificate")" = "$(fingerprint "$new")" ] && [ -z "$change_key" ]; then
  say 'the new certificate is in place already; nothing to do'
  exit 0
fi
# Nothing is written as root into a folder that is another user's: that one may make links there.
as=()
owner=$(stat -L -c %U -- "$(dirname -- "$certificate")")
if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ]; then
  as=(setpriv --reuid "$owner" --regid "$(id -g -- "$owner")" --init-groups)
fi
# Writes what it reads beside a file and moves it there: whoever reads that finds one of both, whole.
put() {
  local mode beside
  mode=$(stat -L -c %a -- "$1")
  beside=$(${as[@]+"${as[@]}"} mktemp -- "$1.new-XXXXXX") || return 1
  # shellcheck disable=SC2016  # the inner shell takes its own arguments
  ${as[@]+"${as[@]}"} sh -c 'cat >"$1" && chmod "$2" "$1" && sync "$1" && mv -T -- "$1" "$3"' put "$beside" "$mode" "$1" || {
    ${as[@]+"${as[@]}"} rm -f -- "$beside"
    return 1
  }
}
keep() {
  local kept
  kept=$(${as[@]+"${as[@]}"} mktemp -- "$1.before-XXXXXX") || return 1
  # shellcheck disable=SC2016
  ${as[@]+"${as[@]}"} sh -c 'cat >"$1"' keep "$kept" <"$1" || return 1
  printf '%s' "$kept"
}
reload() {
  if [ -n "$pid" ]; then kill -HUP "$pid"; else systemctl reload "${units[@]}"; fi
}
# Whether the certificate in a file is the one that is shown, soon.
is_shown() {
  local wanted end shown sni=(-noservername)
  wanted=$(fingerprint "$1")
  [ -z "$name" ] || sni=(-servername "$name")
  end=$((SECONDS + PATIENCE))
  while :; do
    shown=$(timeout 5 openssl s_client -connect "$place" "${sni[@]}" </dev/null 2>/dev/null |
      openssl x509 -noout -fingerprint -sha256 2>/dev/null | sed 's/.*=//') || true
    [ "$shown" != "$wanted" ] || return 0
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

look='see that the backend runs, and name where it takes gateways: --connect HOST:PORT'
[ -n "$name" ] || look="$look; where something in front of it needs the name that gateways ask for: --name NAME"
is_shown "$certificate" ||
  refuse "$place does not show the certificate in $certificate, so that nobody could tell afterwards whether it shows the new one" \
    "$look"
if [ -n "$dry_run" ]; then say 'a dry run: everything was checked, and nothing was changed'; exit 0; fi

# Why a reload came to nothing, which the backend says as long as the files are there that it did not take.
why_not() {
  local why=''
  if command -v viworks >/dev/null 2>&1; then
    # Quotation marks are told as JSON has them.
    why=$(timeout "$PATIENCE" viworks doctor -o json 2>/dev/null |
      sed -n 's/^ *"\(detail\|cause\)": "\(reload: .*\)",\{0,1\}$/\2/p' | sed 's/\\"/"/g' | head -n 1) || true
  fi
  if [ -n "$why" ]; then
    printf 'the backend says of its %s' "$why"
  else
    printf 'why is in its log and in its health, under reload (viworks doctor): journalctl -u %s' "${units[0]}"
  fi
}

changing='' kept_certificate='' kept_key=''
# Whatever ends this in between, a signal included, both files are of before.
go_back() {
  trap - EXIT INT TERM HUP
  printf 'failed: %s\n' "$1" >&2
  if ! put "$certificate" <"$kept_certificate" || { [ -n "$kept_key" ] && ! put "$key" <"$kept_key"; }; then
    printf 'error: the files of before are not back in place; they are %s %s\n' "$kept_certificate" "$kept_key" >&2
    exit 1
  fi
  # One that cannot be reloaded shows what it showed before.
  reload 2>/dev/null || true
  if ! is_shown "$certificate"; then
    printf 'error: the files of before are back in place, and %s does not show that certificate: look at the log of the backend\n' "$place" >&2
    exit 1
  fi
  printf 'the files of before are back in place, and shown; nothing has changed\n' >&2
  ${as[@]+"${as[@]}"} rm -f -- "$kept_certificate" ${kept_key:+"$kept_key"}
  exit 3
}
trap '[ -z "$changing" ] || go_back "it was ended before its end"' EXIT
trap 'exit 130' INT TERM HUP

kept_certificate=$(keep "$certificate") || complain 6 "a copy of $certificate cannot be kept beside it; nothing was changed"
if [ -n "$change_key" ]; then
  kept_key=$(keep "$key") || complain 6 "a copy of $key cannot be kept beside it; nothing was changed"
fi
changing=yes
if [ -n "$change_key" ]; then put "$key" <"$new_key" || go_back "$key cannot be replaced"; fi
put "$certificate" <"$new" || go_back "$certificate cannot be replaced"
# What the backend would not take is found out before it is asked to.
if ! checked=$(viworks-backend-agent check-config --config "$config" 2>&1); then
  go_back "the backend would not take them: $checked"
fi
reload || go_back 'the backend could not be reloaded'
is_shown "$certificate" || go_back "$place did not show the new certificate within $PATIENCE s; $(why_not)"
changing=''
trap - EXIT INT TERM HUP
say "done: $place shows the new certificate"
say "kept         $kept_certificate${kept_key:+ $kept_key}"
if [ -n "$change_key" ]; then
  say 'next         make another key for next_key_file, have gateways learn its pin, and remove what was kept once all is well:'
  say '             openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out next.key'
fi
