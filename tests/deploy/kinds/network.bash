# Address plumbing, done for real in network namespaces: a host with two uplinks, and two worlds that each know the way
# back to their own uplink only, so that what leaves by the wrong one is never answered.
need ip iproute2
need ifup ifupdown
need shellcheck shellcheck

network=$deploy/network
scripts=("$network/egressd-addresses" "$network"/{aws,google,azure}/assign)
check "shellcheck accepts the shell scripts" shellcheck "${scripts[@]}"
sed 's/"\$interface"/$interface/g' "$network/aws/assign" >"$scratch/unquoted"
refuses "an unquoted variable is refused" "SC2086" shellcheck "$scratch/unquoted"

plumbed=$run-plumbed
first=$run-first second=$run-second
for name in "$plumbed" "$first" "$second"; do
    at_exit+=("ip netns pids $name | xargs -r kill; ip netns delete $name")
done

two_uplinks() {
    local name
    for name in "$first" "$second"; do
        ip netns add "$name"
        ip -n "$name" link set lo up
        ip -n "$name" address add 93.184.216.34/32 dev lo
    done
    ip -n "$first" -6 address add 2606:2800::34/128 dev lo nodad
}
fresh_host() {
    # A namespace goes some time after its name: its links are taken away first, with their other ends.
    ip -n "$first" link delete wan 2>/dev/null || true
    ip -n "$second" link delete wan 2>/dev/null || true
    ip netns delete "$plumbed" 2>/dev/null || true
    ip netns add "$plumbed"
    ip -n "$plumbed" link set lo up
    ip -n "$plumbed" link add eth0 type veth peer name wan netns "$first"
    ip -n "$plumbed" link add eth1 type veth peer name wan netns "$second"
    ip -n "$first" address add 198.51.100.1/24 dev wan
    ip -n "$first" address add 2001:db8:100::1/64 dev wan nodad
    ip -n "$second" address add 203.0.113.1/24 dev wan
    ip -n "$first" link set wan up
    ip -n "$second" link set wan up
}
# What the host's own configuration would have done before egressd-addresses runs.
own_address() {
    ip -n "$plumbed" link set eth0 up
    ip -n "$plumbed" link set eth1 up
    ip -n "$plumbed" address add 198.51.100.2/24 dev eth0
    ip -n "$plumbed" route add default via 198.51.100.1
    ip -n "$plumbed" -6 address add 2001:db8:100::2/64 dev eth0 nodad
    ip -n "$plumbed" -6 route add default via 2001:db8:100::1
}
serve_in() { started ip netns exec "$1" python3 "$here/guard_probe.py" serve "$2" 443; }
# From each source, by the uplink that is its own; `-` is what is not bound.
gets_through() {
    local cases=() source answers
    for source in "$@"; do
        case $source in
            *:*) cases+=("$source,0,tcp,$source,2606:2800::34,443") ;;
            *) cases+=("$source,0,tcp,$source,93.184.216.34,443") ;;
        esac
    done
    answers=$(ip netns exec "$plumbed" python3 "$here/guard_probe.py" try "${cases[@]}")
    if grep -v ' passed$' <<<"$answers"; then return 1; fi
    [ "$(wc -l <<<"$answers")" -eq "$#" ]
}
sources=(198.51.100.10 198.51.100.11 203.0.113.10)

two_uplinks
serve_in "$first" 93.184.216.34
serve_in "$first" 2606:2800::34
serve_in "$second" 93.184.216.34

addresses() { ip netns exec "$plumbed" "$network/egressd-addresses" "$@"; }
example=$network/plain/addresses.example
fresh_host
own_address
refuses "show names what is missing" "203.0.113.10/24 eth1 missing" addresses show "$example"
check "egressd-addresses puts the example's addresses up" addresses up "$example"
check "and again, which changes nothing" addresses up "$example"
check "each source gets through by its own uplink, over IPv6 too" gets_through "${sources[@]}" 2001:db8:100::10 -
check "show says so" addresses show "$example"
own_kept() { ip -n "$plumbed" route get 93.184.216.34 | grep -F 'src 198.51.100.2' && ip -n "$plumbed" -6 route get 2606:2800::34 | grep -F 'src 2001:db8:100::2'; }
check "what is not bound keeps the host's own address" own_kept
ip -n "$plumbed" rule delete from 203.0.113.10
refuses "without its rule the second uplink's source does not get through" "203.0.113.10 dropped" gets_through 203.0.113.10
refuses "and show says that it is not routed" "not routed" addresses show "$example"
check "up repairs it" addresses up "$example"
check "and it gets through again" gets_through 203.0.113.10
check "down takes all of them away" addresses down "$example"
none_left() {
    [ "$(ip -n "$plumbed" -4 -o address show scope global | wc -l)" -eq 1 ]
    [ -z "$(ip -n "$plumbed" rule show lookup 101)" ]
}
check "and leaves the host's own" none_left
printf '%s\n' '198.51.100.10 eth0' '198.51.100.11/24' '203.0.113.10/24 eth1 via 203.0.113.1' >"$scratch/addresses"
refuses "a file with problems is refused, with all of them: a prefix" "addresses:1: 198.51.100.10 is not" addresses up "$scratch/addresses"
refuses "an interface" "addresses:2: 198.51.100.11/24 has no interface" addresses up "$scratch/addresses"
refuses "a table" "addresses:3: a gateway wants its table" addresses up "$scratch/addresses"
check "and nothing of it is done" none_left

