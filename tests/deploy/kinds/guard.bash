# The nftables guard, in force, between network namespaces of our own: a host with several addresses, the world behind
# one veth pair, a guest that the host forwards for behind another.
need nft nftables
need ip iproute2

guard=$deploy/nftables
host=$run-host world=$run-world guest=$run-guest
ours=64801 other=64802

# The host: 10.77.0.2 is its own address, .10 and .11 are sources, .12 is published and not yet a source. The world has
# a public address of each family, a name server, a reflector, a private service and a metadata service.
made_networks() {
    for name in "$host" "$world" "$guest"; do
        ip netns add "$name"
        ip -n "$name" link set lo up
        ip netns exec "$name" sysctl -q net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    done
    ip -n "$host" link add wan type veth peer name wan netns "$world"
    ip -n "$host" link add inside type veth peer name wan netns "$guest"
    local address
    for address in 10.77.0.2/24 10.77.0.10/24 10.77.0.11/24 10.77.0.12/24; do
        ip -n "$host" address add "$address" dev wan
    done
    for address in 2a00:77::2/64 2a00:77::10/64; do
        ip -n "$host" address add "$address" dev wan nodad
    done
    for address in 10.77.0.1/24 93.184.216.34/32 10.88.0.80/32 172.16.9.80/32 169.254.169.254/32 10.77.0.53/32; do
        ip -n "$world" address add "$address" dev wan
    done
    for address in 2a00:77::1/64 2606:2800::34/128 fd00::80/128; do
        ip -n "$world" address add "$address" dev wan nodad
    done
    ip -n "$host" address add 10.78.0.1/24 dev inside
    ip -n "$guest" address add 10.78.0.2/24 dev wan
    ip -n "$host" link set wan up
    ip -n "$host" link set inside up
    ip -n "$world" link set wan up
    ip -n "$guest" link set wan up
    ip -n "$host" route add default via 10.77.0.1
    ip -n "$host" -6 route add default via 2a00:77::1
    ip -n "$guest" route add default via 10.78.0.1
    ip netns exec "$host" sysctl -q net.ipv4.ip_forward=1
}
for name in "$host" "$world" "$guest"; do
    at_exit+=("ip netns pids $name | xargs -r kill; ip netns delete $name")
done

probe_in() { # probe_in NAMESPACE argument…: a server of the probe's, ready when this is back
    local where=$1
    shift
    started ip netns exec "$where" python3 "$here/guard_probe.py" "$@"
}
servers_up() {
    local pair
    for pair in 93.184.216.34,443 10.77.0.1,80 10.77.0.1,8080 10.88.0.80,80 172.16.9.80,80 169.254.169.254,80 \
        10.77.0.1,5432 10.77.0.53,53 10.77.0.53,80 169.254.169.254,53 2606:2800::34,443 fd00::80,80; do
        probe_in "$world" serve "${pair%,*}" "${pair##*,}"
    done
    probe_in "$host" listen "$ours" 10.77.0.2 8700
    probe_in "$host" listen "$ours" 10.77.0.2 8703
    probe_in "$host" listen "$ours" 127.0.0.1 8701
    probe_in "$host" listen "$other" 127.0.0.1 4318
    probe_in "$host" listen "$other" 10.77.0.11 2222
}

mkdir -p "$scratch/etc/nftables.d" "$scratch/egressd"
cat >"$scratch/egressd/egressd.toml" <<'TOML'
[egress]
published = "public-ips.txt"
[[egress.source]]
public = "198.51.100.10"
bind = "10.77.0.10"
[[egress.source]]
public = "198.51.100.11"
bind = "10.77.0.11"
[[egress.source]]
public = "2a00:77::10"
[egress.verify]
reflectors = ["http://10.77.0.1:8080/whoami"]
[dns]
servers = ["10.77.0.53", "169.254.169.254:53"]
[telemetry]
otlp = "http://127.0.0.1:4318"
[store]
engine = "postgres"
url = "postgres://egressd@10.77.0.1/egressd"
[[policy.exception]]
networks = ["10.88.0.0/16", "169.254.0.0/16"]
reason = "a service of our own"
TOML
printf '%s\n' '# the list' 198.51.100.10 '198.51.100.11 # by NAT' 2a00:77::10 \
    '10.77.0.12 announced=2026-11-22 active=2027-11-22' >"$scratch/egressd/public-ips.txt"

