#!/usr/bin/env bash
# Flower's deployment runtime on this machine, as a ground segment would run it: a SuperLink behind TLS, and SuperNodes
# that are known by their keys. docs/deployment.md says how it is spread over machines.
#
#   scripts/deployment.sh start [NODES]      certificates, keys, a SuperLink and NODES SuperNodes (2)
#   scripts/deployment.sh run OVERRIDE...    train over them; overrides as for fl.train, paths absolute
#   scripts/deployment.sh node NUMBER        start one SuperNode again
#   scripts/deployment.sh status|stop|env    what runs; end it; variables for a shell that calls flwr itself
#
# Examples:
#   scripts/deployment.sh start 2
#   scripts/deployment.sh run num_rounds=3 data.path=/data/EuroSAT.zip
#
# Everything lies in one folder, QUANTFL_DEPLOYMENT (/tmp/quantfl-deployment-USER); the port is QUANTFL_PORT (9443).
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
folder=${QUANTFL_DEPLOYMENT:-/tmp/quantfl-deployment-$(id -un)}
port=${QUANTFL_PORT:-9443}
bin=${QUANTFL_BIN:-$here/.venv/bin}
export FLWR_HOME=$folder/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export PATH=$bin:$PATH

fail() {
  echo "error: $*" >&2
  exit 2
}

need() {
  local each
  for each in openssl ssh-keygen flower-superlink flower-supernode flwr; do
    command -v "$each" >/dev/null || fail "$each is not installed (QUANTFL_BIN=$bin names the folder of flwr)"
  done
}

certificates() { # of an authority of our own, and of the SuperLink, for this machine
  [ -f "$folder/tls/server.pem" ] && return
  mkdir -p "$folder/tls"
  (
    cd "$folder/tls"
    umask 077
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 365 -subj "/CN=quantfl test authority" \
      -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr
    printf '%s\n' "subjectAltName=DNS:localhost,IP:127.0.0.1" "basicConstraints=CA:FALSE" \
      "extendedKeyUsage=serverAuth" >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile server.ext -out server.pem
  ) >"$folder/tls/openssl.log" 2>&1 || fail "openssl made no certificates, see $folder/tls/openssl.log"
}

alive() { # NAME: whether a process that we started still runs
  [ -f "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null
}

begin() { # NAME COMMAND...: in a session of its own, with a log
  local name=$1
  shift
  setsid "$@" >>"$folder/$name.log" 2>&1 </dev/null &
  echo $! >"$folder/$name.pid"
}

superlink() {
  begin superlink flower-superlink --host 127.0.0.1 --port "$port" --database "$folder/state.db" \
    --ssl-ca-certfile "$folder/tls/ca.pem" --ssl-certfile "$folder/tls/server.pem" --ssl-keyfile "$folder/tls/server.key" \
    --enable-supernode-auth
  for _ in $(seq 300); do
    alive superlink || fail "the SuperLink ended: $(tail -n 1 "$folder/superlink.log")"
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
    sleep 0.2
  done
  fail "the SuperLink does not answer at port $port, see $folder/superlink.log"
}

again='for _ in {1..60}; do "$@" && exit; echo "ended with $?, once more in 5 s"; sleep 5; done'

supernode() { # NUMBER NODES: tried again when it ends, for a SuperLink refuses one that it does not know to be gone yet
  begin "node$1" bash -c "$again" supernode flower-supernode --superlink "127.0.0.1:$port" --port $((port + 1 + $1)) \
    --root-certificates "$folder/tls/ca.pem" --auth-supernode-private-key "$folder/keys/node$1" \
    --node-config "partition-id=$1 num-partitions=$2"
}

start() { # NODES
  [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "NODES=$1: must be a number of at least 1"
  need
  alive superlink && fail "a SuperLink runs already ($folder); scripts/deployment.sh stop ends it"
  mkdir -p "$folder/keys" "$FLWR_HOME"
  chmod 700 "$folder" "$folder/keys"
  certificates
  printf '[superlink.here]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' "$port" "$folder/tls/ca.pem" \
    >"$FLWR_HOME/config.toml"
  echo "$1" >"$folder/nodes"
  superlink
  local number
  for number in $(seq 0 $(($1 - 1))); do
    if [ ! -f "$folder/keys/node$number" ]; then
      ssh-keygen -q -t ecdsa -b 384 -N "" -C "node$number" -f "$folder/keys/node$number"
    fi
    flwr supernode register "$folder/keys/node$number.pub" here >>"$folder/register.log" 2>&1 ||
      grep -qi "already" "$folder/register.log" || fail "node$number was not registered: $(tail -n 1 "$folder/register.log")"
    supernode "$number" "$1"
  done
  echo "SuperLink at 127.0.0.1:$port (TLS), SuperNodes 0 to $(($1 - 1)), logs and keys in $folder"
}

run() { # OVERRIDES
  alive superlink || fail "no SuperLink runs; scripts/deployment.sh start begins one"
  local all each
  all="num_clients=$(cat "$folder/nodes")"
  for each in "$@"; do all+=" $each"; done
  flwr run "$here" here --stream --run-config "overrides=\"$all\""
}

stop() {
  local each
  for each in "$folder"/*.pid; do
    [ -f "$each" ] || continue
    kill -- "-$(cat "$each")" 2>/dev/null || true
    rm -f "$each"
  done
  for _ in $(seq 50); do
    pgrep -f -- "$folder/" >/dev/null || return 0
    sleep 0.2
  done
  pkill -KILL -f -- "$folder/" || true
}

case ${1:-} in
  start) start "${2:-2}" ;;
  run) shift && run "$@" ;;
  node)
    alive "node${2:-}" && fail "node${2:-} runs already"
    [ -f "$folder/keys/node${2:-}" ] || fail "NUMBER=${2:-}: there is no such SuperNode in $folder/keys"
    supernode "$2" "$(cat "$folder/nodes")"
    ;;
  status)
    for each in "$folder"/*.pid; do
      [ -f "$each" ] || fail "nothing was started in $folder"
      name=$(basename "$each" .pid)
      if alive "$name"; then echo "$name runs, process $(cat "$each")"; else echo "$name has ended"; fi
    done
    ;;
  stop) stop ;;
  env) printf 'export FLWR_HOME=%q FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1\n' "$FLWR_HOME" ;;
  *)
    sed -n '2,14p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
    [ "${1:-}" = --help ] || exit 2
    ;;
esac
