# The manifests: valid by Kubernetes' own schemas, their configuration whole, and closed as far as the host's network lets
# them be.
need_python kubernetes-validate kubernetes-validate pyyaml

manifests=$deploy/kubernetes/egressd.yaml
valid() { "$tools/venv/bin/kubernetes-validate" --strict "$@"; }
check "kubernetes-validate --strict accepts the manifests" valid "$manifests"
check "and by the schemas of an older version, too" valid -k 1.30 "$manifests"
sed 's/hostNetwork: true/hostNetworking: true/' "$manifests" >"$scratch/unknown.yaml"
refuses "an unknown field is refused" "hostNetworking" valid "$scratch/unknown.yaml"
sed 's/replicas: 1/replicas: one/' "$manifests" >"$scratch/typed.yaml"
refuses "a wrong type is refused" "one" valid "$scratch/typed.yaml"

held() { python "$here/manifests.py" "$1" "$scratch/configuration"; }
check "the pod is closed, on the host's network, and what it mounts is there" held "$manifests"
sed 's/drop: \[ALL\]/drop: []/' "$manifests" >"$scratch/open.yaml"
refuses "a pod that keeps its capabilities is refused" "capabilities" held "$scratch/open.yaml"
sed 's/name: scratch, mountPath/name: scratched, mountPath/' "$manifests" >"$scratch/unmounted.yaml"
refuses "a mount of nothing is refused" "scratched" held "$scratch/unmounted.yaml"
sed 's/containerPort: 8701, hostPort: 8701/containerPort: 8703, hostPort: 8703/' "$manifests" >"$scratch/port.yaml"
refuses "a port on which nothing listens is refused" "8703" held "$scratch/port.yaml"

guarded() { "$deploy/nftables/egressd-guard" --config "$scratch/configuration/egressd.toml" --user 65532 | grep -F 'elements = { 10.0.0.10, 10.0.0.11 }'; }
held "$manifests" >/dev/null
check "the guard's sets come from the configuration in the manifests" guarded
