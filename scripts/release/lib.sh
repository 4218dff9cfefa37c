# shellcheck shell=bash
# Shared by the scripts of this folder: `. "$(dirname "$0")/lib.sh"`.

die() {
    printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
    exit 1
}

# manifest_field NAME [FOLDER]: a string field of the [package] table of Cargo.toml.
manifest_field() {
    local value
    value=$(awk -v field="$1" '
        /^\[/ { if ($0 != "[package]") exit }
        $1 == field && $2 == "=" { sub(/^[^"]*"/, ""); sub(/".*/, ""); print; exit }
    ' "${2:-.}/Cargo.toml")
    [ -n "$value" ] || die "Cargo.toml has no field \`$1\`"
    printf '%s\n' "$value"
}

# executable TARGET: file name of the program.
executable() {
    case $1 in
    *-windows-*) echo vae-wgpu.exe ;;
    *) echo vae-wgpu ;;
    esac
}

# sha256 FILE: the line that `sha256sum --check` reads. macOS has shasum instead.
sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi
}
