# The appliance itself under what deploy/ puts around it: the service manager's protocol, the unit's limits, the guard,
# the manifests' configuration, and its metrics against the one list of them.
need_egressd
need strace strace
need curl curl
need setpriv util-linux
need openssl openssl
need promtool prometheus
need nft nftables
need_python python pyyaml

home=$scratch/home
mkdir -p "$home"
cat >"$home/egressd.toml" <<'TOML'
node = "egress-1"
[api]
listen = "127.0.0.1:8700"
[metrics]
listen = "127.0.0.1:8701"
[publish]
listen = "127.0.0.1:8702"
[proxy]
listen = "127.0.0.1:8703"
[egress]
[[egress.source]]
public = "10.77.0.10"
[egress.verify]
reflectors = ["http://93.184.216.34:8080/whoami"]
[dns]
servers = ["10.77.0.53"]
[store]
path = "store"
key_file = "store/key"
[destination.s3]
endpoint = "http://93.184.216.34:8083"
path_style = true
region = "us-east-1"
credentials_file = "s3-credentials"
every = "1s"
TOML
echo 10.77.0.10 >"$home/public-ips.txt"
printf '[default]\naws_access_key_id = A\naws_secret_access_key = S\n' >"$home/s3-credentials"

# A host with an address of its own and a source, and a world with a receiver.
inside=$run-inside outside=$run-outside user=64801
for name in "$inside" "$outside"; do
    at_exit+=("ip netns pids $name | xargs -r kill; ip netns delete $name")
    ip netns add "$name"
    ip -n "$name" link set lo up
done
ip -n "$inside" link add wan type veth peer name wan netns "$outside"
for address in 10.77.0.2/24 10.77.0.10/24; do ip -n "$inside" address add "$address" dev wan; done
for address in 10.77.0.1/24 93.184.216.34/32; do ip -n "$outside" address add "$address" dev wan; done
ip -n "$inside" link set wan up
ip -n "$outside" link set wan up
ip -n "$inside" route add default via 10.77.0.1
chown -R "$user" "$home"
chmod 711 "$scratch_root" "$scratch"

there() { ip netns exec "$inside" "$@"; }
as_service() { there setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs "$@"; }
serving() { as_service "$egressd" serve --config "$home/egressd.toml"; }
ready() {
    local limit=$((SECONDS + patience))
    until there curl -sf http://127.0.0.1:8701/readyz >/dev/null; do
        if [ "$SECONDS" -ge "$limit" ]; then there curl -s http://127.0.0.1:8701/readyz; cat "$scratch/serve.log"; return 1; fi
        read -r -t 0.1 <> <(:) || true
    done
}

check "it tells the service manager READY, WATCHDOG, RELOADING with its time, READY again, STOPPING, and ends with 0" \
    there python3 "$here/notify_socket.py" READY=1,WATCHDOG=1,HUP,RELOADING=1,READY=1,TERM,STOPPING=1 \
    setpriv --reuid "$user" --regid "$user" --clear-groups "$egressd" serve --config "$home/egressd.toml"
sed 's/^\[publish\]/[publishing]/' "$home/egressd.toml" >"$home/bad.toml"
serving_bad() {
    local status=0
    as_service "$egressd" serve --config "$home/bad.toml" || status=$?
    echo "exit status $status"
    [ "$status" -ne 2 ]
}
refuses "a bad configuration ends with 2, which the unit does not restart" "exit status 2" serving_bad

# What the process asks of the kernel, all of it, against what the unit allows.
ip netns exec "$outside" "$egressd" bin --listen 93.184.216.34:8080 >"$scratch/receiver.log" 2>&1 &
at_exit+=("kill $!")
ip netns exec "$outside" python3 "$here/bucket.py" 93.184.216.34 8083 >"$scratch/bucket.log" 2>&1 &
at_exit+=("kill $!")
there setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
    strace -f -qq -c -S calls -o "$home/calls" "$egressd" serve --config "$home/egressd.toml" 2>"$scratch/serve.log" &
