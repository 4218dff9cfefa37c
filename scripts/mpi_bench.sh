#!/usr/bin/env bash
# mpi_bench.sh [BINARY]: throughput of two ranks, each with one thread of the software driver on a core of its own, against that of one.
# Prints a Markdown table: medians of RUNS interleaved runs (5) of STEPS steps (30), BATCH images per rank (32). As root, also two network
# namespaces that are joined at 10 Gbit/s and 0.1 ms (without the delay where the kernel has none). BINARY is built with the feature `mpi`;
# without one it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-5} steps=${STEPS:-30} batch=${BATCH:-32}
read -ra cores <<<"${CORES:-0 1}"

command -v mpirun >/dev/null || { echo "mpi_bench: install OpenMPI" >&2; exit 1; }
binary=${1:-}
if [ -z "$binary" ]; then
    cargo build --release --features mpi
    binary=${CARGO_TARGET_DIR:-target}/release/vae-wgpu
fi
binary=$(realpath "$binary")

scratch=$(mktemp -d)
spaces=()
cleanup() {
    local space
    for space in "${spaces[@]}"; do ip netns delete "$space" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap cleanup EXIT
# Each rank is pinned below, so that neither the launcher nor the program pins it.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1
export LP_NUM_THREADS=1 VAE_WGPU_PIN=off
# One epoch of the steps that two ranks make; a lone rank makes as many with half of the images.
read -ra model <<<"${MODEL:-}"
train=(train --json --device "${DEVICE:-auto}" --data shapes --val-split 0 --val-limit 8 --epochs 1 --batch-size "$batch" --out)

# images_per_s EVENTS: the median over the steps, without the first tenth.
images_per_s() {
    grep -o '"images_per_s":[0-9.]*' "$1" | cut -d: -f2 | awk -v skip=$((steps / 10)) 'NR > skip' | sort -n |
        awk '{ v[NR] = $1 } END { if (NR == 0) exit 1; print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

one() {
    rm -rf "$scratch/one"
    taskset -c "${cores[0]}" "$binary" "${train[@]}" "$scratch/one" --train-limit $((steps * batch)) "${model[@]}" >"$scratch/one.json" 2>/dev/null
    images_per_s "$scratch/one.json"
}

# A rank pins itself by its number on the machine, or in its namespace by the core that is given.
cat >"$scratch/rank.sh" <<RANK
#!/usr/bin/env bash
cores=(${cores[*]})
exec taskset -c "\${cores[\$OMPI_COMM_WORLD_RANK]}" "$binary" "\$@"
RANK
chmod +x "$scratch/rank.sh"

two() {
    rm -rf "$scratch/two"
    mpirun "$@" "$scratch/rank.sh" "${train[@]}" "$scratch/two" --train-limit $((2 * steps * batch)) "${model[@]}" >"$scratch/two.json" 2>"$scratch/two.log" || {
        cat "$scratch/two.log" >&2
        return 1
    }
    images_per_s "$scratch/two.json"
}
communication() {
    grep '"event":"finished"' "$1" | grep -o '"communication_s":[0-9.]*' | cut -d: -f2
}

distance="10 Gbit/s and 0.1 ms apart"
# Two namespaces, joined by a pair of devices with the rate and the delay of a network.
join_namespaces() {
    [ "$(id -u)" = 0 ] && command -v tc >/dev/null && command -v ip >/dev/null || return 1
    local i
    for i in 0 1; do
        ip netns add "vae$$-$i" 2>/dev/null || return 1
        spaces+=("vae$$-$i")
    done
    ip link add "vae$$a" netns "${spaces[0]}" type veth peer name "vae$$b" netns "${spaces[1]}" || return 1
    for i in 0 1; do
        local device
        device=vae$$$([ $i = 0 ] && echo a || echo b)
        ip -n "${spaces[$i]}" link set lo up
        ip -n "${spaces[$i]}" address add "10.77.0.$((i + 1))/24" dev "$device"
        ip -n "${spaces[$i]}" link set "$device" up
        # Half of the delay in each direction is the delay of a round trip.
        if ! tc -n "${spaces[$i]}" qdisc add dev "$device" root netem delay 50us rate 10gbit 2>/dev/null; then
            # Not every kernel can delay packets.
            tc -n "${spaces[$i]}" qdisc add dev "$device" root tbf rate 10gbit burst 1mb latency 10ms || return 1
            distance="10 Gbit/s apart, without delay"
        fi
    done
    # mpirun starts its daemon on the other host through this, in place of ssh; it is one machine, so ranks must not share memory.
    cat >"$scratch/agent.sh" <<AGENT
#!/usr/bin/env bash
host=\$1
shift
exec ip netns exec ${spaces[1]} env HOSTNAME="\$host" sh -c "\$*"
AGENT
    chmod +x "$scratch/agent.sh"
}
network=(--mca plm_rsh_agent "$scratch/agent.sh" --mca plm_rsh_no_tree_spawn 1 --mca pml ob1 --mca btl tcp,self
    --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 --host 10.77.0.1:1,10.77.0.2:1 -n 2)
two_hosts() {
    rm -rf "$scratch/hosts"
    ip netns exec "${spaces[0]}" mpirun "${network[@]}" "$scratch/rank.sh" "${train[@]}" "$scratch/hosts" \
        --train-limit $((2 * steps * batch)) "${model[@]}" >"$scratch/hosts.json" 2>"$scratch/hosts.log" || {
        cat "$scratch/hosts.log" >&2
        return 1
    }
    images_per_s "$scratch/hosts.json"
}

hosts=
if join_namespaces; then hosts=1; else echo "mpi_bench: no network namespaces here (they need root, ip and tc)" >&2; fi
for ((run = 0; run < runs; run++)); do
    one >>"$scratch/one.txt"
    two -n 2 >>"$scratch/two.txt"
    communication "$scratch/two.json" >>"$scratch/two.communication"
    if [ -n "$hosts" ]; then
        if two_hosts >>"$scratch/hosts.txt"; then
            communication "$scratch/hosts.json" >>"$scratch/hosts.communication"
        else
            echo "mpi_bench: OpenMPI could not start a rank in the second namespace" >&2
            hosts=
        fi
    fi
done

median() {
    sort -n "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
base=$(median "$scratch/one.txt")
row() {
    awk -v name="$1" -v rate="$(median "$2")" -v base="$base" -v wait="$3" \
        'BEGIN { printf "| %s | %.1f | %.2f | %s |\n", name, rate, rate / base, wait }'
}
echo "| | images/s | against one rank | communication, s |"
echo "| --- | --- | --- | --- |"
row "one rank" "$scratch/one.txt" "-"
row "two ranks of one machine" "$scratch/two.txt" "$(median "$scratch/two.communication")"
if [ -n "$hosts" ]; then row "two ranks, $distance" "$scratch/hosts.txt" "$(median "$scratch/hosts.communication")"; fi
