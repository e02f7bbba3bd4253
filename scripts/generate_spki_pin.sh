#!/usr/bin/env bash
# Prints the pin of a key, as `pins` of a gateway's configuration takes it.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: scripts/generate_spki_pin.sh FILE
       scripts/generate_spki_pin.sh - <FILE
       scripts/generate_spki_pin.sh --connect HOST:PORT [--name NAME]

  FILE                 a certificate, a certificate request, a private key or a public key, PEM; of several the first
  --connect HOST:PORT  the key that a server shows; nothing is verified but that it has that key
  --name NAME          the name that the server is asked for; HOST when left out

Prints one line, sha256/ and the Base64 of the SHA-256 of the public key (DER SubjectPublicKeyInfo).
What a server shows says who answers there now, and not who ought to: compare it with the pin of its key file.

Ends with 0, 2 when it was called wrongly, 7 when nobody answers, 69 when openssl is missing, and 78 when the file is
not there or cannot be read, or there is no key in what was found.
TXT
}

complain() { printf 'error: %s\n' "$2" >&2; exit "$1"; }

# How long a server may take.
readonly PATIENCE=10

file='' server='' name=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --connect | --name)
      [ $# -gt 1 ] || { usage >&2; complain 2 "$1 needs a value"; }
      if [ "$1" = --connect ]; then server=$2; else name=$2; fi
      shift 2
      ;;
    -?*) usage >&2; complain 2 "unknown argument $1" ;;
    *)
      [ -z "$file" ] || { usage >&2; complain 2 'one file at a time'; }
      file=$1
      shift
      ;;
  esac
done
if [ -n "$file" ] && [ -n "$server" ]; then complain 2 'either a file or --connect'; fi
if [ -z "$file$server" ]; then usage >&2; complain 2 'name a file, or --connect HOST:PORT'; fi
if [ -n "$name" ] && [ -z "$server" ]; then complain 2 '--name is for --connect'; fi
command -v openssl >/dev/null 2>&1 || complain 69 'openssl was not found; install the package openssl'

text=''
if [ -n "$server" ]; then
  # An address of IPv6 stands in brackets; s_client takes it so, and a name is never one.
  [[ $server =~ ^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]+)$ ]] || complain 2 "$server is no HOST:PORT"
  host=${BASH_REMATCH[1]}
  sni=(-noservername)
  if [ -n "$name" ]; then
    sni=(-servername "$name")
  elif [[ $host =~ [A-Za-z] && $host != \[* ]]; then
    sni=(-servername "$host")
  fi
  # One that wants a certificate of ours ends the connection after it has shown its own.
  ended=0
  shown=$(timeout "$PATIENCE" openssl s_client -connect "$server" "${sni[@]}" </dev/null 2>/dev/null) || ended=$?
  text=$(printf '%s\n' "$shown" | sed -n '/^-----BEGIN CERTIFICATE-----$/,/^-----END CERTIFICATE-----$/p')
  if [ -z "$text" ]; then
    # That of timeout.
    [ "$ended" -ne 124 ] || complain 7 "$server showed no certificate within $PATIENCE s"
    # Once more for the cause alone: what it says would stand between the lines of a certificate.
    why=$(timeout "$PATIENCE" openssl s_client -connect "$server" "${sni[@]}" </dev/null 2>&1 >/dev/null) || true
    case "$why" in
      *'onnection refused'*) complain 7 "$server refused the connection: nothing listens there" ;;
      *'ame or service not known'* | *'nodename nor servname'* | *'emporary failure in name resolution'*)
        complain 7 "nobody knows the name in $server" ;;
      *'o route to host'* | *'etwork is unreachable'*) complain 7 "there is no way to $server" ;;
    esac
    complain 7 "$server showed no certificate: it does not speak TLS, or ended the connection"
  fi
elif [ "$file" = - ]; then
  text=$(cat)
else
  [ -f "$file" ] || complain 78 "there is no file $file"
  [ -r "$file" ] || complain 78 "$file cannot be read; run this as its owner"
  # A variable of the shell holds no byte 0, and no PEM has one.
  text=$(tr -d '\000' <"$file")
fi

public() {
  # An encrypted key is asked for on no terminal: it is a file that nothing here can use.
  case "$(printf '%s\n' "$text" | sed -n 's/^-----BEGIN \(.*\)-----\r\{0,1\}$/\1/p' | grep -v -x 'EC PARAMETERS' | head -n 1)" in
    CERTIFICATE | 'TRUSTED CERTIFICATE' | 'X509 CERTIFICATE') openssl x509 -noout -pubkey ;;
    'CERTIFICATE REQUEST' | 'NEW CERTIFICATE REQUEST') openssl req -noout -pubkey ;;
    'PUBLIC KEY') openssl pkey -pubin -pubout ;;
    *'PRIVATE KEY') openssl pkey -pubout -passin pass: ;;
    *) return 1 ;;
  esac
}

key=$(printf '%s\n' "$text" | public 2>/dev/null) || key=''
[ -n "$key" ] || complain 78 "${file:-$server}: no certificate, request or key in PEM that can be used; an encrypted key is to be decrypted first"
printf 'sha256/%s\n' "$(printf '%s\n' "$key" | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | openssl base64 -A)"
