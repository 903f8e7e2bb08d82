# What a tier needs around it: the balancer's configuration, the database's settings, access list and role.
need haproxy haproxy
need psql postgresql
need_egressd

tier=$deploy/tier
check "haproxy accepts the balancer's configuration" haproxy -c -f "$tier/haproxy.cfg"
sed 's/option httpchk GET/option httpcheck GET/' "$tier/haproxy.cfg" >"$scratch/haproxy.cfg"
refuses "an unknown option of it is refused" "httpcheck" haproxy -c -f "$scratch/haproxy.cfg"

# In a place that the user postgres may enter.
scratch=$(mktemp -d /tmp/egressd-tier.XXXXXX)
chmod 0755 "$scratch"
programs=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -1)
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env -i PATH="$programs:$PATH" LC_ALL=C.UTF-8 "$@"; }
# A database as the files have it, but for its place, its memory and its certificate; standbys it has none here.
database() { # database PORT SETTINGS
    install -d -o postgres "$scratch/$1" && cd "$scratch/$1"
    as_postgres initdb -D data -U postgres -A trust --no-sync --no-instructions >initdb.log
    sed -e 's/^shared_buffers.*/shared_buffers = 64MB/; s/^ssl = .*/ssl = off/; s/^max_wal_size.*/max_wal_size = 1GB/' \
        -e "s/^synchronous_standby_names.*/synchronous_standby_names = ''/" "$2" >>data/postgresql.conf
    sed 's/^hostssl/host/; s#10.0.0.2/32 #127.0.0.1/32#; s/peer$/trust/' "$tier/pg_hba.conf" >data/pg_hba.conf
    as_postgres pg_ctl start -s -w -D data -l log \
        -o "-c listen_addresses=127.0.0.1 -c port=$1 -c unix_socket_directories=$scratch/$1"
}
stop_database() { cd "$scratch/$1" && as_postgres pg_ctl stop -s -w -m immediate -D data; }
at_exit+=("for data in $scratch/*/data; do as_postgres pg_ctl stop -s -m immediate -D \$data 2>/dev/null; done; rm -rf $scratch")

check "PostgreSQL starts with the settings and the access list" database 15871 "$tier/postgresql.conf"
roles() { psql -q -h "$scratch/$1" -p "$1" -U postgres -v password=secret -f "$tier/roles.sql"; }
check "the role and its database are made" roles 15871
printf secret >"$scratch/password" && chmod 0600 "$scratch/password"
node() { # node PORT: the tier's configuration, at this database
    mkdir -p "$scratch/node"
    printf '127.0.0.1\n' >"$scratch/node/public-ips.txt"
    sed -e "s#^url = .*#url = \"postgres://egressd@127.0.0.1:$1/egressd\"#; s#^password_file.*#password_file = \"$scratch/password\"#" \
        -e "s#^key_file.*#key_file = \"$scratch/node/key\"#; /^tls/d; s#10\.0\.0\.2:#127.0.0.1:#" \
        -e 's#^public = .*#public = "127.0.0.1"#; s#^bind = .*#bind = "127.0.0.1"#' "$tier/egressd.toml" >"$scratch/node/egressd.toml"
    "$egressd" check --config "$scratch/node/egressd.toml"
}
check "egressd check finds nothing wrong with either, by that role" node 15871
may() { PGPASSWORD=secret psql -q -h 127.0.0.1 -p 15871 -U egressd "$@"; }
refuses "the role may not make a role" "permission denied" may egressd -c 'CREATE ROLE other'
refuses "nor enter another database" "no pg_hba.conf entry" may postgres -c 'SELECT 1'
check "it sees how old others' transactions are" may egressd -c "SELECT xact_start FROM pg_stat_activity"
(stop_database 15871)
sed 's/^synchronous_commit = on/synchronous_commit = off/; s/^fsync = on/fsync = off/' "$tier/postgresql.conf" >"$scratch/lying.conf"
check "PostgreSQL starts with its syncs off" database 15872 "$scratch/lying.conf"
roles 15872
refuses "and egressd check does not take it" "fsync = off" node 15872
(stop_database 15872)