# systemd-networkd itself, on these files, in this namespace.
networkd() {
    # shellcheck disable=SC2016
    ip netns exec "$plumbed" unshare --mount bash -c '
        mount -t tmpfs tmpfs /run
        mkdir -p /run/systemd/network /run/systemd/netif/{links,leases,lldp}
        ! id systemd-network >/dev/null 2>&1 || chown -R systemd-network /run/systemd/netif
        cp "$1"/*.network /run/systemd/network/
        mount -o remount,ro /sys
        exec /usr/lib/systemd/systemd-networkd' networkd "$1" >"$scratch/networkd.log" 2>&1 &
    at_exit+=("kill $!")
}
fresh_host
networkd "$network/plain"
check "systemd-networkd configures both interfaces" in_time gets_through "${sources[@]}" -
understood() { if grep -iE 'unknown|invalid|ignoring|failed to parse' "$scratch/networkd.log"; then return 1; fi; }
check "and understands every line" understood
deprecated() { ip -n "$plumbed" -6 -o address show dev eth0 deprecated | grep -F 2001:db8:100::10/64; }
check "the IPv6 source is there for whoever binds it, and chosen for nobody else" deprecated
ip netns pids "$plumbed" | xargs -r kill

mkdir "$scratch/networkd-bad"
sed '/RoutingPolicyRule/,$d; s/AddPrefixRoute/AddPrefixRout/' "$network/plain/20-egressd-second.network" >"$scratch/networkd-bad/20.network"
cp "$network/plain/10-egressd-wan.network" "$scratch/networkd-bad/"
fresh_host
networkd "$scratch/networkd-bad"
check "without the rule networkd still configures the first interface" in_time gets_through 198.51.100.10
refuses "but the second interface's source does not get through" "203.0.113.10 dropped" gets_through 203.0.113.10
refuses "and a key that networkd does not know is seen" "AddPrefixRout" understood
ip netns pids "$plumbed" | xargs -r kill

# ifupdown itself, on its file.
ifupdown() {
    # shellcheck disable=SC2016
    ip netns exec "$plumbed" unshare --mount bash -euc '
        mount -t tmpfs tmpfs /run
        mkdir -p /run/network
        verb=$1 file=$2
        shift 2
        [ "$verb" = ifup ] || printf "%s=%s\n" eth0 eth0 eth1 eth1 >/run/network/ifstate
        "$verb" --force --interfaces="$file" "$@"' ifupdown "$@"
}
fresh_host
check "ifup configures both interfaces" ifupdown ifup "$network/plain/interfaces.egressd" eth0 eth1
check "each source gets through by its own uplink" gets_through "${sources[@]}" -
check "the IPv6 source is deprecated here, too" deprecated
check "ifdown takes them away" ifupdown ifdown "$network/plain/interfaces.egressd" eth1 eth0
nothing_left() { [ -z "$(ip -n "$plumbed" -4 -o address show scope global)" ] && [ -z "$(ip -n "$plumbed" rule show lookup 101)" ]; }
check "all of them" nothing_left
sed 's/^iface eth1 inet manual/iface eth1 inet manuel/' "$network/plain/interfaces.egressd" >"$scratch/interfaces"
refuses "a method that ifupdown does not know is refused" "unknown|unable|manuel" ifupdown ifup "$scratch/interfaces" eth1

# The pairs, from a stand-in for each cloud's metadata service.
mkdir -p "$scratch/devices"/{ens5,ens6}
echo 02:00:00:00:00:05 >"$scratch/devices/ens5/address"
echo 02:00:00:00:00:06 >"$scratch/devices/ens6/address"
started python3 "$here/metadata_service.py" 02:00:00:00:00:05 02:00:00:00:00:06
metadata=$line
pairs() { "$network/cloud-pairs" "$@" --endpoint "$metadata" --devices "$scratch/devices"; }
says() { # says TEXT COMMAND…: exactly that on stdout
    local wanted=$1 got
    shift
    got=$("$@" 2>/dev/null)
    [ "$got" = "$wanted" ] || { diff <(echo "$wanted") <(echo "$got"); return 1; }
}
nat=$'10.0.0.11/24 ens5\n10.0.0.12/24 ens5\n10.0.1.10/24 ens6 via 10.0.1.1 table 101'
forwarded=$'198.51.100.11/32 ens5\n198.51.100.12/32 ens5\n10.0.1.10/24 ens6 via 10.0.1.1 table 101'
public=$'198.51.100.11\n198.51.100.12\n203.0.113.10'
pair() { printf '[[egress.source]]\npublic = "%s"\nbind = "%s"\npool = "default"\n\n' "$1" "$2"; }
natted=$(pair 198.51.100.11 10.0.0.11; pair 198.51.100.12 10.0.0.12; pair 203.0.113.10 10.0.1.10)
same=$(pair 198.51.100.11 198.51.100.11; pair 198.51.100.12 198.51.100.12; pair 203.0.113.10 10.0.1.10)
for cloud in aws google azure; do
    case $cloud in
        google) lines=$forwarded blocks=$same ;;
        *) lines=$nat blocks=$natted ;;
    esac
    check "the pairs of $cloud, as sources" says "$blocks" pairs "$cloud"
    check "as lines for egressd-addresses" says "$lines" pairs "$cloud" --addresses
    check "as a list" says "$public" pairs "$cloud" --public
    check "with the host's own address" says $'198.51.100.10\n'"$public" pairs "$cloud" --public --with-first
done
named_without_public() { [ "$(pairs "$1" 2>&1 >/dev/null)" = "10.0.0.13 has no public address: left out" ]; }
check "an address without a public one is named (aws)" named_without_public aws
check "an address without a public one is named (azure)" named_without_public azure
refuses "a service that is not the cloud's is refused" "did not answer as expected" \
    "$network/cloud-pairs" aws --endpoint "$metadata/elsewhere"
refuses "an interface that the host does not have is named" "no interface of this host has the hardware address" \
    "$network/cloud-pairs" azure --addresses --endpoint "$metadata" --devices "$scratch"

# The assigning scripts, with a stand-in for each cloud's command that says what it was asked.
mkdir "$scratch/clouds"
cat >"$scratch/clouds/aws" <<'STAND_IN'
#!/bin/sh
echo "aws $*" >>"$CALLS"
case "$*" in
*allocate-address*) [ -z "${QUOTA:-}" ] || { echo "AddressLimitExceeded" >&2; exit 254; }; echo "eipalloc-1 198.51.100.11" ;;
*assign-private*) echo 10.0.0.11 ;;
*associate-address*) ;;
*) exit 2 ;;
esac
STAND_IN
cat >"$scratch/clouds/gcloud" <<'STAND_IN'
#!/bin/sh
echo "gcloud $*" >>"$CALLS"
case "$*" in
*target-instances\ describe*) exit 1 ;;
*target-instances\ create* | *addresses\ create* | *forwarding-rules\ create*) ;;
*addresses\ describe*) echo 198.51.100.11 ;;
*) exit 2 ;;
esac
STAND_IN
cat >"$scratch/clouds/az" <<'STAND_IN'
#!/bin/sh
echo "az $*" >>"$CALLS"
case "$*" in
*public-ip\ create*) echo 198.51.100.11 ;;
*ip-config\ create*) ;;
*ip-config\ show*) echo 10.0.0.11 ;;
*) exit 2 ;;
esac
STAND_IN
chmod +x "$scratch"/clouds/*
assigns() { # assigns CLOUD FIRST-WORDS-OF-EACH-LINE CALLS argument…
    local cloud=$1 wanted=$2 calls=$3 got
    shift 3
    export CALLS=$scratch/calls-$cloud PATH=$scratch/clouds:$PATH
    : >"$CALLS"
    got=$("$network/$cloud/assign" "$@")
    [ "$(cut -d' ' -f1,2 <<<"$got" | sed 's/ egressd.*//')" = "$wanted" ] || { echo "$got"; return 1; }
    [ "$(wc -l <"$CALLS")" -eq "$calls" ] || { cat "$CALLS"; return 1; }
}
check "aws/assign allocates, assigns and associates each pair" \
    assigns aws $'198.51.100.11 10.0.0.11\n198.51.100.11 10.0.0.11' 6 eni-0a1b 2
check "google/assign makes a target instance, an address and its rule" assigns google 198.51.100.11 5 egress-1 europe-west4-a 1
check "azure/assign makes a public address and its configuration" assigns azure '198.51.100.11 10.0.0.11' 3 group nic 1
export QUOTA=used-up
refuses "a quota that is used up ends the run before anything is assigned" "AddressLimitExceeded" \
    assigns aws '198.51.100.11 10.0.0.11' 3 eni-0a1b 1
unset QUOTA
nothing_assigned() { [ "$(wc -l <"$scratch/calls-aws")" -eq 1 ]; }
check "nothing was" nothing_assigned
for cloud in aws google azure; do
    refuses "$cloud/assign says how it is called" "usage: assign" "$network/$cloud/assign"
done
