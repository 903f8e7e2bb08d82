# The unit: does systemd know every key, is it as closed as promised, is the account it names there.
need systemd-analyze systemd

# `verify` wants the programs that a unit starts to exist: a stand-in takes the place of the binary.
printf '#!/bin/sh\n' >"$scratch/egressd"
chmod +x "$scratch/egressd"
installed_unit() { # installed_unit FROM NAME
    sed "s#/usr/local/s\?bin/egressd[a-z-]*#$scratch/egressd#" "$1" >"$scratch/$2"
}
installed_unit "$deploy/systemd/egressd.service" egressd.service
check "systemd-analyze verify accepts egressd.service" \
    systemd-analyze verify --recursive-errors=yes "$scratch/egressd.service"

for unit in egressd-guard egressd-addresses; do
    installed_unit "$deploy/systemd/$unit.service" "$unit.service"
    check "and $unit.service" systemd-analyze verify --recursive-errors=yes "$scratch/$unit.service"
done

mkdir -p "$scratch/egressd.service.d"
installed_unit "$deploy/systemd/egressd-guard.conf" egressd.service.d/guard.conf
check "and egressd.service with the guard's drop-in" \
    systemd-analyze verify --recursive-errors=yes "$scratch/egressd.service"
sed -i 's/^ExecReload=+/ExecReloading=+/' "$scratch/egressd.service.d/guard.conf"
refuses "an unknown key in the drop-in is refused" "Unknown key.*ExecReloading" \
    systemd-analyze verify --recursive-errors=yes "$scratch/egressd.service"
rm -r "$scratch/egressd.service.d"

exposure() { systemd-analyze security --offline=true --threshold="$2" "$1"; }
check "its exposure is at most 2.0" exposure "$deploy/systemd/egressd.service" 20

{ cat "$deploy/systemd/egressd.service"; echo "[Service]"; echo "WatchDogSeconds=30"; } >"$scratch/unknown.in"
installed_unit "$scratch/unknown.in" unknown-key.service
refuses "a unit with an unknown key is refused" "Unknown key.*WatchDogSeconds" \
    systemd-analyze verify --recursive-errors=yes "$scratch/unknown-key.service"
sed 's/^ProtectSystem=.*//; s/^PrivateUsers=.*//; s/^CapabilityBoundingSet=.*//; s/^SystemCallFilter=.*//' \
    "$deploy/systemd/egressd.service" >"$scratch/open.service"
refuses "a unit without its walls is over the threshold" "Overall exposure level" exposure "$scratch/open.service" 20

unit_says() { # unit_says KEY=VALUE…: each stands in the unit, as systemd reads it
    local line
    for line in "$@"; do
        grep -qxF -- "$line" "$deploy/systemd/egressd.service" || { echo "missing: $line"; return 1; }
    done
}
check "the unit waits for readiness, has a watchdog, checks before it reloads by SIGHUP, restarts on what may pass alone" \
    unit_says Type=notify NotifyAccess=main WatchdogSec=30 'ExecReload=/bin/kill -HUP $MAINPID' \
    'ExecReload=/usr/local/bin/egressd check --config /etc/egressd/egressd.toml' Restart=on-failure \
    StartLimitIntervalSec=0 RestartPreventExitStatus=2 StateDirectory=egressd User=egressd LimitNOFILE=131072

sysusers() {
    local there=$scratch/sysusers
    mkdir -p "$there/etc"
    systemd-sysusers --root="$there" "$1"
    grep -q '^egressd:' "$there/etc/passwd"
}
check "systemd-sysusers makes the account that the unit runs as" sysusers "$deploy/systemd/egressd.sysusers.conf"
echo 'u egress+d - "wrong"' >"$scratch/bad.sysusers.conf"
refuses "an account with a wrong name is refused" "not a valid user" sysusers "$scratch/bad.sysusers.conf"
