#!/usr/bin/env bash
# check_glibc.sh BINARY [VERSION]: fails if a Linux binary needs a newer glibc than VERSION (2.28: Debian 10, RHEL 8, Ubuntu 20.04).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
binary=${1:?usage: check_glibc.sh BINARY [VERSION]}
limit=${2:-2.28}

command -v objdump >/dev/null || die "objdump is missing (package binutils)"
newest=$(objdump -T "$binary" | grep -oE 'GLIBC_[0-9]+(\.[0-9]+)+' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
[ -n "$newest" ] || die "$binary is not linked against glibc"
[ "$(printf '%s\n' "$newest" "$limit" | sort -V | tail -n 1)" = "$limit" ] || die "$binary needs glibc $newest, newer than $limit"
echo "$binary needs glibc $newest"
