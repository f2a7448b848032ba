#!/usr/bin/env python3
"""Holds deploy/kubernetes and deploy/compose against the schemas of those who read them, and against each other.

    tests/manifests.py target/release/tunnelwarden

Each kustomization is built and each object of it validated, strictly, against the API of the oldest Kubernetes that is
supported and of the newest that is known. Then: what is referred to by name has to be there, and every configuration
has to pass `check --strict` where it would be mounted. The schemas are those of two packages from PyPI, fetched into
target/manifests/ on the first run; the rest needs no network and no cluster. Where there is a kubectl, what it builds
has to be the same. Exit status: 0 passed, 1 failed, 2 wrong usage.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import checks
from checks import ROOT, holds

KUBERNETES, COMPOSE, CONTAINER = (ROOT / "deploy" / name for name in ("kubernetes", "compose", "container"))
PACKAGES = ["kubernetes-validate==1.37.0", "compose-spec==0.2.1", "PyYAML==6.0.4"]

# Sidecars are in 1.29; that a pod may wait before it stops without a shell to do so, in 1.30.
VERSIONS = ("1.30", "1.37")
USER = 10053
JOB = "your-build:1"


def main(arguments):
    if len(arguments) != 1 or not os.access(arguments[0], os.X_OK):
        print(__doc__, file=sys.stderr)
        return 2
    binary = Path(arguments[0]).resolve()
    kustomizations = sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))
    holds("there are kustomizations", len(kustomizations) >= 5)
    schemas_can_say_no()
    for folder in kustomizations:
        objects = build(folder)
        same_as_kubectl(folder, objects)
        validate(folder, objects)
        refer(folder, objects)
        configure(folder, objects, binary)
    coredns()
    both_files_of_the_sidecar_agree()
    for path in sorted(COMPOSE.glob("*.yaml")):
        compose(path)
    holds(f"{CONTAINER}/tunnelwarden.toml is sound", is_sound(binary, CONTAINER / "tunnelwarden.toml"))
    print(f"manifests: {checks.passed} passed")
    return 0


# -- kustomize, as far as it is used


def build(folder):
    """The objects of a kustomization. A key that is not known here is a failure, never left out."""
    known = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "generatorOptions", "replicas"}
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    holds(f"{folder}: keys are known: {kustomization.keys() - known}", kustomization.keys() <= known)
    objects = []
    for resource in kustomization["resources"]:
        path = folder / resource
        objects += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for generator in kustomization.get("configMapGenerator", []):
        generate(folder, generator, objects)
    for wanted in kustomization.get("replicas", []):
        found = [thing for thing in objects if thing["kind"] == "Deployment" and name_of(thing) == wanted["name"]]
        holds(f"{folder}: one {wanted['name']} to be multiplied", len(found) == 1)
        found[0]["spec"]["replicas"] = wanted["count"]
    for thing in objects:
        if "namespace" in kustomization and thing["kind"] != "Namespace":
            thing["metadata"]["namespace"] = kustomization["namespace"]
    if any("behavior" not in generator for generator in kustomization.get("configMapGenerator", [])):
        holds(f"{folder}: names have no suffix", kustomization["generatorOptions"] == {"disableNameSuffixHash": True})
    return objects


def generate(folder, generator, objects):
    data = {Path(file).name: (folder / file).read_text() for file in generator["files"]}
    same = [thing for thing in objects if thing["kind"] == "ConfigMap" and name_of(thing) == generator["name"]]
    if generator.get("behavior") == "merge":
        holds(f"{folder}: there is {generator['name']} to be merged with", len(same) == 1)
        same[0]["data"] |= data
    else:
        holds(f"{folder}: {generator['name']} is new", not same and "behavior" not in generator)
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})


def same_as_kubectl(folder, objects):
    if shutil.which("kubectl") is None:
        return
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    holds(f"{folder}: kubectl builds it: {built.stderr}", built.returncode == 0)
    key = lambda thing: json.dumps(thing, sort_keys=True)
    theirs, ours = (sorted(map(key, things)) for things in (yaml.safe_load_all(built.stdout), objects))
    holds(f"{folder}: kubectl builds the same", theirs == ours)


# -- the API


def validate(folder, objects):
    for thing in objects:
        for version in VERSIONS:
            error = refusal(thing, version)
            holds(f"{folder}: {thing['kind']} {name_of(thing)}, {version}: {error}", error is None)


def refusal(thing, version):
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return error.message
    return None


def schemas_can_say_no():
    """What is nearly right is refused, or these checks would mean nothing."""
    good = yaml.safe_load((KUBERNETES / "sidecar/job.yaml").read_text())
    holds("the job is sound", refusal(good, VERSIONS[0]) is None)

    def broken(change):
        thing = copy.deepcopy(good)
        change(thing["spec"]["template"]["spec"]["initContainers"][1])
        return refusal(thing, VERSIONS[0]) is not None

    holds("an unknown key is refused", broken(lambda sidecar: sidecar.update(startUpProbe={})))
    holds("a list has to be one", broken(lambda sidecar: sidecar["securityContext"]["capabilities"].update(drop="ALL")))
    holds("a number has to be one", broken(lambda sidecar: sidecar["startupProbe"].update(periodSeconds="1s")))
    holds("so in compose", compose_refusal("services: {a: {image: b, read_onli: true}}") is not None)


# -- what is referred to


def refer(folder, objects):
    of_kind = lambda kind: [thing for thing in objects if thing["kind"] == kind]
    maps = {name_of(thing): thing["data"] for thing in of_kind("ConfigMap")}
    templates = [thing["spec"]["template"] for thing in objects if "template" in thing.get("spec", {})]
    holds(f"{folder}: something runs", len(templates) == 1)
    template = templates[0]
    pod, labels = template["spec"], template["metadata"]["labels"]
    containers = pod.get("initContainers", []) + pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    ports = {(port["name"], port["protocol"]) for container in containers for port in container.get("ports", [])}

    for volume in volumes.values():
        if source := volume.get("configMap"):
            holds(f"{folder}: ConfigMap {source['name']}", source["name"] in maps)
            keys = {item["key"] for item in source.get("items", [])}
            holds(f"{folder}: keys {keys}", keys <= maps[source["name"]].keys())
    for container in containers:
        the_container(folder, pod, container, volumes, ports)
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    holds(f"{folder}: every volume is mounted", volumes.keys() == mounted)

    selects = lambda selector: selector.items() <= labels.items()
    for thing in of_kind("Deployment") + of_kind("DaemonSet"):
        holds(f"{folder}: {name_of(thing)} selects its pods", selects(thing["spec"]["selector"]["matchLabels"]))
    for spread in pod.get("topologySpreadConstraints", []):
        holds(f"{folder}: what is spread", selects(spread["labelSelector"]["matchLabels"]))
    for thing in of_kind("PodDisruptionBudget"):
        holds(f"{folder}: the budget's pods", selects(thing["spec"]["selector"]["matchLabels"]))
    for thing in of_kind("NetworkPolicy"):
        holds(f"{folder}: the policy's pods", selects(thing["spec"]["podSelector"]["matchLabels"]))
        named = {(port["port"], port["protocol"]) for rule in thing["spec"]["ingress"] for port in rule["ports"]}
        holds(f"{folder}: the policy's ports are all there are", named == ports)
    for thing in of_kind("Service"):
        holds(f"{folder}: the service's pods", selects(thing["spec"]["selector"]))
        served = thing["spec"]["ports"]
        holds(f"{folder}: the service's ports", {(port["targetPort"], port["protocol"]) for port in served} <= ports)
        both = {(53, "UDP"), (53, "TCP")}
        holds(f"{folder}: DNS over both", {(port["port"], port["protocol"]) for port in served} == both)
    within = {thing["metadata"]["namespace"] for thing in objects if thing["kind"] != "Namespace"}
    holds(f"{folder}: its namespace", within == {name_of(thing) for thing in of_kind("Namespace")})


def the_container(folder, pod, container, volumes, ports):
    """What a container may and mounts; ours are the images that are built here, with the user of the image."""
    where = f"{folder}: {container['name']}"
    context = pod.get("securityContext", {}) | container["securityContext"]
    rights = context["capabilities"]
    holds(f"{where}: no right that is not named", rights["drop"] == ["ALL"])
    for mount in container.get("volumeMounts", []):
        holds(f"{where}: volume {mount['name']}", mount["name"] in volumes)
        holds(f"{where}: the folder, or changes do not come", "subPath" not in mount)
    if container["image"] == JOB:
        holds(f"{where}: a job has no right", "add" not in rights and context["allowPrivilegeEscalation"] is False)
        holds(f"{where}: a job has not our user", context["runAsUser"] not in (0, USER))
        holds(f"{where}: a job has not our state", "volumeMounts" not in container)
        return
    holds(f"{where}: image {container['image']}", container["image"] in images())
    holds(f"{where}: read-only root", context["readOnlyRootFilesystem"] is True)
    # The program's file in this image has both, and is not started where one may not be had.
    needs = {"NET_ADMIN", "NET_BIND_SERVICE"} if container["image"].endswith("-appliance") else set()
    holds(f"{where}: rights {rights}", set(rights.get("add", [])) == needs)
    if context["runAsUser"] != 0:
        holds(f"{where}: the image's user", (context["runAsUser"], context["runAsGroup"]) == (USER, USER))
        holds(f"{where}: rights of a file", context["allowPrivilegeEscalation"] is bool(needs))
    runs = "args" not in container
    probes = [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]
    holds(f"{where}: probes", bool(probes) is runs)
    for probe in probes:
        if "exec" in probe:
            holds(f"{where}: the image's healthcheck", probe["exec"]["command"] == healthcheck())
        else:
            holds(f"{where}: port {probe['httpGet']['port']}", (probe["httpGet"]["port"], "TCP") in ports)
            holds(f"{where}: page", probe["httpGet"]["path"] in ("/livez", "/readyz"))
    if "initContainers" in pod and runs:
        is_sidecar = container.get("restartPolicy") == "Always" and "startupProbe" in container
        holds(f"{where}: a sidecar, before the job", is_sidecar)


def images():
    """The tags that the Dockerfile's head builds, with the version of the package."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    built = re.findall(r"--target (\S+) -t (\S+)", (CONTAINER / "Dockerfile").read_text())
    tag = f"tunnelwarden:{version}"
    holds("the images' tags", dict(built) == {"resolver": tag, "appliance": f"{tag}-appliance"})
    return [tag for _, tag in built]