apply_guard() { # apply_guard CONFIG [argument…]
    local config=$1
    shift
    ip netns exec "$host" "$guard/egressd-guard" --config "$config" --user "$ours" --apply \
        --rules "$guard/guard.nft" --directory "$scratch/etc" "$@"
}

cases=() sentences=() expected=()
case_() { # case_ passed|dropped SENTENCE uid,protocol,from,to,port
    expected+=("$1")
    sentences+=("$2")
    cases+=("c${#cases[@]},$3")
}
case_ passed "the service connects from a source to a public address" "$ours,tcp,10.77.0.10,93.184.216.34,443"
case_ passed "and from another source" "$ours,tcp,10.77.0.11,93.184.216.34,443"
case_ passed "and over IPv6" "$ours,tcp,2a00:77::10,2606:2800::34,443"
case_ passed "and asks its name server from any address, over UDP" "$ours,udp,-,10.77.0.53,53"
case_ passed "and over TCP" "$ours,tcp,-,10.77.0.53,53"
case_ passed "and a name server at a metadata service's address" "$ours,udp,-,169.254.169.254,53"
case_ passed "and a private reflector, from a source" "$ours,tcp,10.77.0.10,10.77.0.1,8080"
case_ passed "and a network that an exception opens" "$ours,tcp,10.77.0.10,10.88.0.80,80"
case_ passed "and its collector of traces, over loopback" "$ours,tcp,127.0.0.1,127.0.0.1,4318"
case_ passed "and its database, from whatever address" "$ours,tcp,-,10.77.0.1,5432"
case_ dropped "the service unbound is dropped" "$ours,tcp,-,93.184.216.34,443"
case_ dropped "the service from the host's own address is dropped" "$ours,tcp,10.77.0.2,93.184.216.34,443"
case_ dropped "the service from a published address that is no source is dropped" "$ours,tcp,10.77.0.12,93.184.216.34,443"
case_ dropped "the service from another IPv6 address is dropped" "$ours,tcp,2a00:77::2,2606:2800::34,443"
case_ dropped "the service to a private network is dropped" "$ours,tcp,10.77.0.10,172.16.9.80,80"
case_ dropped "and to another port of the reflector" "$ours,tcp,10.77.0.10,10.77.0.1,80"
case_ dropped "and to another port of the name server" "$ours,tcp,10.77.0.10,10.77.0.53,80"
case_ dropped "and to a metadata service, whatever an exception opens" "$ours,tcp,10.77.0.10,169.254.169.254,80"
case_ dropped "and to a private IPv6 network" "$ours,tcp,2a00:77::10,fd00::80,80"
case_ dropped "and to loopback" "$ours,tcp,127.0.0.1,127.0.0.1,8701"
case_ dropped "the service over UDP to a public address is dropped" "$ours,udp,10.77.0.10,93.184.216.34,443"
case_ passed "another user connects from the host's own address" "$other,tcp,10.77.0.2,93.184.216.34,443"
case_ passed "and unbound" "$other,tcp,-,93.184.216.34,443"
case_ passed "and over IPv6 from the host's own address" "$other,tcp,2a00:77::2,2606:2800::34,443"
case_ passed "and to loopback, the service's listener" "$other,tcp,-,127.0.0.1,8701"
case_ dropped "another user from a source is dropped" "$other,tcp,10.77.0.10,93.184.216.34,443"
case_ dropped "root from a source is dropped" "0,tcp,10.77.0.11,93.184.216.34,443"
case_ dropped "another user from an announced address is dropped" "$other,tcp,10.77.0.12,93.184.216.34,443"
case_ dropped "another user from an IPv6 source is dropped" "$other,tcp,2a00:77::10,2606:2800::34,443"
case_ dropped "another user's UDP from a source is dropped" "$other,udp,10.77.0.10,93.184.216.34,443"

check "two hosts and a guest are joined in namespaces" made_networks
servers_up

answers=$(ip netns exec "$host" python3 "$here/guard_probe.py" try "${cases[@]}")
all_pass() {
    if grep -v ' passed$' <<<"$answers"; then return 1; fi
    [ "$(wc -l <<<"$answers")" -eq "${#cases[@]}" ]
}
check "without the guard every probe gets through" all_pass
reached() { # reached NAMESPACE passed|dropped to port
    local got
    got=$(ip netns exec "$1" python3 "$here/guard_probe.py" try "x,0,tcp,-,$3,$4")
    [ "$got" = "x $2" ] || { echo "$got"; return 1; }
}
check "and another user's listener on a source answers" reached "$world" passed 10.77.0.11 2222

