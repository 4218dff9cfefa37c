# Sourced by the scripts that check the program with Python.

# python_check NAME BINARY MODULE...: ends the script with success where the Python in PYTHON (default python3) lacks a module. Otherwise
# sets `binary` (default target/release/vae-wgpu), `python`, and `scratch`, a folder that is deleted at the end.
python_check() {
    local name=$1 modules
    binary=$(realpath "${2:-target/release/vae-wgpu}")
    python=${PYTHON:-python3}
    shift 2
    printf -v modules '%s, ' "$@"
    if ! "$python" -c "import ${modules%, }" 2>/dev/null; then
        echo "$name: skipped, $python lacks one of the modules ${modules%, }"
        exit 0
    fi
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
}

# code_in LANGUAGE PAGE: prints the code blocks of a language in a page of the documentation.
code_in() { awk -v fence="^\`\`\`$1\$" '$0 ~ fence { code = 1; next } /^```$/ { code = 0 } code' "$2"; }
