#!/usr/bin/env bash
# test.sh [BINARY]: runs the scripts of a release on this machine, with target/release/vae-wgpu or another binary, and checks their
# results and their errors. Nothing is built and nothing leaves the machine. Needs a GPU adapter, a software one is enough. Part of .ci/run.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/release/lib.sh
binary=${1:-target/release/vae-wgpu}
[ -x "$binary" ] || die "$binary is missing; run \`cargo build --release\`"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version=$(manifest_field version)

# rejects PATTERN COMMAND...: the command must fail with a message that matches.
rejects() {
    local pattern=$1
    shift
    if "$@" >"$scratch/out" 2>&1; then die "\`$*\` succeeds; expected an error about \`$pattern\`"; fi
    grep -q -- "$pattern" "$scratch/out" || die "\`$*\` does not report \`$pattern\` but: $(cat "$scratch/out")"
}

# A copy that is ready: with a real address.
ready=$scratch/ready
mkdir "$ready"
sed 's|github.com/OWNER/|github.com/someone/|' Cargo.toml >"$ready/Cargo.toml"
cp Cargo.lock CITATION.cff CHANGELOG.md "$ready"
[ "$(scripts/release/check_version.sh "v$version" "$ready")" = "$version" ] || die "check_version.sh prints another version"
rejects "the tag is v9.9.9" scripts/release/check_version.sh v9.9.9 "$ready"
rejects "the tag is $version" scripts/release/check_version.sh "$version" "$ready"
# change FILE EXPRESSION PATTERN: check_version.sh must reject the changed file.
change() {
    cp "$ready/$1" "$scratch/kept"
    sed "$2" "$scratch/kept" >"$ready/$1"
    cmp -s "$scratch/kept" "$ready/$1" && die "\`$2\` changes nothing in $1"
    rejects "$3" scripts/release/check_version.sh "v$version" "$ready"
    mv "$scratch/kept" "$ready/$1"
}
change Cargo.toml 's|github.com/someone/|github.com/OWNER/|' placeholder
change CITATION.cff 's/^version: .*/version: 0.0.1/' CITATION
change CHANGELOG.md 's/^## \[[0-9].*\] - .*/## [Unreleased]/' 'no section'
change Cargo.lock '/^name = "vae-wgpu"$/{n;s/".*"/"0.0.1"/}' 'Cargo.lock has another version'

cat >"$scratch/changes.md" <<'CHANGES'
# Changelog

## [Unreleased]

## [1.10.0] - 2030-01-02

### Added

- Ten.

## [1.1.0] - 2029-01-02

- One.

## [1.0.0] - 2028-01-02

[1.0.0]: https://example.org/1.0.0
CHANGES
[ "$(scripts/release/changelog_section.sh 1.10.0 "$scratch/changes.md")" = $'### Added\n\n- Ten.' ] || die "the section of 1.10.0 is wrong"
[ "$(scripts/release/changelog_section.sh 1.1.0 "$scratch/changes.md")" = '- One.' ] || die "the section of 1.1.0 is wrong"
rejects "no section" scripts/release/changelog_section.sh 1.2.0 "$scratch/changes.md"
rejects "is empty" scripts/release/changelog_section.sh 1.0.0 "$scratch/changes.md"

rejects "find no GPU" scripts/release/build.sh x86_64-unknown-linux-musl
if [ "$(uname)" = Linux ]; then
    rejects "newer than 2.0" scripts/release/check_glibc.sh "$binary" 2.0
    scripts/release/check_glibc.sh "$binary" 99
fi

# Both formats. The layout must be the one that binary installers look for.
bin_dir=$(sed -n 's/^bin-dir = "\(.*\)"$/\1/p' Cargo.toml)
[ "$bin_dir" = '{ name }-{ version }-{ target }/{ bin }{ binary-ext }' ] || die "bin-dir of binstall is \`$bin_dir\`, not the layout of archive.sh"
for target in x86_64-unknown-linux-gnu x86_64-pc-windows-msvc; do
    case $target in *-windows-*) command -v zip >/dev/null || command -v 7z >/dev/null || continue ;; esac
    archive=$(scripts/release/archive.sh "$binary" "$target" "$scratch/dist")
    (cd "$scratch/dist" && sha256 "$(basename "$archive")" | cmp - "$(basename "$archive").sha256") || die "the checksum of $archive is wrong"
    rm -rf "$scratch/unpacked"
    mkdir "$scratch/unpacked"
    case $archive in
    *.zip) (cd "$scratch/unpacked" && if command -v unzip >/dev/null; then unzip -q "$archive"; else 7z x -bso0 "$archive"; fi) ;;
    *) tar -xzf "$archive" -C "$scratch/unpacked" ;;
    esac
    [ "$(ls "$scratch/unpacked")" = "vae-wgpu-$version-$target" ] || die "$archive unpacks to: $(ls "$scratch/unpacked")"
    cd "$scratch/unpacked/vae-wgpu-$version-$target"
    expected="CHANGELOG.md LICENSE-APACHE LICENSE-DejaVuSans.txt LICENSE-MIT README.md THIRD-PARTY.txt completions/_vae-wgpu
        completions/_vae-wgpu.ps1 completions/vae-wgpu.bash completions/vae-wgpu.elv completions/vae-wgpu.fish $(executable "$target")"
    # Any number of manual pages, of which mandoc, if installed, accepts all.
    for page in vae-wgpu vae-wgpu-train vae-wgpu-bench-step; do [ -s "man/$page.1" ] || die "$archive: man/$page.1 is missing"; done
    if command -v mandoc >/dev/null; then mandoc -T lint -W error man/*.1 || die "mandoc rejects a manual page"; fi
    found=$(find . -type f ! -path './man/*.1' | sed 's|^\./||' | LC_ALL=C sort | xargs)
    [ "$found" = "$(echo "$expected" | xargs)" ] || die "$archive holds: $found"
    for file in $found; do [ -s "$file" ] || die "$archive: $file is empty"; done
    grep -q '^==== wgpu ' THIRD-PARTY.txt || die "$archive: THIRD-PARTY.txt does not list wgpu"
    [ "$("./$(executable "$target")" --version)" = "vae-wgpu $version" ] || die "the program in $archive is another version"
    cd "$OLDPWD"
done

# The workflows call scripts that exist, and build the five targets.
for script in $(grep -ohE '(\./)?(scripts|\.ci)/[a-z_/]+(\.sh)?' .github/workflows/*.yml | sort -u); do
    [ -x "$script" ] || die "a workflow calls $script, which is missing or not executable"
done
targets=$(grep -oE '[a-z0-9_]+-(unknown-linux|apple|pc-windows)[a-z-]*' .github/workflows/release.yml | sort -u | xargs)
[ "$targets" = "aarch64-apple-darwin aarch64-unknown-linux-gnu x86_64-apple-darwin x86_64-pc-windows-msvc x86_64-unknown-linux-gnu" ] ||
    die "release.yml builds: $targets"
if python3 -c 'import yaml' 2>/dev/null; then
    python3 -c 'import sys, yaml; [yaml.safe_load(open(path, encoding="utf-8")) for path in sys.argv[1:]]' \
        .github/workflows/*.yml .github/ISSUE_TEMPLATE/*.yml CITATION.cff
fi

echo "release scripts: ok"
