#!/usr/bin/env bash
# Words that the prose of this project does without, because they name no actor or can mean anything (CONTRIBUTING.md, "Style").
# Prints file and line of each and fails if there is one. Part of `make lint`.
set -euo pipefail
cd "$(dirname "$0")/.."
words='told|tells?|telling|goes on with|go on with|gone on with|going on with|goes on from|gone on from|held against|holds? [^.]{1,30} against'
words+='|bears?|borne|mends?|mended|makes? of (it|its|the|them)|made of the kernels|noted|is owed|are owed|nonsense|strangers?'
words+='|is no (file|such|archive|test|longer there)|speak to the terminal|wayfarer|nobody says|says so|said of|to be had|no death'
words+='|latent numbers|learned numbers|to the bit|learned by heart'
files=(README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src shaders tests benches fuzz examples scripts .ci .github tools web Makefile Cargo.toml)
present=()
for file in "${files[@]}"; do [ -e "$file" ] && present+=("$file"); done
# Code is exempt: names join words with underscores, which are word characters to grep.
if git grep -nwiE -e "$words" -- "${present[@]}" ':!scripts/words.sh' ':!fuzz/corpus' ':!tests/fixtures/oracle' ':!*.lock' ':!*.png' ':!tools/radv/isa'; then
    echo "words: the lines above use words that the style guide bans" >&2
    exit 1
fi
