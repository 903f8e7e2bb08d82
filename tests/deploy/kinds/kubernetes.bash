# The manifests: valid by Kubernetes' own schemas, their configuration whole, and closed as far as the host's network lets
# them be.
need_python kubernetes-validate kubernetes-validate pyyaml
need_alone checkov checkov

manifests=$deploy/kubernetes/egressd.yaml
valid() { "$tools/venv/bin/kubernetes-validate" --strict "$@"; }
check "kubernetes-validate --strict accepts the manifests" valid "$manifests"
check "and by the schemas of an older version, too" valid -k 1.30 "$manifests"
sed 's/hostNetwork: true/hostNetworking: true/' "$manifests" >"$scratch/unknown.yaml"
refuses "an unknown field is refused" "hostNetworking" valid "$scratch/unknown.yaml"
sed 's/replicas: 1/replicas: one/' "$manifests" >"$scratch/typed.yaml"
refuses "a wrong type is refused" "one" valid "$scratch/typed.yaml"

# Left out, with reasons: CKV_K8S_11, a CPU limit (throttled, a delivery outlives its deadline); CKV_K8S_19, 26 and
# CKV2_K8S_6, the host's network, its ports, and the NetworkPolicy that does not reach it (sources are the host's).
judged() {
    "$tools/venv-checkov/bin/checkov" --skip-download --quiet --compact --framework kubernetes \
        --skip-check CKV_K8S_11,CKV_K8S_19,CKV_K8S_26,CKV2_K8S_6 -f "$1"
}
check "checkov has no objection" judged "$manifests"
sed 's/allowPrivilegeEscalation: false/allowPrivilegeEscalation: true/' "$manifests" >"$scratch/escalating.yaml"
refuses "a container that may escalate is objected to" "CKV_K8S_20" judged "$scratch/escalating.yaml"

held() { python "$here/manifests.py" "$1" "$scratch/configuration"; }
check "the pod is closed, on the host's network, and what it mounts is there" held "$manifests"
sed 's/drop: \[ALL\]/drop: []/' "$manifests" >"$scratch/open.yaml"
refuses "a pod that keeps its capabilities is refused" "capabilities" held "$scratch/open.yaml"
sed 's/name: scratch, mountPath/name: scratched, mountPath/' "$manifests" >"$scratch/unmounted.yaml"
refuses "a mount of nothing is refused" "scratched" held "$scratch/unmounted.yaml"
sed 's/containerPort: 8701, hostPort: 8701/containerPort: 8704, hostPort: 8704/' "$manifests" >"$scratch/port.yaml"
refuses "a port on which nothing listens is refused" "nothing listens on 10.0.0.2:8704" held "$scratch/port.yaml"
sed '/name: proxy, containerPort/d' "$manifests" >"$scratch/hidden.yaml"
refuses "and a listener that is no port of the pod" "10.0.0.2:8703 is listened on" held "$scratch/hidden.yaml"

guarded() { "$deploy/nftables/egressd-guard" --config "$scratch/configuration/egressd.toml" --user 65532 | grep -F 'elements = { 10.0.0.10, 10.0.0.11 }'; }
held "$manifests" >/dev/null
check "the guard's sets come from the configuration in the manifests" guarded

tier=$deploy/kubernetes/tier.yaml
check "kubernetes-validate --strict accepts the tier's manifests" valid "$tier"
check "checkov has no objection to them" judged "$tier"
machines() { # machines FILE: each machine's configuration is whole, its sources are its own and stand in the list
    python - "$1" <<'PYTHON'
import sys, tomllib, yaml
maps = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one["kind"] == "ConfigMap"]
data = maps[0]["data"]
listed = [line for line in data["public-ips.txt"].split("\n") if line and not line.startswith("#")]
seen = []
for name, text in data.items():
    if name.endswith(".toml"):
        config = tomllib.loads(text)
        assert config["node"] + ".toml" == name, f"{name} is of node {config['node']}"
        assert config["store"]["engine"] == "postgres", name
        seen += [source["public"] for source in config["egress"]["source"]]
assert sorted(seen) == sorted(listed), f"{seen} and the list {listed}"
PYTHON
}
check "each machine has sources of its own, and all of them are published" machines "$tier"
sed 's/public = "198.51.100.12"/public = "198.51.100.11"/' "$tier" >"$scratch/twice.yaml"
refuses "a source that two machines have is refused" "198.51.100.12" machines "$scratch/twice.yaml"
