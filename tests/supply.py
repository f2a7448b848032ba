#!/usr/bin/env python3
"""Holds the lists of what the program is made of against what cargo says of it.

    tests/supply.py [FOLDER]

Checks sbom.cdx.json and third-party-licenses.txt there, as deploy/supply/list writes them; without a folder they are
made. Every crate that is built into the program has to be in both, and no other in the bill of materials, those of
tests neither; and what crates bring along in C. The schema of CycloneDX is that of a package from PyPI, fetched into
target/supply/ on the first run. Exit status: 0 passed, 1 failed, 2 wrong usage.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import checks
from checks import ROOT, holds

PACKAGE = "cyclonedx-python-lib[json-validation]==11.12.0"
# What the crates bring along, and what comes with the compiler.
BROUGHT_ALONG = {"sqlite": "SQLite", "mimalloc": "mimalloc", "boringssl": "BoringSSL", "rust-std": "library of Rust"}


def main(arguments):
    if len(arguments) > 1:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as made:
        folder = Path(arguments[0] if arguments else made)
        if not arguments:
            subprocess.run([ROOT / "deploy/supply/list", folder], check=True)
        bom = (folder / "sbom.cdx.json").read_text()
        licenses = (folder / "third-party-licenses.txt").read_text()
    program = crates("normal")
    tests = crates("normal,build,dev") - program
    holds("there are crates", len(program) > 100 and tests)
    is_by_the_schema(bom)
    bill_of_materials(json.loads(bom), program)
    third_party(licenses, program)
    nobody_is_named("sbom.cdx.json", bom)
    nobody_is_named("third-party-licenses.txt", licenses)
    print(f"supply: {checks.passed} passed, {len(program)} crates")
    return 0


def crates(edges):
    """Names and versions of what the program is built of, but itself; `edges` as cargo tree has it."""
    host = re.search(r"^host: (.*)$", output("rustc", "-vV"), re.M)[1]
    form = ("--prefix", "none", "--format", "{p}")
    tree = output("cargo", "tree", "--locked", "--edges", edges, "--target", host, *form)
    found = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    return {(name, version.removeprefix("v")) for name, version in found if name != "tunnelwarden"}


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def same(what, listed, wanted):
    holds(f"{what} lacks {sorted(wanted - listed)}", wanted <= listed)
    holds(f"{what} has {sorted(listed - wanted)}, which is not in the program", listed <= wanted)


# -- the bill of materials


def is_by_the_schema(bom):
    version = json.loads(bom)["specVersion"]
    validator = JsonStrictValidator(SchemaVersion.from_version(version))
    mistake = validator.validate_str(bom)
    holds(f"CycloneDX {version}: {mistake}", mistake is None)
    wrong = bom.replace('"type": "library"', '"type": "crate"', 1)
    holds("the schema can say no", wrong != bom and validator.validate_str(wrong) is not None)


def bill_of_materials(bom, program):
    components = {component["name"]: component for component in bom["components"] if component["name"] in BROUGHT_ALONG
                  and not component["purl"].startswith("pkg:cargo/")}
    same("what is brought along", set(components), set(BROUGHT_ALONG))
    holds("SQLite has its version", re.fullmatch(r"3\.\d+\.\d+", components["sqlite"]["version"]))
    holds("mimalloc has its version", re.fullmatch(r"\d+\.\d+\.\d+", components["mimalloc"]["version"]))
    cargo = [component for component in bom["components"] if component["purl"].startswith("pkg:cargo/")]
    same("sbom.cdx.json", {(component["name"], component["version"]) for component in cargo}, program)
    for component in cargo:
        name = component["name"]
        holds(f"{name} has a checksum", any(digest["alg"] == "SHA-256" for digest in component["hashes"]))
        holds(f"{name} has a licence", component["licenses"])
        holds(f"{name} is in the program", component["scope"] == "required")
    known = {component["bom-ref"] for component in [*bom["components"], bom["metadata"]["component"]]}
    holds("whatever depends is listed", {entry["ref"] for entry in bom["dependencies"]} == known)
    wanted = {ref for entry in bom["dependencies"] for ref in entry.get("dependsOn", [])}
    holds("and on what", wanted <= known)
    holds("it has no random number", "serialNumber" not in bom)


# -- licences


def third_party(text, program):
    listed = set(re.findall(r"^- (\S+) (\d+\.\d+\.\d\S*?)(?:,.*)?$", text, re.M))
    holds(f"third-party-licenses.txt lacks {sorted(program - listed)}", program <= listed)
    for name in BROUGHT_ALONG.values():
        holds(f"third-party-licenses.txt names {name}", name in text)
    for words in ("Permission is hereby granted, free of charge", "Apache License", "Microsoft Corporation",
                  "UNICODE LICENSE V3", "Community Data License Agreement"):
        holds(f"third-party-licenses.txt says: {words}", words in text)


def nobody_is_named(name, text):
    for folder in (ROOT, Path.home()):
        holds(f"{name} names {folder}", str(folder) not in text)


if __name__ == "__main__":
    checks.with_packages("supply", [PACKAGE])
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    sys.exit(main(sys.argv[1:]))
