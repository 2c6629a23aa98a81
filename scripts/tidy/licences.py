#!/usr/bin/env python3
"""Every package that the workspace is built from has a licence that a binary may be shipped with.

Reads `cargo metadata`; a package may choose among several ("MIT OR Apache-2.0"), and one choice must be allowed in
full. Advisories need a network: `cargo deny check` reads deny.toml, which has the same list.
"""
import json, os, re, subprocess, sys, tomllib

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def is_allowed(expression, allowed):
    """Whether an SPDX expression has a choice that is allowed."""
    words = re.findall(r"\(|\)|AND|OR|[\w.+-]+(?: WITH [\w.+-]+)?", expression.replace("/", " OR "))
    python = [w if w in "()" else w.lower() if w in ("AND", "OR") else str(w in allowed) for w in words]
    return bool(words) and eval(" ".join(python), {"__builtins__": {}})  # nothing but True, False, and, or, ( )


def main():
    with open(os.path.join(ROOT, "deny.toml"), "rb") as f:
        allowed = set(tomllib.load(f)["licenses"]["allow"])
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)["packages"]
    wrong = [f"{p['name']} {p['version']}: {p['license'] or 'no licence'}" for p in packages
             if not is_allowed(p["license"] or "", allowed)]
    for line in wrong:
        print(f"licence not in deny.toml: {line}")
    print(f"licences: {len(packages)} packages, {len(wrong)} not allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
