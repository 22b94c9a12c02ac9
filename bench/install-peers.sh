#!/usr/bin/env bash
# The servers that `python -m bench peers` measures beside pushd: from Debian when they are missing and we may install
# them, from PyPI and npm into build/peers, in fixed versions. What cannot be had is not measured; it stops nobody.
set -euo pipefail
cd "$(dirname "$0")/.."
SOCKETIFY=0.0.31 CFFI=2.0.0 WS=8.18.3
PATH="$PATH:/usr/sbin" PEERS=build/peers PYTHON="${PYTHON:-python3}"

without() { echo "$1 will not be measured: $2" >&2; }

missing=()
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || missing+=(nginx libnginx-mod-nchan)
command -v nats-server >/dev/null || missing+=(nats-server)
[ -n "$(find /lib /usr/lib -name 'libuv.so.1' -print -quit 2>/dev/null)" ] || missing+=(libuv1)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ ${#missing[@]} -ne 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    without "what needs ${missing[*]}" "not installed, and not ours to install"
  else
    export DEBIAN_FRONTEND=noninteractive
    # Nothing is to be started by the packages: the benchmark starts servers of its own.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
      without "what needs ${missing[*]}" "apt-get failed"
  fi
fi

mkdir -p "$PEERS"
if [ ! -e "$PEERS/socketify-$SOCKETIFY" ]; then
  { "$PYTHON" -m venv --clear "$PEERS/venv" &&
    "$PEERS/venv/bin/python" -m pip install --quiet --disable-pip-version-check "socketify==$SOCKETIFY" "cffi==$CFFI" &&
    touch "$PEERS/socketify-$SOCKETIFY"; } || without uWebSockets "socketify cannot be installed"
fi
if [ ! -e "$PEERS/node_modules/ws-$WS" ] && command -v npm >/dev/null; then
  { npm install --prefix "$PEERS" --silent --no-audit --no-fund --no-save "ws@$WS" &&
    touch "$PEERS/node_modules/ws-$WS"; } || without ws "npm failed"
fi
