# The kernel settings: every key is one this kernel has, takes its value, and reads back as written.
need sysctl procps

# Settings of a fresh network namespace: the host's own stay as they are.
applied() {
    unshare --net bash -euo pipefail -c '
        sysctl --quiet --load "$1"
        grep -vE "^\s*(#|$)" "$1" | while read -r key _ value; do
            now=$(sysctl --values "$key" | tr "\t" " ")
            [ "$now" = "$value" ] || { echo "$key is $now, not $value"; exit 1; }
        done' applied "$1"
}
check "every setting applies in a network namespace and reads back" applied "$deploy/sysctl/90-egressd.conf"
echo 'net.ipv4.tcp_tw_reused = 1' >"$scratch/90-bad.conf"
refuses "a key that the kernel does not have is refused" "tcp_tw_reused" applied "$scratch/90-bad.conf"
echo 'net.ipv4.ip_local_port_range = 65535 16384' >"$scratch/90-bad.conf"
refuses "a range the wrong way round is refused" "ip_local_port_range" applied "$scratch/90-bad.conf"

promoted() {
    unshare --net bash -euo pipefail -c '
        [ -z "$1" ] || sysctl --quiet --load "$1"
        ip link set lo up
        ip link add wan type veth peer name far
        ip link set wan up
        ip address add 10.9.0.10/24 dev wan
        ip address add 10.9.0.11/24 dev wan
        ip address delete 10.9.0.10/24 dev wan
        ip -4 -o address show dev wan | grep -q 10.9.0.11 || { echo "the second address went with the first"; exit 1; }
        ' promoted "${1:-}"
}
check "taking an interface's first address away leaves the others" promoted "$deploy/sysctl/90-egressd.conf"
grep -v promote_secondaries "$deploy/sysctl/90-egressd.conf" >"$scratch/90-without.conf"
refuses "without promote_secondaries they go with it" "went with the first" promoted "$scratch/90-without.conf"
