# Sourced by the scripts of this folder: runs parts, times them, counts tests.
export NODEVICE_SELECT=1
# Everything is built once, with MPI.
export FEATURES=mpi
status=0
names=()
seconds=()

# part NAME COMMAND...: runs the command, keeps its seconds, remembers a failure, and goes to the next part.
part() {
    local name=$1 begun=$SECONDS code=0
    shift
    printf '\n*** %s\n' "$name"
    # Not `|| code=$?`: that would switch off `set -e` inside the command.
    set +e
    (
        set -e
        "$@"
    )
    code=$?
    set -e
    if [ "$code" != 0 ]; then
        printf '*** %s FAILED\n' "$name"
        status=1
        name+=" (FAILED)"
    fi
    names+=("$name")
    seconds+=($((SECONDS - begun)))
}

# summary TITLE: the seconds of each part.
summary() {
    printf '\n%s, seconds:\n' "$1"
    local i
    for i in "${!names[@]}"; do printf '%6d  %s\n' "${seconds[i]}" "${names[i]}"; done
    printf '%6d  in all\n' "$SECONDS"
}

# suite TEST [ARGUMENT...]: a test program; ten minutes are too long for any.
suite() {
    local test=$1
    shift
    # Not in the foreground: the test program must end, too.
    timeout -k 10 600 cargo test --release --features "$FEATURES" --test "$test" -- "$@"
}
