#!/usr/bin/env bash
# check_version.sh TAG [FOLDER]: fails unless the checkout is ready to be released as TAG. The tag must be `v` and the version of
# Cargo.toml; Cargo.lock, CITATION.cff and CHANGELOG.md must have the same version; the repository must not be the placeholder.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/scripts/release/lib.sh"
tag=${1:?usage: check_version.sh TAG [FOLDER]}
cd "${2:-$root}"

version=$(manifest_field version)
[ "$tag" = "v$version" ] || die "the tag is $tag, but the version in Cargo.toml is $version"
[ "$(awk '/^name = "vae-wgpu"/ { getline; print }' Cargo.lock)" = "version = \"$version\"" ] ||
    die "Cargo.lock has another version of vae-wgpu than $version; run \`cargo update --workspace\`"
grep -qx "version: $version" CITATION.cff || die "CITATION.cff has another version than $version"
"$root/scripts/release/changelog_section.sh" "$version" CHANGELOG.md >/dev/null
! grep -qE '^[^#]*github\.com/OWNER/' Cargo.toml || die "\`repository\` in Cargo.toml is the placeholder; put the real address there"
echo "$version"
