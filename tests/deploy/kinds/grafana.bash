# The dashboard: it is what its program writes, Prometheus takes every expression, and Grafana's own types take its shape.
need promtool prometheus
need npm npm
need_python python pyyaml

dashboard=$deploy/grafana/egressd.json
need_npm() {
    [ -d "$tools/npm/node_modules/@grafana/schema" ] && [ -x "$tools/npm/node_modules/.bin/tsc" ] && return
    mkdir -p "$tools/npm"
    npm install --prefix "$tools/npm" --no-audit --no-fund --silent @grafana/schema typescript >/dev/null
}
need_npm

generated() { python "$deploy/grafana/dashboard.py" | diff - "$dashboard"; }
check "egressd.json is what dashboard.py writes" generated

# As rules, so that promtool parses them: Grafana's variables give way to what they would be.
as_rules() {
    python - "$1" <<'PYTHON'
import json, sys
expressions = []
def walk(value):
    if isinstance(value, dict):
        expressions.extend([value["expr"]] if "expr" in value else [])
        for inner in value.values():
            walk(inner)
    elif isinstance(value, list):
        for inner in value:
            walk(inner)
walk(json.load(open(sys.argv[1])))
assert len(expressions) > 20, f"only {len(expressions)} expressions"
rules = [{"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$instance", ".+")}
         for number, text in enumerate(expressions)]
json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
PYTHON
}
parsed() { as_rules "$1" >"$scratch/panels.yml" && promtool check rules "$scratch/panels.yml"; }
check "Prometheus parses every expression" parsed "$dashboard"
check "every metric and label in them exists" python "$here/metric_names.py" expressions "$dashboard"
shows_all() {
    local name
    for name in $(sed 's/#.*//' "$here/metrics.txt" "$here/metrics-of-tiers.txt" | awk 'NF { print $1 }'); do
        grep -q "$name" "$dashboard" || { echo "$name is on no panel"; return 1; }
    done
}
check "every metric is on a panel" shows_all

typed() {
    local there=$scratch/typed
    mkdir -p "$there"
    ln -sfn "$tools/npm/node_modules" "$there/node_modules"
    {
        # JSON has no enumerations: the two whose values are text are written as what they are.
        echo 'import { type Dashboard, MappingType, ThresholdsMode } from "@grafana/schema";'
        printf 'export const dashboard = %s satisfies Dashboard;\n' "$(sed \
            's/"mode": "absolute"/"mode": ThresholdsMode.Absolute/; s/"type": "value"/"type": MappingType.ValueToText/' "$1")"
    } >"$there/dashboard.ts"
    cd "$there"
    node_modules/.bin/tsc --noEmit --strict --skipLibCheck --target es2022 --module nodenext --moduleResolution nodenext dashboard.ts
}
check "its shape is Grafana's (tsc: satisfies Dashboard)" typed "$dashboard"

sed 's/"schemaVersion"/"schemeVersion"/' "$dashboard" >"$scratch/misshapen.json"
refuses "a dashboard of the wrong shape is refused" "schemeVersion" typed "$scratch/misshapen.json"
sed 's/sum (rate(egressd_sends_accepted_total/sum (rate((egressd_sends_accepted_total/' "$dashboard" >"$scratch/unparsed.json"
refuses "an expression that does not parse is refused" "parse error" parsed "$scratch/unparsed.json"
sed 's/egressd_held_sends/egressd_holding_sends/' "$dashboard" >"$scratch/misnamed.json"
refuses "a wrong metric name is refused" "no such metric: egressd_holding_sends" \
    python "$here/metric_names.py" expressions "$scratch/misnamed.json"
