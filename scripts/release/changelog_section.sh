#!/usr/bin/env bash
# changelog_section.sh VERSION [FILE]: prints the section of a version without its title: the notes of a release. The title must have a
# date, as in `## [0.1.0] - 2026-01-31`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/scripts/release/lib.sh"
version=${1:?usage: changelog_section.sh VERSION [FILE]}
file=${2:-$root/CHANGELOG.md}

grep -qE "^## \[${version//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}" "$file" ||
    die "$file has no section \`## [$version] - YYYY-MM-DD\`"
# The next section or the list of links at the end of the file ends the section.
section=$(awk -v title="## [$version] " '
    index($0, title) == 1 { found = 1; next }
    found && (/^## / || /^\[[^]]+\]: /) { exit }
    found { print }
' "$file")
[ -n "${section//[[:space:]]/}" ] || die "the section of $version in $file is empty"
printf '%s\n' "$section" | sed '/./,$!d'
