#!/usr/bin/env bash
# Writes what the base install consists of, as a CycloneDX bill of materials: scripts/sbom.sh FILE.json
# Needs PYTHON (default: python3) with venv; the tool and the install go to a temporary folder.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/tool"
"$work/tool/bin/pip" install -q cyclonedx-bom==7.5.0
# Without pip, which is no part of what is installed.
"${PYTHON:-python3}" -m venv --without-pip "$work/base"
"$work/tool/bin/pip" --python "$work/base/bin/python" install -q -c constraints.txt .

mkdir -p "$(dirname "$out")"
"$work/tool/bin/cyclonedx-py" environment "$work/base/bin/python" \
  --pyproject pyproject.toml --output-reproducible --output-file "$out"

# The tool has checked it against CycloneDX's schema; here it is compared with pyproject.toml.
"$work/base/bin/python" - "$out" <<'PYTHON'
import json
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

path = Path(sys.argv[1])
bill = json.loads(path.read_text())
found = {part["name"].lower() for part in bill["components"]}
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
needed = {re.match(r"[A-Za-z0-9._-]+", line).group().lower() for line in project["dependencies"]}
heavy = {"torch", "onnx", "scipy", "matplotlib", "cryptography"}
if bill["bomFormat"] != "CycloneDX" or bill["metadata"]["component"]["name"] != "rare-trt":
    sys.exit("the bill is not one of rare-trt in CycloneDX")
if not needed <= found or found & heavy:
    sys.exit(f"missing in the bill: {needed - found}; not of the base install: {found & heavy}")
# pyproject.toml leaves the version to the code, where the tool does not look.
bill["metadata"]["component"]["version"] = version("rare-trt")
path.write_text(json.dumps(bill, indent=2) + "\n")
print(f"{path}: {len(found)} components")
PYTHON
