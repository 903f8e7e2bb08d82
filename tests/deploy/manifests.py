"""What no schema says of the manifests.

manifests.py FILE DIRECTORY      prints each problem; writes the ConfigMap's files into DIRECTORY
"""

import sys
import tomllib
from pathlib import Path

import yaml


def problems(documents, directory):
    found = {document["kind"]: document for document in documents}
    pod = found["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    closed = container["securityContext"]
    if not pod.get("hostNetwork"):
        yield "hostNetwork: sources are the host's addresses"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: nothing here calls Kubernetes"
    if (
        not pod["securityContext"].get("runAsNonRoot")
        or pod["securityContext"].get("seccompProfile", {}).get("type") != "RuntimeDefault"
    ):
        yield "securityContext: not root, and under seccomp"
    if closed.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "capabilities: none is needed"
    if closed.get("allowPrivilegeEscalation") is not False or closed.get("readOnlyRootFilesystem") is not True:
        yield "securityContext: no escalation, a read-only root"
    if "cpu" in container["resources"].get("limits", {}):
        yield "resources: a CPU limit throttles, and a throttled delivery outlives its deadline"

    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            yield f"volumeMounts: there is no volume {mount['name']}"

    directory.mkdir(parents=True, exist_ok=True)
    for name, text in found["ConfigMap"]["data"].items():
        (directory / name).write_text(text)
    config = tomllib.loads(found["ConfigMap"]["data"]["egressd.toml"])
    listening = {config[table]["listen"] for table in ("api", "metrics", "publish", "proxy") if table in config}
    opened = {f"{port['hostIP']}:{port['hostPort']}" for port in container["ports"]}
    for address in opened - listening:
        yield f"ports: nothing listens on {address}"
    for address in listening - opened:
        yield f"ports: {address} is listened on, and no port of the pod"
    for port in found["Service"]["spec"]["ports"]:
        if port["targetPort"] not in {known["name"] for known in container["ports"]}:
            yield f"Service: the pod has no port {port['targetPort']}"
    names = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container[probe]["httpGet"]["port"] not in names:
            yield f"{probe}: there is no port {container[probe]['httpGet']['port']}"
    if pod["terminationGracePeriodSeconds"] <= 10:
        yield "terminationGracePeriodSeconds: the drain takes 10 s"
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in (
        ("Service", found["Service"]["spec"]["selector"]),
        ("StatefulSet", found["StatefulSet"]["spec"]["selector"]["matchLabels"]),
        ("PodDisruptionBudget", found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
    ):
        if not selector.items() <= labels.items():
            yield f"{kind}: its selector {selector} does not select the pod"


FOUND = list(problems(list(yaml.safe_load_all(Path(sys.argv[1]).read_text())), Path(sys.argv[2])))
print("\n".join(FOUND))
sys.exit(1 if FOUND else 0)