check "egressd-guard writes the sets and loads the guard" apply_guard "$scratch/egressd/egressd.toml"
answers=$(ip netns exec "$host" python3 "$here/guard_probe.py" try "${cases[@]}")
answered() { # answered CASE EXPECTED
    local got
    got=$(sed -n "s/^c$1 //p" <<<"$answers")
    [ "$got" = "$2" ] || { echo "${cases[$1]}: $got"; return 1; }
}
for number in "${!cases[@]}"; do
    check "${sentences[$number]}" answered "$number" "${expected[$number]}"
done

counted() { # counted COUNTER AT-LEAST
    local packets
    packets=$(ip netns exec "$host" nft -j list counter inet egressd_guard "$1" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["nftables"][1]["counter"]["packets"])')
    [ "$packets" -ge "$2" ] || { echo "$1 counted $packets"; return 1; }
}
check "dropped packets are counted by reason: another user's" counted foreign_user 5
check "and the service's from a wrong source" counted wrong_source 4
check "and the service's to private networks" counted private_destination 5
check "and what is not TCP" counted not_tcp 1

check "a listener of the service answers callers from the network" reached "$world" passed 10.77.0.2 8700
check "and so does its proxy" reached "$world" passed 10.77.0.2 8703
check "another user's listener on a source cannot answer" reached "$world" dropped 10.77.0.11 2222

masqueraded_as() {
    ip netns exec "$host" nft -f - <<NFT
table ip masquerading
delete table ip masquerading
table ip masquerading {
    chain postrouting { type nat hook postrouting priority srcnat; oifname wan ip saddr 10.78.0.0/24 snat to $1; }
}
NFT
}
masqueraded_as 10.77.0.2
check "a guest behind the host's own address gets through" reached "$guest" passed 93.184.216.34 443
masqueraded_as 10.77.0.10
check "a guest that would be put on a source is dropped" reached "$guest" dropped 93.184.216.34 443
check "and counted" counted forwarded 1

check "applying again replaces the guard, and its counters begin anew" apply_guard "$scratch/egressd/egressd.toml"
guard_stays() { ip netns exec "$host" nft get element inet egressd_guard sources4 '{ 10.77.0.10 }'; }

mkdir -p "$scratch/bad"
sed 's/198.51.100.11"/198.51.100.99"/' "$scratch/egressd/egressd.toml" >"$scratch/bad/egressd.toml"
printf '198.51.100.10\n2a00:77::10\n10.77.0.999\n' >"$scratch/bad/public-ips.txt"
refuses "a source that is not published is refused" "198.51.100.99 is not in the published file" \
    apply_guard "$scratch/bad/egressd.toml"
refuses "and every other problem is named with it" "public-ips.txt:3: 10.77.0.999 is not an address" \
    apply_guard "$scratch/bad/egressd.toml"
sed 's/\$egressd_user jump/$egressd_usr jump/' "$guard/guard.nft" >"$scratch/bad/guard.nft"
refuses "a guard that nft does not accept is refused" "unknown identifier" \
    apply_guard "$scratch/egressd/egressd.toml" --rules "$scratch/bad/guard.nft"
check "after each refusal the guard in force is the old one" guard_stays
refuses "an unknown user is refused" "there is no user nobody-such" \
    apply_guard "$scratch/egressd/egressd.toml" --user nobody-such

sed 's#http://10.77.0.1:8080/whoami#http://localhost:8099/whoami", "https://no-such-name.invalid/whoami#' \
    "$scratch/egressd/egressd.toml" >"$scratch/egressd/named.toml"
named() {
    "$guard/egressd-guard" --config "$scratch/egressd/named.toml" --user "$ours" >"$scratch/named.nft" 2>"$scratch/named.log"
    grep -F 'elements = { 127.0.0.1 . 8099 }' "$scratch/named.nft"
    grep -F 'warning: [egress.verify] reflectors: https://no-such-name.invalid/whoami' "$scratch/named.log"
}
check "a reflector given by name is opened at its private address; one that does not resolve is named" named
