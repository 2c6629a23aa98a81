#!/usr/bin/env python3
"""Holds the tree against its own rules; prints what breaks them, one a line, and exits with 1.

    scripts/tidy/tidy.py [REPOSITORY]

- Crates use each other as scripts/tidy/house.toml allows: in their manifests (`cargo metadata`) and in their code.
- Inside a crate, a room (top-level module) uses only rooms on lower floors, and rooms form no circle.
- No crate uses a package that it must never know (candle in the hub, clap in a library).
- Files that are to stay are created and renamed in one place, and by those whom `[allowed.writing]` names.
- Every Rust file begins with a `//!` head; no doc comment is empty words; no path in the code leads nowhere.
- Every path that README.md, ARCHITECTURE.md and CONTRIBUTING.md name exists; every included file and named test is there.
"""
import json, os, re, subprocess, sys, tomllib
from collections import defaultdict

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from references import House, Item, dangling, paths, references  # noqa: E402

TEXTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
EMPTY = re.compile(r"^\s*///\s*(The|A|An|Of|At|What is)\s+(\w+)\.\s*$")


class Rules:
    """house.toml, and which crate and room a file belongs to."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.allowed = tomllib.load(f)["allowed"]
        self.crates = self.allowed["crates"]
        self.floors = {}
        for crate, floors in self.allowed["rooms"].items():
            for n, names in enumerate(floors):
                self.floors.update({(crate, name): n for name in names})

    def uses(self, crate, test):
        entry = self.crates.get(crate, {})
        found = set(entry.get("uses", []))
        return found | set(entry.get("tests_use", [])) if test else found

    def place(self, path):
        """Crate, room, and whether only tests, examples and benches compile the file."""
        for name, entry in self.crates.items():
            if path.startswith(entry["dir"] + "/"):
                rest = path[len(entry["dir"]) + 1:].split("/")
                if rest[0] == "src":
                    return name, rest[1].removesuffix(".rs"), name in self.allowed["test_crates"]
                return name, rest[0], True
        return None, None, True


def modules(house):
    for crate in house.crates:
        stack = [root for root, _ in crate.roots]
        while stack:
            module = stack.pop()
            stack += module.children.values()
            yield module


def manifests(repository, rules):
    """Edges between our crates that their manifests have and house.toml does not allow."""
    command = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if run.returncode:
        yield f"cargo metadata: {run.stderr.strip()}"
        return
    for package in json.loads(run.stdout)["packages"]:
        name = package["name"]
        if name not in rules.crates:
            yield f"{name}: a crate that house.toml does not know"
            continue
        for dependency in package["dependencies"]:
            other = dependency["name"]
            if other in rules.crates and other not in rules.uses(name, dependency["kind"] == "dev"):
                yield f"{name}/Cargo.toml: {name} must not depend on {other}"


def edges(house, rules):
    """Uses between crates and rooms that are not allowed."""
    rooms = defaultdict(set)
    for use in references(house):
        item = use.to
        to = item.module.file if isinstance(item, Item) else item.file
        if use.file == to:
            continue
        name = item.name if isinstance(item, Item) else "mod " + "::".join(item.path)
        (from_crate, from_room, dev), (crate, room, to_dev) = rules.place(use.file), rules.place(to)
        test, where = use.test or dev, f"{use.file}:{use.line}"
        if from_crate != crate:
            if crate not in rules.uses(from_crate, test):
                yield f"{where}: {from_crate} must not use {crate} ({name})"
            elif isinstance(item, Item) and item.test and not to_dev:
                yield f"{where}: {name} exists in {crate}'s own tests only"
            continue
        if dev or to_dev or from_room == room or (crate, from_room) == (crate, "lib") or from_room == "main":
            continue
        missing = [r for r in (from_room, room) if r not in ("lib", "main") and (crate, r) not in rules.floors]
        if missing and crate in rules.allowed["rooms"]:
            yield f"{where}: the room {missing[0]} of {crate} stands on no floor of house.toml"
        elif crate in rules.allowed["rooms"] and not (test and rules.allowed.get("tests_may_look_up")):
            if room in ("lib", "main") or rules.floors[(crate, room)] >= rules.floors[(crate, from_room)]:
                yield f"{where}: in {crate}, {from_room} must not use {room} ({name})"
        if not test:
            rooms[(crate, from_room)].add((crate, room))


def outside(house, rules):
    """Packages that a crate must never know."""
    for module in modules(house):
        crate, _, dev = rules.place(module.file)
        never = set(rules.crates.get(crate, {}).get("never", [])) if not dev else set()
        if not never:
            continue
        seen = {(path[0], line) for path, _, line, test in sum(module.uses.values(), []) + module.globs
                if not (test or module.test)}
        for item in module.list:
            if not (item.test or module.test):
                seen |= {(path[0], line) for line, path in paths(house.toks[module.file], item)
                         if len(path) > 1 and path[0] not in module.uses}
        for head, line in sorted(seen):
            if head in never:
                yield f"{module.file}:{line}: {crate} must not know {head}"


INCLUDE = re.compile(r'include_(?:str|bytes)!\(\s*"([^"]+)"|CARGO_MANIFEST_DIR"\), "(/\.\.)')


def included(repository, house, rules):
    """Files that a published crate would lack."""
    for file in sorted({m.file for m in modules(house) if not (m.test or rules.place(m.file)[2])}):
        crate = file.split("/")[0]
        with open(os.path.join(repository, file), encoding="utf-8") as f:
            code = f.read().split("#[cfg(test)]")[0]
        for path, above in INCLUDE.findall(code):
            if above or not os.path.normpath(os.path.join(os.path.dirname(file), path)).startswith(crate + "/"):
                yield f"{file}: includes {path or 'a file'} from outside its crate"


WRITING = re.compile(r"\bFile::create(_new)?\(|\bfs::(rename|write|copy)\(|\.create(_new)?\(true\)")


def writing(repository, house, rules):
    """Who creates or renames files beside the room that publishes whole ones."""
    for file in sorted({m.file for m in modules(house) if not (m.test or rules.place(m.file)[2])}):
        with open(os.path.join(repository, file), encoding="utf-8") as f:
            code = f.read().split("#[cfg(test)]")[0].split("\n")
        found = [n for n, line in enumerate(code, 1) if WRITING.search(line.split("//")[0])]
        known = any(file.startswith(place) for place in rules.allowed["writing"])
        if found and not known:
            yield f"{file}:{found[0]}: creates or renames a file: use flm_checkpoint::atomic"
    for place in rules.allowed["writing"]:
        if not any(file.startswith(place) for file in house.files):
            yield f"scripts/tidy/house.toml: {place} does not exist"


def sources(repository, house):
    """Heads, empty documentation, included files."""
    for file in sorted(house.files):
        with open(os.path.join(repository, file), encoding="utf-8") as f:
            lines = f.read().split("\n")
        if not lines[0].startswith("//!"):
            yield f"{file}:1: no `//!` head: say what the file holds and why it exists"
        for number, line in enumerate(lines, 1):
            if EMPTY.match(line):
                yield f"{file}:{number}: documentation without content: {line.strip()}"
    for file, line, path in house.includes:
        if not os.path.isfile(os.path.normpath(os.path.join(repository, os.path.dirname(file), path))):
            yield f"{file}:{line}: {path} is not there"


def texts(repository):
    """Paths that the texts name."""
    top = {name for name in os.listdir(repository) if os.path.isdir(os.path.join(repository, name))}
    for text in TEXTS:
        with open(os.path.join(repository, text), encoding="utf-8") as f:
            lines = f.read().split("\n")
        for number, line in enumerate(lines, 1):
            for path in re.findall(r"(?<![\w./-])([\w.-]+(?:/[\w.*-]+)+/?)", line):
                if path.split("/")[0] in top - {"target"} and not re.fullmatch(r"flm-\w+/(cuda|real-weights)", path) and "*" not in path and "NAME" not in path:
                    if not os.path.exists(os.path.join(repository, path.rstrip("/."))):
                        yield f"{text}:{number}: {path} does not exist"
            for test in re.findall(r"--test ([\w-]+)", line):
                if not any(os.path.exists(os.path.join(repository, crate, "tests", test + end))
                           for crate in top for end in (".rs", "/main.rs")):
                    yield f"{text}:{number}: there is no test binary {test}"
            for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", line):
                if not os.path.exists(os.path.join(repository, path)):
                    yield f"{text}:{number}: {path} does not exist"


def main():
    repository = sys.argv[1] if len(sys.argv) > 1 else os.path.normpath(os.path.join(HERE, "..", ".."))
    rules, house = Rules(os.path.join(HERE, "house.toml")), House(repository)
    problems = [*manifests(repository, rules), *edges(house, rules), *outside(house, rules),
                *included(repository, house, rules), *writing(repository, house, rules),
                *(f"{where}: {path} leads nowhere" for where, path in dangling(house)),
                *sources(repository, house), *texts(repository)]
    for problem in dict.fromkeys(problems):
        print(problem)
    print(f"tidy: {len(house.files)} Rust files, {len(set(problems))} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
