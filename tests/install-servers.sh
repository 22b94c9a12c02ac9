#!/usr/bin/env bash
# The servers the tests run against, from Debian's packages, when they are missing and we may install them.
set -euo pipefail
PATH="$PATH:/usr/sbin"
missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v mariadbd >/dev/null || missing+=(mariadb-server-core)
# my_print_defaults, without which mariadb-install-db does nothing
command -v mariadb >/dev/null || missing+=(mariadb-client-core)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "tests that need ${missing[*]} will be skipped: not installed, and not ours to install" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Nothing is to be started by the packages: the tests start servers of their own.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
trap 'rm -f /usr/sbin/policy-rc.d' EXIT
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
