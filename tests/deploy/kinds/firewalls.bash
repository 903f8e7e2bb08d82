# The list into firewalls, as their owners do it: nftables and ipset for real, in a network namespace with packets that are
# let through and dropped; Cloudflare's lists before a stand-in; and the list as those read it that fetch it themselves.
need nft nftables
need ipset ipset
need iptables iptables
need jq jq
need_egressd
need_python ruff ruff

allow=$deploy/firewalls/egressd-allow
mkdir -p "$scratch/published" "$scratch/www"
printf '[egress]\n[[egress.source]]\npublic = "127.0.0.2"\n' >"$scratch/published/egressd.toml"
printf '%s\n' 127.0.0.2 '198.51.100.11 announced=2026-01-01 active=2026-01-08' \
    '198.51.100.12 announced=2026-01-01 active=2999-01-08' 2001:db8:100::10 2001:db8:100::11 >"$scratch/published/public-ips.txt"
"$egressd" ips --config "$scratch/published/egressd.toml" >"$scratch/www/public-ips.txt"
printf '127.0.0.2\n' >"$scratch/www/shrunk.txt"
: >"$scratch/www/empty.txt"
printf '127.0.0.2\n0.0.0.0/0\n' >"$scratch/www/network.txt"
printf '127.0.0.2 }; flush ruleset; add table inet x {\n' >"$scratch/www/hostile.txt"
printf '<html>Sign in</html>\n' >"$scratch/www/portal.txt"
echo '[]' >"$scratch/www/items.json"
started python3 "$here/cloudflare_stand_in.py" "$scratch/www"
served=http://127.0.0.1:$line

namespace=${run}fw
ip netns add "$namespace"
at_exit+=("ip netns delete $namespace")
inside() { ip netns exec "$namespace" "$@"; }
inside ip link set lo up
inside ip address add 198.51.100.11/32 dev lo
inside ip address add 203.0.113.9/32 dev lo
# The list is read where the namespace ends: the program runs outside of it, and its tools inside.
mkdir "$scratch/bin"
for tool in nft ipset; do
    printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$namespace" "$(command -v "$tool")" >"$scratch/bin/$tool"
    chmod +x "$scratch/bin/$tool"
done
loaded() { PATH=$scratch/bin:$PATH "$allow" "$@"; }
answers() { inside ping -c 1 -W 1 -I "$1" 127.0.0.1 >/dev/null; }
need ping iputils-ping

sets() { inside nft -j list set inet filter "egressd$1" | jq -cS '[.nftables[].set.elem // empty | .[]] | sort'; }
whole() {
    [ "$(sets 4)" = '["127.0.0.2","198.51.100.11","198.51.100.12"]' ] || { sets 4; return 1; }
    [ "$(sets 6)" = '["2001:db8:100::10","2001:db8:100::11"]' ] || { sets 6; return 1; }
}
check "nftables: the sets are made from the published list" loaded nftables "$served/public-ips.txt"
check "and hold all of it, announced ones too" whole
inside nft add chain inet filter input '{ type filter hook input priority 0; }'
inside nft add rule inet filter input icmp type echo-request ip saddr @egressd4 accept
inside nft add rule inet filter input icmp type echo-request drop
check "a packet from the list passes" answers 198.51.100.11
refuses "and another does not" "" answers 203.0.113.9
check "loading it again changes nothing, and leaves the rules" loaded nftables "$served/public-ips.txt"
check "which still let the list pass" answers 198.51.100.11
for wrong in "empty an empty list would admit nobody" "network line 2 is no address" "hostile line 1 is no address" \
    "portal line 1 is no address" "missing 404" "shrunk 5 addresses are in force and the list has 1"; do
    refuses "a list that is refused: ${wrong%% *}" "${wrong#* }" loaded nftables "$served/${wrong%% *}.txt"
done
refuses "and one that came over plain HTTP" "https://" loaded nftables http://192.0.2.1/public-ips.txt
refuses "a table that is no name is refused" "write a family and a name" loaded nftables "$served/public-ips.txt" --table 'inet x; flush ruleset'
check "none of which changed the sets" whole
check "--shrink takes what lost most of its addresses" loaded nftables "$served/shrunk.txt" --shrink
shrunk() { [ "$(sets 4) $(sets 6)" = '["127.0.0.2"] []' ] || { sets 4; sets 6; return 1; }; }
check "and the sets follow" shrunk
refuses "so that what was on the list is dropped" "" answers 198.51.100.11
inside nft flush ruleset

