# Reads the output of `cargo test` and prints the seconds of each test program and of each module of tests/gpu.rs (summed over threads).
/^ +Running / { name = $2 == "unittests" ? $3 : $2 }
/^ +Doc-tests / { name = "doctests" }
/^test result: .*finished in / {
    seconds = $NF
    sub(/s$/, "", seconds)
    printf "%8.1f  %s\n", seconds, name
    total += seconds
}
/^part: / { printf "          %s\n", substr($0, 7) }
END { printf "%8.1f  in tests\n", total }
