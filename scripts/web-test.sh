#!/usr/bin/env bash
# Tests the built page in Chromium, with WebGPU on a software adapter. Needs web/dist (scripts/web.sh) and the native program. On Debian
# and Ubuntu Chromium is installed where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${CHROMIUM-}" ] && ! [ -x /usr/bin/chromium ]; then
    command -v apt-get >/dev/null || { echo "web-test: Chromium is missing: name it in the variable CHROMIUM" >&2; exit 1; }
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium
fi
[ -d web/node_modules/playwright-core ] || npm ci --ignore-scripts --no-audit --no-fund --silent --prefix web
# Two files at a time: those without the program mostly wait for the browser.
find web/tests -name '*.test.mjs' -print0 | sort -z | xargs -0 node --test --test-concurrency=2
