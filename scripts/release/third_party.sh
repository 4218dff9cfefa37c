#!/usr/bin/env bash
# third_party.sh TARGET: prints name, licence and licence texts of every crate that is part of the program on a target. MIT, BSD and
# Apache-2.0 ask for these texts beside a binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/release/lib.sh
target=${1:?usage: third_party.sh TARGET}

# Cargo downloads the sources that are missing: those of another platform, as no build here has needed them.
crates=$(cargo tree --locked --target "$target" --edges normal --prefix none --format '{p}|{l}' | sed 's/ (\*)$//; s/ (proc-macro)//' | sort -u)
echo "vae-wgpu contains the following crates. Their licence texts follow each entry."
while IFS='|' read -r crate licence; do
    name=${crate%% v*} version=${crate#* v}
    [ "$name" != vae-wgpu ] || continue
    version=${version%% *}
    printf '\n\n==== %s %s: %s\n' "$name" "$version" "$licence"
    for folder in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version"; do
        [ -d "$folder" ] || die "cannot find the sources of $name $version in ${folder%/*/*}"
        # A file, or a folder of files; crates without either have their licence in the line above.
        find "$folder" -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -ipath '*/licenses/*' \) \
            ! -name '*.rs' | LC_ALL=C sort | while IFS= read -r file; do
            printf '\n-- %s\n\n' "${file#"$folder"/}"
            cat "$file"
        done
        break
    done
done <<<"$crates"