def healthcheck():
    commands = set(re.findall(r"^HEALTHCHECK .*CMD (.*)$", (CONTAINER / "Dockerfile").read_text(), re.MULTILINE))
    holds("one healthcheck for both images", len(commands) == 1)
    return json.loads(commands.pop())


def coredns():
    """CoreDNS asks the address that the service has."""
    address = yaml.safe_load((KUBERNETES / "resolver/service.yaml").read_text())["spec"]["clusterIP"]
    asked = re.findall(r"^\s*forward \. (.*) \{$", (KUBERNETES / "coredns/Corefile").read_text(), re.MULTILINE)
    holds(f"CoreDNS asks {address} and nobody else: {asked}", asked == [address])


# -- configurations


def configure(folder, objects, binary):
    """Every ConfigMap as the kubelet lays it out, and the configuration in it held against the ports of the pod."""
    template = next(thing for thing in objects if "template" in thing.get("spec", {}))["spec"]["template"]["spec"]
    data = {name_of(thing): thing["data"] for thing in objects if thing["kind"] == "ConfigMap"}
    source = next(volume["configMap"] for volume in template["volumes"] if "configMap" in volume)
    files = data[source["name"]]
    places = {item["path"]: files[item["key"]] for item in source["items"]} if "items" in source else files
    with tempfile.TemporaryDirectory() as mounted:
        for place, text in places.items():
            path = Path(mounted) / place
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        for path in Path(mounted).glob("*.toml"):
            holds(f"{folder}: {path.name} is sound", is_sound(binary, path))
    containers = template.get("initContainers", []) + template["containers"]
    ours = next(container for container in containers if container["name"] == "tunnelwarden")
    listen = tomllib.loads(places["tunnelwarden.toml"])["listen"]
    if numbers := {port["name"]: port["containerPort"] for port in ours.get("ports", [])}:
        heard = {int(address.rsplit(":", 1)[1]) for address in listen["dns"]}
        holds(f"{folder}: listens where it is asked", heard == {numbers["dns"]} == {numbers["dns-tcp"]})
        holds(f"{folder}: health where it is probed", listen["admin"] == f"0.0.0.0:{numbers['admin']}")
    else:
        holds(f"{folder}: health for nobody outside", listen["admin"].startswith("127.0.0.1:"))


