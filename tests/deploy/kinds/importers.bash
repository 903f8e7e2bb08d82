# The list is read by programs that were written for Google's: a Python library, Terraform and jq, as firewall owners use
# them, on what egressd itself publishes.
need jq jq
need curl curl
need_egressd
# Reads Google's cloud.json into a table of networks; made by others, and knows nothing of us.
need_python python cloudcheck==7.2.11
command -v terraform >/dev/null || { echo "terraform is missing: no Debian package brings it" >&2; exit 1; }
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1

mkdir -p "$scratch/published" "$scratch/www"
printf '[egress]\n[[egress.source]]\npublic = "127.0.0.2"\n' >"$scratch/published/egressd.toml"
printf '%s\n' 127.0.0.2 '198.51.100.11 announced=2026-01-01 active=2026-01-08' \
    '198.51.100.12 announced=2026-01-01 active=2999-01-08' 2001:db8:100::10 >"$scratch/published/public-ips.txt"
list=$scratch/www/public-ips.json
published() { "$egressd" ips --config "$scratch/published/egressd.toml" --format json >"$list"; }
check "egressd ips writes the list" published
started python3 -c '
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.HTTPServer(("127.0.0.1", 0), handler)
print(server.server_port, flush=True)
server.serve_forever()' "$scratch/www"
url=http://127.0.0.1:$line/public-ips.json

imported() { # by cloudcheck: the class it has for Google, its request headers, its parser, its look-up
    python - "$1" <<'PYTHON'
import sys
import httpx
from cloudcheck.providers.base import base_headers
from cloudcheck.providers.google import Google

google = Google(None)
response = httpx.get(sys.argv[1], follow_redirects=True, headers=base_headers)
google.update_ranges(google.parse_response(response))
assert len(google.ranges) == 4, google.ranges
for address in ("127.0.0.2", "198.51.100.11", "198.51.100.12", "2001:db8:100::10"):
    assert google.check(address), f"{address} is not in what was imported"
for address in ("198.51.100.13", "2001:db8:100::11"):
    assert not google.check(address), f"{address} is in what was imported"
PYTHON
}
check "cloudcheck, written for Google's list, imports it over HTTP" imported "$url"

# As the world has it: from the listener of an appliance that serves.
cat >>"$scratch/published/egressd.toml" <<'TOML'
[api]
listen = "127.0.0.1:0"
[metrics]
listen = "127.0.0.1:0"
[publish]
listen = "127.0.0.1:0"
[store]
path = "store"
key_file = "store/key"
TOML
"$egressd" serve --config "$scratch/published/egressd.toml" 2>"$scratch/serve.log" &
at_exit+=("kill $!")
ready() { published_at=$(jq -r 'select(.fields.message == "ready") | .fields.publish' "$scratch/serve.log" | grep -oE '127[0-9.:]+'); }
in_time ready || { cat "$scratch/serve.log"; exit 1; }
check "and from the [publish] listener of one that serves" imported "http://$published_at/public-ips.json"
same() { curl -sf "http://$published_at/public-ips.json" | jq -c .prefixes | diff - <(jq -c .prefixes "$list"); }
check "which has the same prefixes" same
jq 'del(.prefixes[] | .ipv4Prefix)' "$list" >"$scratch/www/other.json"
refuses "and would not import a list of another shape" "KeyError" imported "${url%public-ips.json}other.json"

by_jq() {
    local got
    got=$(jq -r '.prefixes[] | .ipv4Prefix // .ipv6Prefix' "$list")
    [ "$got" = $'127.0.0.2/32\n198.51.100.11/32\n198.51.100.12/32\n2001:db8:100::10/128' ] || { echo "$got"; return 1; }
}
check "jq, with the filter that is used for Google's" by_jq

applied() { # applied LIST: the receiver's module, for real, since it has no provider
    local there=$scratch/receiver-$RANDOM
    cp -r "$deploy/terraform/receiver" "$there"
    cd "$there"
    terraform init -no-color >/dev/null
    terraform apply -no-color -auto-approve -var "list=$(cat "$1")" >/dev/null
    terraform output -json >outputs.json
    [ "$(jq -c '[.ipv4.value, .ipv6.value]' outputs.json)" = \
        '[["127.0.0.2/32","198.51.100.11/32","198.51.100.12/32"],["2001:db8:100::10/128"]]' ] || { cat outputs.json; return 1; }
    [ "$(jq -r .sync_token.value outputs.json)" = "$(jq -r .syncToken "$list")" ]
}
check "terraform, by the module for receivers" applied "$list"
echo '{"syncToken": "1", "prefixes": []}' >"$scratch/empty.json"
refuses "which refuses an empty list, or nobody would be admitted" "admit nobody" applied "$scratch/empty.json"
