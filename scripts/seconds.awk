# Reads the output of `cargo test`. Prints the seconds of each test program, of each module of tests/gpu.rs, summed over threads, and of
# its slowest tests.
/^ +Running / { name = $2 == "unittests" ? $3 : $2 }
/^ +Doc-tests / { name = "doctests" }
/^test result: .*finished in / {
    seconds = $NF
    sub(/s$/, "", seconds)
    printf "%8.1f  %s\n", seconds, name
}
/^part: / { printf "          %s\n", substr($0, 7) }
/^slow: / { printf "            %s\n", substr($0, 7) }