traced=$!
at_exit+=("kill $traced")
check "it serves" ready
send() { there "$egressd" send POST "http://93.184.216.34:8080$1" -d '{"a":1}' --wait --json; }
through_a_tunnel() { there curl -s --proxytunnel --proxy http://acme:x@127.0.0.1:8703 "$@"; }
tunnelled() {
    local seen
    seen=$(through_a_tunnel http://93.184.216.34:8080/whoami)
    [ "$seen" = 10.77.0.10 ] || { echo "$seen"; return 1; }
}
delivered() {
    local record
    record=$(send /hook)
    [ "$(jq -r '.outcome + " " + .connection.source_ip' <<<"$record")" = "delivered 10.77.0.10" ] || { echo "$record"; return 1; }
}
need jq jq
check "and delivers, from its source" delivered
check "and a client goes through it, from its source" tunnelled
ip netns pids "$inside" | while read -r pid; do
    if [ "$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -d' ' -f1)" = "$egressd" ]; then kill -TERM "$pid"; fi
done
wait "$traced" || true
allowed_calls() {
    # The unit's lines in their order: the first allows, the second takes away.
    local set
    systemd-analyze syscall-filter --no-pager | awk '/^@/ { set = $1 } /^ *[a-z_@]/ && !/^@/ { print set, $1 }' >"$scratch/sets"
    python3 - "$scratch/sets" "$home/calls" "$deploy/systemd/egressd.service" "$@" <<'PYTHON'
import re, sys
sets = {}
for line in open(sys.argv[1]):
    name, member = line.split()
    sets.setdefault(name, set()).add(member)
def members(name):
    return set().union(*(members(member) if member.startswith("@") else {member} for member in sets[name]))
allowed = set()
for line in open(sys.argv[3]):
    if match := re.match(r"SystemCallFilter=(~?)(.*)", line.strip()):
        named = set().union(*(members(name) for name in match[2].split()))
        allowed = allowed - named if match[1] else allowed | named
used = {line.split()[-1] for line in open(sys.argv[2]) if re.match(r"\s*[\d.]+\s+[\d.]+\s", line)} - {"total"}
used |= set(sys.argv[4:])
assert {"bind", "connect", "fdatasync"} <= used, f"not what a run looks like: {sorted(used)}"
if denied := used - allowed:
    sys.exit(f"the unit would deny: {' '.join(sorted(denied))}")
PYTHON
}
check "every system call that it makes is one that the unit allows" allowed_calls
refuses "one that it does not allow would be seen" "would deny: mount" allowed_calls mount

# The guard in front of it: the delivery goes through, another program's from the same address does not.
check "the guard is loaded from its configuration" there "$deploy/nftables/egressd-guard" --config "$home/egressd.toml" \
    --user "$user" --apply --rules "$deploy/nftables/guard.nft" --directory "$scratch/etc"
serving 2>"$scratch/serve.log" &
at_exit+=("kill $!")
check "behind the guard it serves" ready
check "and delivers" delivered
elsewhere() { there curl -s --max-time 5 --interface "$1" http://93.184.216.34:8080/whoami; }
check "another program is heard from the host's own address" elsewhere 10.77.0.2
refuses "and not from the source" "" elsewhere 10.77.0.10
check "ips --verify, as the service's user, sees the source as published" \
    as_service "$egressd" ips --config "$home/egressd.toml" --verify
unseen() { there "$egressd" ips --config "$home/egressd.toml" --verify | grep -F unverified; }
check "as another user it is not heard through the guard" unseen
nothing_dropped() {
    local dropped
    dropped=$(there nft -j list counters table inet egressd_guard |
        jq '[.nftables[].counter | select(. and .name != "foreign_user") | .packets] | add')
    [ "$dropped" = 0 ] || { there nft list counters table inet egressd_guard; return 1; }
}
check "nothing of the appliance's own was dropped" nothing_dropped

# Its metrics, after a bit of everything.
a_bit_of_everything() {
    send /_status/500 >/dev/null || true
    there "$egressd" send GET http://93.184.216.34:8081/ --wait >/dev/null || true
    there "$egressd" send GET http://169.254.169.254/ --wait >/dev/null || true
    there curl -s -H 'Content-Type: application/json' -d '[1]' http://127.0.0.1:8700/v1/sends >/dev/null
    through_a_tunnel http://93.184.216.34:8080/ >/dev/null
    through_a_tunnel http://169.254.169.254/ >/dev/null || true
    there curl -s -H 'Content-Type: application/json' -d '{"s3": {"bucket": "events", "prefix": "a", "payload": [1]}}' \
        http://127.0.0.1:8700/v1/sends >/dev/null
    in_time scraped '^egressd_batches_total' || return 1
    ip netns pids "$inside" | while read -r pid; do
        if [ "$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -d' ' -f1-2)" = "$egressd serve" ]; then kill -HUP "$pid"; fi
    done
    in_time scraped '^egressd_config_reloads_total'
}
scraped() { there curl -s http://127.0.0.1:8701/metrics >"$scratch/metrics" && grep -q "$1" "$scratch/metrics"; }
check "it delivers, fails, blocks, refuses and reloads" a_bit_of_everything
check "the reflector's word on its source comes" in_time scraped '^egressd_source_verified{source_ip="10.77.0.10"} 1'
check "/metrics has every metric of the list, with its type and labels, and no other" \
    python "$here/metric_names.py" scraped "$scratch/metrics"
check "promtool check metrics is clean" promtool check metrics <"$scratch/metrics"
grep -v egressd_held_sends "$scratch/metrics" | sed 's/egressd_queued_sends gauge/egressd_queued_sends counter/' >"$scratch/other-metrics"
refuses "a metric that is missing is seen" "the list has egressd_held_sends" python "$here/metric_names.py" scraped "$scratch/other-metrics"
refuses "and one of another type" "egressd_queued_sends is a counter" python "$here/metric_names.py" scraped "$scratch/other-metrics"
label_values() {
    grep -q '^egressd_config_reloads_total{result="ok"}' "$scratch/metrics"
    grep -q '^egressd_sends_refused_total{reason="shape"}' "$scratch/metrics"
    grep -q '^egressd_sends_total{outcome="delivered",code="none"}' "$scratch/metrics"
    grep -q '^egressd_tunnels_total{end="refused",code="policy_metadata"}' "$scratch/metrics"
    grep -q '^egressd_batches_total{kind="s3",outcome="delivered"}' "$scratch/metrics"
}
check "the labels that the rules ask for have the values that they ask for" label_values

# The manifests' configuration, on a host that has its addresses.
python "$here/manifests.py" "$deploy/kubernetes/egressd.yaml" "$scratch/manifests" >/dev/null
for address in 10.0.0.2/24 10.0.0.10/24 10.0.0.11/24; do ip -n "$inside" address add "$address" dev wan; done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=egressd -days 1 \
    -keyout "$scratch/manifests/tls.key" -out "$scratch/manifests/tls.crt" 2>/dev/null
sed -i "s#/etc/egressd-api/#$scratch/manifests/#g" "$scratch/manifests/egressd.toml"
check "egressd check accepts the manifests' configuration" there "$egressd" check --config "$scratch/manifests/egressd.toml"
ip -n "$inside" address delete 10.0.0.11/24 dev wan
refuses "and names a source that the host does not have" "10.0.0.11" \
    there "$egressd" check --config "$scratch/manifests/egressd.toml"

# Every command that the guides tell somebody to type is one that egressd takes: its help, asked after its arguments,
# comes only when those are understood.
told() {
    local line word command
    grep -hoE '`(runuser -u egressd -- )?egressd [^`]*`|^(runuser -u egressd -- )?egressd .*' "$@" |
        sed 's/`//g; s/^runuser -u egressd -- //' | sort -u >"$scratch/told"
    [ "$(wc -l <"$scratch/told")" -ge 5 ]
    while read -r line; do
        read -r -a command <<<"${line#egressd }"
        "$egressd" "${command[@]}" --help >/dev/null || { echo "not understood: $line"; return 1; }
    done <"$scratch/told"
}
check "every command in the guides is one that egressd understands" told "$deploy"/*.md "$deploy"/*/README.md
echo '`egressd tail --outcomes failed`, `egressd ips`, `egressd check`, `egressd ips --verify`, `egressd tail`' >"$scratch/wrong.md"
refuses "one that it does not is seen" "not understood: egressd tail --outcomes failed" told "$scratch/wrong.md"

# Prometheus itself, with these rules, on the process itself.
sed -e 's/scrape_interval: 15s/scrape_interval: 1s/; s/evaluation_interval: 15s/evaluation_interval: 1s/' \
    -e "s#- recording.yml#- $deploy/prometheus/recording.yml#; s#- alerts.yml#- $deploy/prometheus/alerts.yml#" \
    "$deploy/prometheus/prometheus.yml" >"$scratch/prometheus.yml"
mkdir "$scratch/prometheus"
there prometheus --config.file="$scratch/prometheus.yml" --storage.tsdb.path="$scratch/prometheus" \
    --web.listen-address=127.0.0.1:9090 >"$scratch/prometheus.log" 2>&1 &
at_exit+=("kill $!")
asks() { there curl -sf --get "http://127.0.0.1:9090/api/v1/$1" "${@:2}"; }
finds() { [ "$(asks query --data-urlencode "query=$1" | jq '.data.result | length')" -ge "$2" ]; }
check "Prometheus scrapes it" in_time finds 'egressd_build_info{job="egressd"} == 1' 1
check "and records from it" in_time finds 'instance:egressd_store_commit_seconds:p99_5m' 1
rules_work() {
    asks rules | jq -e '[.data.groups[].rules[]] | length > 25 and all(.health == "ok")' >/dev/null ||
        { asks rules | jq -r '.data.groups[].rules[] | select(.health != "ok") | .name + ": " + .health + " " + (.lastError // "")'; return 1; }
}
check "every rule evaluates without an error" in_time rules_work
quiet() { asks alerts | jq -e '.data.alerts == []' || { asks alerts; return 1; }; }
check "no alert is raised by a process that is well" in_time quiet
asked_for() { asks alerts | jq -e --arg name "$1" '[.data.alerts[].labels.alertname] | index($name)'; }

# Twenty ports, seventeen of them soon in use towards one receiver, and for a minute after that in TIME_WAIT.
ip netns exec "$outside" "$egressd" bin --listen 93.184.216.34:8082 >"$scratch/busy-receiver.log" 2>&1 &
at_exit+=("kill $!")
tightens() {
    there sysctl -qw net.ipv4.ip_local_port_range="40000 40019"
    jq -nc '[range(17) | {method: "GET", url: "http://93.184.216.34:8082/_delay/1000"}]' >"$scratch/seventeen"
    there curl -sf -H 'Content-Type: application/json' --data-binary @"$scratch/seventeen" http://127.0.0.1:8700/v1/sends >/dev/null
    in_time asked_for EgressdPortsNearlyUsedUp
}
check "EgressdPortsNearlyUsedUp comes up while there are ports left" tightens
none_failed() {
    scraped '^egressd_source_ports_used_ratio{source_ip="10.77.0.10"} 0.[89]'
    if grep -E '^egressd_source_ports_exhausted_total.* [1-9]' "$scratch/metrics"; then return 1; fi
    if asked_for EgressdPortsExhausted; then return 1; fi
}
check "and before any delivery fails for want of one" none_failed
there sysctl -qw net.ipv4.ip_local_port_range="32768 60999"

goes() {
    ip netns pids "$inside" | while read -r pid; do
        if [ "$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -d' ' -f1-2)" = "$egressd serve" ]; then kill -TERM "$pid"; fi
    done
    in_time asked_for EgressdDown
}
check "EgressdDown is raised when it goes" goes