def is_sound(binary, path):
    found = subprocess.run([binary, "check", "--strict", "--config", path], capture_output=True, text=True)
    print(found.stderr, end="", file=sys.stderr)
    return found.returncode == 0


def both_files_of_the_sidecar_agree():
    read = lambda name: tomllib.loads((KUBERNETES / name).read_text())
    rules, forwarder = read("sidecar/rules.toml"), read("sidecar/tunnelwarden.toml")
    holds("the rules turn to where it listens", rules["listen"]["dns"] == forwarder["listen"]["dns"])
    holds("and let out whom it asks", rules["upstream"] == forwarder["upstream"])
    holds("by the same packs", rules["policy"]["packs"] == forwarder["policy"]["packs"])
    whole = read("sidecar-firewall/tunnelwarden.toml")
    holds("and both are the other sidecar's", forwarder | {"firewall": rules["firewall"]} == whole)


# -- compose


def compose(path):
    text = path.read_text()
    error = compose_refusal(text)
    holds(f"{path}: {error}", error is None)
    for name, service in yaml.safe_load(text)["services"].items():
        where = f"{path}: {name}"
        holds(f"{where}: no right that is not named", service["cap_drop"] == ["ALL"])
        if service["image"] == JOB:
            holds(f"{where}: a job has no right", "cap_add" not in service)
            holds(f"{where}: a job has not our user", service["user"] not in ("0:0", f"{USER}:{USER}"))
            beside = service["network_mode"].removeprefix("service:")
            holds(f"{where}: begins when {beside} is ready", service["depends_on"][beside] == {"condition": "service_healthy"})
            continue
        target = service["build"]["target"]
        holds(f"{where}: image", service["image"] == images()[["resolver", "appliance"].index(target)])
        dockerfile = path.parent / service["build"]["context"] / service["build"]["dockerfile"]
        holds(f"{where}: what it is built from", dockerfile.resolve() == CONTAINER / "Dockerfile")
        holds(f"{where}: user", service["user"] == f"{USER}:{USER}")
        holds(f"{where}: read-only root", service["read_only"] is True)
        needs = {"NET_ADMIN", "NET_BIND_SERVICE"} if target == "appliance" else set()
        holds(f"{where}: rights", set(service.get("cap_add", [])) == needs)
        holds(f"{where}: rights of a file", ("security_opt" in service) is not bool(needs))


def compose_refusal(text):
    try:
        read = compose_spec.PyCompose.from_yaml(text)
        for check in (read.validate_networks, read.validate_volumes, read.validate_configs, read.validate_secrets):
            check()
    except ValueError as error:
        return str(error)
    return None


def name_of(thing):
    return thing["metadata"]["name"]


if __name__ == "__main__":
    checks.with_packages("manifests", PACKAGES)
    import compose_spec
    import kubernetes_validate
    import yaml

    sys.exit(main(sys.argv[1:]))
