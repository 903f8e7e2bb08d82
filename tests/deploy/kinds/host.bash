# A host with systemd itself as its first process, on which deploy/ is installed as its heads say: addresses, settings,
# guard and appliance, each by its unit. What the unit promises is then asked of the running service.
need_egressd
need jq jq
# By path: of this machine the new host has /usr, without /usr/local.
need /usr/bin/systemctl systemd
need /usr/sbin/nft nftables
need /usr/bin/curl curl
need /usr/bin/python3 python3
need /usr/sbin/sysctl procps

[ -x /lib/systemd/systemd ] || { echo "systemd is not installed" >&2; exit 1; }
world=$run-hostworld net=$run-hostnet
for name in "$world" "$net"; do
    at_exit+=("ip netns pids $name | xargs -r kill -9; ip netns delete $name")
    ip netns add "$name"
    ip -n "$name" link set lo up
done
ip -n "$net" link add name wan type veth peer name wan netns "$world"
ip -n "$net" address add 10.78.0.2/24 dev wan
for address in 10.78.0.1/24 93.184.216.34/32 100.100.100.200/32; do ip -n "$world" address add "$address" dev wan; done
ip -n "$net" link set wan up
ip -n "$world" link set wan up
ip -n "$net" route add default via 10.78.0.1
for address in 93.184.216.34 100.100.100.200; do
    ip netns exec "$world" "$egressd" bin --listen "$address:8080" >"$scratch/receiver-$address.log" 2>&1 &
    at_exit+=("kill $!")
done

# Installed as the heads of the files say.
files=$scratch/root.files
mkdir -p "$scratch/root" "$files"/etc/{egressd,nftables.d,sysusers.d,sysctl.d,systemd/system} "$files"/usr/local/{bin,sbin}
install -m 0755 "$egressd" "$files/usr/local/bin/egressd"
install -m 0755 "$deploy/nftables/egressd-guard" "$deploy/network/egressd-addresses" "$files/usr/local/sbin/"
install -m 0644 "$deploy/nftables/guard.nft" "$files/etc/nftables.d/egressd-guard.nft"
install -m 0644 "$deploy/systemd/egressd.sysusers.conf" "$files/etc/sysusers.d/egressd.conf"
install -m 0644 "$deploy/sysctl/90-egressd.conf" "$files/etc/sysctl.d/90-egressd.conf"
install -m 0644 "$deploy"/systemd/egressd{,-guard,-addresses}.service "$files/etc/systemd/system/"
install -D -m 0644 "$deploy/systemd/egressd-guard.conf" "$files/etc/systemd/system/egressd.service.d/guard.conf"
echo '10.78.0.10/24 wan' >"$files/etc/egressd/addresses"
echo 10.78.0.10 >"$files/etc/egressd/public-ips.txt"
configured_with() { # configured_with SOURCE…
    printf '[egress]\nnotice = "0s"\n'
    printf '[[egress.source]]\npublic = "%s"\n' "$@"
    printf '[dns]\nservers = ["10.78.0.53"]\n'
}
configured_with 10.78.0.10 >"$files/etc/egressd/egressd.toml"

# In a cgroup of its own, which the new host sees as all there are.
mkdir "$scratch/cgroup"
mount -t cgroup2 cgroup2 "$scratch/cgroup"
at_exit+=("find $scratch/cgroup/$run-host -depth -type d -exec rmdir {} +; umount $scratch/cgroup")
mkdir "$scratch/cgroup/$run-host"
(
    echo "$BASHPID" >"$scratch/cgroup/$run-host/cgroup.procs"
    exec ip netns exec "$net" unshare --pid --mount --fork --kill-child --uts --ipc --cgroup \
        "$here/boot_host" "$scratch/root"
) >"$scratch/boot.log" 2>&1 </dev/null &
booting=$!
# The last to begin is the first to be ended.
at_exit=('kill -9 "$(first)"; wait "$booting"' "${at_exit[@]}")