ipsets() { inside ipset save "egressd$1" | sed -n 's/^add egressd[46] //p' | sort | paste -sd' '; }
both() {
    [ "$(ipsets 4)" = "127.0.0.2 198.51.100.11 198.51.100.12" ] || { ipsets 4; return 1; }
    [ "$(ipsets 6)" = "2001:db8:100::10 2001:db8:100::11" ] || { ipsets 6; return 1; }
    [ "$(inside ipset list -n | sort | paste -sd' ')" = "egressd4 egressd6" ] || { inside ipset list -n; return 1; }
}
check "ipset: the sets are made" loaded ipset "$served/public-ips.txt"
check "and hold all of it, with nothing left over" both
rules() {
    inside iptables -A INPUT -p icmp -m set --match-set egressd4 src -j ACCEPT
    inside iptables -A INPUT -p icmp --icmp-type echo-request -j DROP
    inside ip6tables -A INPUT -p tcp --dport 443 -m set --match-set egressd6 src -j ACCEPT
}
check "iptables takes them in its rules" rules
check "and lets the list pass" answers 198.51.100.11
refuses "and nobody else" "" answers 203.0.113.9
check "loading it again swaps them whole" loaded ipset "$served/public-ips.txt"
check "with the same in them" both
refuses "a list that shrank is refused" "5 addresses are in force" loaded ipset "$served/shrunk.txt"
check "and changes nothing" both

export CLOUDFLARE_API=$served/client/v4 CLOUDFLARE_API_TOKEN=the-token
account=$(printf 'a%.0s' {1..32})
items=$(printf 'b%.0s' {1..32})
at_cloudflare() { "$allow" cloudflare "$@" --account "$account" --list "$items"; }
has() {
    local got
    got=$(jq -c '[.[].ip]' "$scratch/www/items.json")
    [ "$got" = '["127.0.0.2","198.51.100.11","198.51.100.12","2001:db8:100::/64"]' ] || { echo "$got"; return 1; }
}
check "Cloudflare: all items are replaced, and it waits until they are in force" at_cloudflare "$served/public-ips.txt"
check "with IPv6 as the networks that its lists take" has
refuses "a list that shrank is refused, whatever pages it is in" "4 addresses are in force and the list has 1" at_cloudflare "$served/shrunk.txt"
touch "$scratch/www/fails"
refuses "an operation that fails is told" "the list is full" at_cloudflare "$served/public-ips.txt"
rm "$scratch/www/fails"
refuses "a wrong token too" "Authentication error" env CLOUDFLARE_API_TOKEN=other "$allow" cloudflare "$served/public-ips.txt" --account "$account" --list "$items"
refuses "and an identity that is none" "32 hex digits" "$allow" cloudflare "$served/public-ips.txt" --account x --list "$items"
check "none of which changed the list" has

# pfSense, OPNsense and pf fetch the list themselves: one address a line, and nothing else.
bare() {
    python3 -c '
import ipaddress, sys
lines = open(sys.argv[1]).read().splitlines()
assert len(lines) == 5, lines
for line in lines:
    assert str(ipaddress.ip_address(line)) == line, line' "$1"
}
check "for those that fetch it themselves, it is bare: an address a line" bare "$scratch/www/public-ips.txt"
refuses "which the check would see" "does not appear" bare <(sed 's/$/ # ours/' "$scratch/www/public-ips.txt")

# The units of the README.
mkdir "$scratch/units"
units() {
    sed -n '/^```ini/,/^```/p' "$deploy/firewalls/README.md" | sed '/^```/d' |
        awk -v to="$scratch/units" '/^# \/etc/ { file = to "/" substr($2, 21); next } { print > file }'
    sed -i "s#/usr/local/sbin/egressd-allow#$allow#" "$scratch/units/egressd-allow.service"
    systemd-analyze verify --recursive-errors=yes "$scratch/units/egressd-allow.service" "$scratch/units/egressd-allow.timer"
}
need systemd-analyze systemd
check "the README's timer and service hold" units