first() { tr -d ' ' <"/proc/$booting/task/$booting/children" 2>/dev/null; }
on_host() {
    nsenter --target "$(first)" --mount --pid --uts --ipc --net --cgroup \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
says() { # says KEY VALUE: of egressd.service
    local got
    got=$(on_host systemctl show --property "$1" --value egressd)
    [ "$got" = "$2" ] || { echo "$1 is $got"; on_host journalctl --unit egressd --no-pager --lines 20; return 1; }
}
booted() { on_host systemctl is-active basic.target || { cat "$scratch/boot.log"; return 1; }; }
check "systemd boots" in_time booted

setting() { [ "$(on_host sysctl -n "$1" | tr '\t' ' ')" = "$2" ]; }
check "its sysctl service puts the settings in force" setting net.ipv4.ip_local_port_range "16384 65535"
check "its sysusers service has made the account" on_host id egressd
check "the addresses' unit plumbs the source" on_host systemctl enable --now --quiet egressd-addresses
there_is() { on_host ip -o address show dev wan | grep -F " $1/"; }
check "which is there" there_is 10.78.0.10
guarded() {
    on_host systemctl enable --quiet egressd-guard
    if on_host nft list table inet egressd_guard; then return 1; fi
}
check "the guard's unit is enabled, and not loaded yet" guarded

check "the appliance starts: the start ends with its READY=1" on_host systemctl enable --now --quiet egressd
check "and is running" says SubState running
check "with the guard, which it requires" on_host nft list table inet egressd_guard
main() { on_host systemctl show --property MainPID --value egressd; }
status_line() { on_host grep -E "^$1:" "/proc/$(main)/status" | tr -s '\t ' ' '; }
as_promised() {
    local wrong=0 uid
    uid=$(on_host id -u egressd)
    while read -r key value; do
        [ "$(status_line "$key")" = "$key: $value" ] || { status_line "$key"; wrong=1; }
    done <<EOF
Uid $uid $uid $uid $uid
CapEff 0000000000000000
CapBnd 0000000000000000
NoNewPrivs 1
Seccomp 2
EOF
    [ "$(limit "$(main)" 'Max open files')" = "$files_most" ] || { limit "$(main)" 'Max open files'; wrong=1; }
    [ "$(limit "$(main)" 'Max core file size')" = 0 ] || wrong=1
    return "$wrong"
}
limit() { on_host sed -n "s/^$2 *[^ ]* *\([^ ]*\) .*/\1/p" "/proc/$1/limits"; }
# As many as the unit asks for, where this machine lets anybody have them.
files_most=$(printf '%s\n' 131072 "$(limit 1 'Max open files')" | sort -n | head -n 1)
check "its process has no capability, no new privileges, a filter on system calls, and its limits" as_promised

told_by_the_kernel() {
    if on_host journalctl --unit egressd --no-pager | grep -F 'the kernel does not tell'; then return 1; fi
}
check "within its walls the kernel still tells it of its ports and addresses" told_by_the_kernel

# What the service sees: its mounts, its user, its network.
in_service() {
    on_host sh -c 'pid=$1; shift; exec nsenter --target "$pid" --mount --net setpriv --reuid egressd --regid egressd \
        --clear-groups --bounding-set=-all --inh-caps=-all "$@"' in_service "$(main)" "$@"
}
check "it can write to its store" in_service touch /var/lib/egressd/probe
check "and to a /tmp of its own" in_service touch /tmp/probe
unshared() { ! on_host test -e /tmp/probe; }
check "which is not the host's" unshared
for place in /etc/egressd/probe /usr/local/bin/probe /var/probe /var/lib/probe /run/probe /dev/probe /proc/sys/net/probe; do
    refuses "nowhere else: not $place" "Read-only file system|Permission denied|No such file" in_service touch "$place"
done
# As root within its walls: it is the mounts that refuse, not the owner's rights.
walls() { on_host nsenter --target "$(main)" --mount touch "$1"; }
for place in /etc/egressd/probe /usr/local/bin/probe /var/probe /root/probe /proc/sys/net/ipv4/ip_forward; do
    refuses "and not root within its walls: $place" "Read-only file system|Permission denied|No such file" walls "$place"
done
refuses "it sees no other process" "No such file" in_service cat /proc/1/status
refuses "and nothing under /home, /srv, /opt" "Permission denied|No such file" in_service ls /srv

api() { on_host curl -sf "http://127.0.0.1:8700$1" "${@:2}"; }
send() { on_host egressd send POST "http://93.184.216.34:8080$1" -d '{"a":1}' --json "${@:2}"; }
delivered() { # delivered RECORD [SOURCE]
    [ "$(jq -r '.outcome + " " + .connection.source_ip' <<<"$1")" = "delivered ${2:-10.78.0.10}" ] || { echo "$1"; return 1; }
}
delivers() { delivered "$(send /hook --wait)" "$@"; }
check "it delivers, from its source" delivers
# Its cgroup may not speak to addresses that only ever are metadata services, whoever asks: the unit's third wall.
asks() { # asks CGROUP URL: in the cgroup of the service or in systemd's own
    on_host sh -c 'echo $$ >/sys/fs/cgroup/$1/cgroup.procs; exec curl -sS --max-time 2 "$2"' asks "$@"
}
check "outside of its cgroup an address that it is denied answers" asks init.scope http://100.100.100.200:8080/whoami
refuses "inside it does not" "timed out|Operation not permitted|Couldn.t connect" \
    asks system.slice/egressd.service http://100.100.100.200:8080/whoami

# Reload: guard and appliance, as a whole.
reloaded() {
    on_host sh -c 'echo 10.78.0.11/24 wan >>/etc/egressd/addresses; echo 10.78.0.11 >>/etc/egressd/public-ips.txt'
    configured_with 10.78.0.10 10.78.0.11 | on_host tee /etc/egressd/egressd.toml >/dev/null
    on_host systemctl reload egressd-addresses
    on_host systemctl reload egressd
    in_time lists 10.78.0.11
    on_host nft list table inet egressd_guard | grep -F 10.78.0.11
}
lists() { api /public-ips.txt | grep -xF "$1"; }
before=$(main)
check "a reload takes a new source, and the guard with it" reloaded
same() { [ "$(main)" = "$before" ] || return 1; says SubState running; }
check "in the same process" same
from_both() {
    local number used
    for number in $(seq 1 24); do
        on_host egressd send GET "http://93.184.216.34:8080/$number" --tenant "t$number" --json --wait
    done | jq -r '.outcome + " " + .connection.source_ip' | sort -u >"$scratch/used"
    printf 'delivered 10.78.0.%s\n' 10 11 | diff "$scratch/used" -
}
check "and it delivers from both, through the guard" from_both

# Stop: what is in flight is finished.
stopped() {
    local id
    id=$(send /_delay/1500 | jq -r .id)
    in_time under_way
    on_host systemctl stop egressd
    says ActiveState inactive
    says Result success
    says ExecMainStatus 0
    on_host systemctl start egressd
    [ "$(api "/v1/sends/$id" | jq -r .outcome)" = delivered ]
}
under_way() { on_host curl -s http://127.0.0.1:8701/metrics | grep -E '^egressd_in_flight\{source_ip="10[^}]*\} 1$'; }
check "a stop drains: a delivery under way is finished, and the exit is clean" stopped

# The watchdog, brought to five seconds so that nobody waits for thirty.
watched() {
    on_host sh -c 'mkdir -p /run/systemd/system/egressd.service.d
        printf "[Service]\nWatchdogSec=5\n" >/run/systemd/system/egressd.service.d/watchdog.conf'
    on_host systemctl daemon-reload
    on_host systemctl restart egressd
    before=$(main)
    # Longer than it is allowed to be silent: it gives its signs of life.
    on_host sleep 11
    [ "$(main)" = "$before" ]
    says NRestarts 0
    on_host kill -STOP "$before"
    in_time says NRestarts 1
    in_time says SubState running
    [ "$(main)" != "$before" ]
    on_host journalctl --unit egressd --no-pager | grep -F 'egressd.service: Watchdog timeout'
}
check "a process that stands still is killed by the watchdog and started again; one that turns is not" watched
again() { [ "$(send /hook --wait | jq -r .outcome)" = delivered ]; }
check "and delivers again" again

refused() {
    on_host sh -c 'echo "[nonsense]" >>/etc/egressd/egressd.toml'
    if on_host systemctl restart egressd; then return 1; fi
    says ExecMainStatus 2
    says ActiveState failed
    says NRestarts 0
}
check "a bad configuration ends with 2, and is not started again and again" refused
