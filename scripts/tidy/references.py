"""Who uses what in the workspace's Rust code.

Reads `use` trees and paths (`a::b::C`), resolved through modules, imports, globs and re-exports to the file that
defines the item. What it cannot see: methods called by value, fields, what macros make. Standard library only.

    house = House(repository)        crates, modules and items, read from the manifests and the sources
    references(house)                every use of an item, with the file and line that it stands in
    dangling(house)                  paths that lead to no item
"""
import os, re, sys, tomllib
from collections import defaultdict


# ---------------------------------------------------------------- tokens
TOKEN = re.compile(r"""
    (?P<ws>\s+)
  | (?P<lc>//[^\n]*)
  | (?P<raw>[bc]?r(?P<h>\#*)".*?"(?P=h))
  | (?P<str>[bc]?"(?:\\.|[^"\\])*")
  | (?P<chr>b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\\n])')
  | (?P<life>'[A-Za-z_]\w*)
  | (?P<id>(?:r\#)?[A-Za-z_]\w*)
  | (?P<num>\d[\w]*(?:\.\d[\w]*)?)
  | (?P<cc>::)
  | (?P<op>=>|->|.)
""", re.X | re.S)


class Tok:
    __slots__ = ("s", "k", "line", "at", "to")

    def __init__(self, s, k, line, at, to):
        self.s, self.k, self.line, self.at, self.to = s, k, line, at, to


def tokens(text):
    out, i, line, n = [], 0, 1, len(text)
    while i < n:
        if text.startswith("/*", i):
            depth, j = 1, i + 2
            while j < n and depth:
                if text.startswith("/*", j):
                    depth, j = depth + 1, j + 2
                elif text.startswith("*/", j):
                    depth, j = depth - 1, j + 2
                else:
                    j += 1
            line += text.count("\n", i, j)
            i = j
            continue
        m = TOKEN.match(text, i)
        k, s = m.lastgroup, m.group()
        if m.group("raw") is not None:
            k = "str"
        if k not in ("ws", "lc"):
            if k == "id" and s.startswith("r#"):
                s = s[2:]
            out.append(Tok(s, k, line, i, m.end()))
        line += s.count("\n")
        i = m.end()
    return out


OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


def match(ts, i):
    """Index after the bracket that closes the one at i."""
    depth = 0
    while i < len(ts):
        if ts[i].k == "op":
            if ts[i].s in OPEN:
                depth += 1
            elif ts[i].s in CLOSE:
                depth -= 1
                if depth == 0:
                    return i + 1
        i += 1
    return i


# ---------------------------------------------------------------- modules and items
class Item:
    def __init__(self, name, kind, vis, line, start, end, test, module):
        self.name, self.kind, self.vis, self.line = name, kind, vis, line
        self.start, self.end, self.test, self.module = start, end, test, module
        self.of, self.trait, self.arguments = None, None, []


class Module:
    def __init__(self, crate, path, file, parent, test):
        self.crate, self.path, self.file, self.parent, self.test = crate, path, file, parent, test
        self.children, self.items, self.uses, self.globs = {}, {}, {}, []
        self.list = []
        self.decl_vis = "pub"


class Crate:
    def __init__(self, name, ident, dir):
        self.name, self.ident, self.dir = name, ident, dir
        self.roots = []  # (module, kind)
        self.lib = None


class House:
    def __init__(self, repo):
        self.repo = repo
        self.crates, self.by_ident, self.files, self.toks = [], {}, {}, {}
        self.includes = []
        for toml in self.manifests():
            with open(os.path.join(repo, toml), "rb") as f:
                data = tomllib.load(f)
            if "package" not in data:
                continue
            dir = os.path.dirname(toml)
            name = data["package"]["name"]
            ident = data.get("lib", {}).get("name", name.replace("-", "_"))
            crate = Crate(name, ident, dir)
            crate.data = data
            self.crates.append(crate)
            self.by_ident[ident] = crate
            self.load(crate)

    def manifests(self):
        found = []
        for dir, dirs, files in os.walk(self.repo):
            dirs[:] = [d for d in dirs if d not in ("target", ".git", "node_modules")]
            if "Cargo.toml" in files:
                found.append(os.path.relpath(os.path.join(dir, "Cargo.toml"), self.repo))
        return sorted(found)

    def load(self, crate):
        base = crate.dir
        have = lambda p: os.path.isfile(os.path.join(self.repo, base, p))
        lib = crate.data.get("lib", {}).get("path", "src/lib.rs")
        if have(lib):
            crate.lib = self.root(crate, lib, "src")
        for bin in [b.get("path") for b in crate.data.get("bin", [])] + ["src/main.rs"]:
            if bin and have(bin) and os.path.join(base, bin) not in self.files:
                self.root(crate, bin, "src")
        for kind in ("tests", "examples", "benches"):
            dir = os.path.join(self.repo, base, kind)
            if not os.path.isdir(dir) or os.path.isfile(os.path.join(dir, "Cargo.toml")):
                continue
            for name in sorted(os.listdir(dir)):
                if name.endswith(".rs"):
                    self.root(crate, f"{kind}/{name}", kind)
                elif os.path.isfile(os.path.join(dir, name, "main.rs")):
                    self.root(crate, f"{kind}/{name}/main.rs", kind)

    def root(self, crate, path, kind):
        module = Module(crate, [], os.path.join(crate.dir, path), None, kind != "src")
        crate.roots.append((module, kind))
        self.read(module, is_root=True)
        return module

    def read(self, module, is_root=False):
        path = os.path.join(self.repo, module.file)
        with open(path, encoding="utf-8") as f:
            text = f.read()
        ts = tokens(text)
        self.toks[module.file] = ts
        self.files.setdefault(module.file, module)
        for m in re.finditer(r'include_(?:str|bytes)!\(\s*"([^"]+)"', text):
            self.includes.append((module.file, text.count("\n", 0, m.start()) + 1, m.group(1)))
        stem = os.path.basename(module.file)
        dir = os.path.dirname(module.file)
        home = dir if is_root or stem in ("mod.rs", "lib.rs", "main.rs") else os.path.join(dir, stem[:-3])
        self.items(module, ts, 0, len(ts), home)

    def items(self, module, ts, i, end, home):
        while i < end:
            start, test, attr_path = i, module.test, None
            while i < end and ts[i].s == "#":
                j = i + 1
                if j < end and ts[j].s == "!":
                    j += 1
                if j >= end or ts[j].s != "[":
                    break
                k = match(ts, j)
                words = [t.s for t in ts[j:k]]
                if "cfg" in words and "test" in words and "not" not in words:
                    test = True
                if words[1:2] == ["test"] or words[1:2] == ["bench"]:
                    test = True
                if words[1:3] == ["path", "="]:
                    attr_path = ts[j + 3].s.strip('"')
                i = k
            if i >= end:
                break
            vis = ""
            if ts[i].s == "pub":
                vis, i = "pub", i + 1
                if i < end and ts[i].s == "(" and ts[i + 1].s in ("crate", "super", "self", "in"):
                    k = match(ts, i)
                    vis = "pub(" + " ".join(t.s for t in ts[i + 1:k - 1]) + ")"
                    i = k
            while i < end and (ts[i].s in ("unsafe", "async", "default", "extern", "safe")
                               or (ts[i].k == "str" and ts[i - 1].s == "extern")
                               or (ts[i].s == "const" and ts[i + 1].s in ("fn", "unsafe", "async", "extern"))):
                if ts[i].s == "extern" and ts[i + 1].s == "crate":
                    break
                i += 1
            if i >= end:
                break
            t = ts[i]
            line = t.line
            if t.s == "mod" and i + 1 < end and ts[i + 1].k == "id":
                name = ts[i + 1].s
                child = Module(module.crate, module.path + [name], module.file, module, test)
                child.decl_vis = vis
                module.children[name] = child
                if ts[i + 2].s == ";":
                    i += 3
                    options = [attr_path and os.path.join(os.path.dirname(module.file), attr_path),
                               os.path.join(home, name + ".rs"), os.path.join(home, name, "mod.rs")]
                    for option in options:
                        if option and os.path.isfile(os.path.join(self.repo, option)):
                            child.file = option
                            self.read(child)
                            break
                else:
                    k = match(ts, i + 2)
                    child.inline = True
                    self.items(child, ts, i + 3, k - 1, os.path.join(home, name))
                    i = k
                continue
            if t.s == "use":
                k = i + 1
                while ts[k].s != ";":
                    k += 1
                for path, alias in use_tree(ts, i + 1, k):
                    if path and path[-1] == "*":
                        module.globs.append((path[:-1], vis, line, test))
                    else:
                        module.uses.setdefault(alias, []).append((path, vis, line, test))
                i = k + 1
                continue
            if t.s == "impl":
                k = i
                while ts[k].s not in ("{", ";"):
                    k = match(ts, k) if ts[k].s in "([" else k + 1
                head = ts[i + 1:k]
                fin = match(ts, k) if ts[k].s == "{" else k + 1
                item = Item("impl", "impl", vis, line, start, fin, test, module)
                item.trait, item.of, item.arguments = impl_head(head)
                module.list.append(item)
                i = fin
                continue
            if t.s in ("fn", "struct", "enum", "trait", "type", "const", "static", "union") and i + 1 < end \
                    and (ts[i + 1].k == "id" or ts[i + 1].s in ("mut", "_")):
                name = ts[i + 2].s if ts[i + 1].s == "mut" else ts[i + 1].s
                k = i + 2
                braces = t.s in ("fn", "struct", "enum", "trait", "union")
                while k < end:
                    s = ts[k].s
                    if s == ";":
                        k += 1
                        break
                    if s == "{" and braces:
                        k = match(ts, k)
                        break
                    if s in OPEN:
                        k = match(ts, k)
                        continue
                    k += 1
                item = Item(name, t.s, vis, line, start, k, test, module)
                module.list.append(item)
                if name != "_":
                    module.items.setdefault(name, item)
                i = k
                continue
            if t.s == "macro_rules":
                name = ts[i + 2].s
                k = match(ts, i + 3)
                if k < end and ts[k].s == ";":
                    k += 1
                item = Item(name, "macro", vis, line, start, k, test, module)
                module.list.append(item)
                module.items.setdefault(name, item)
                i = k
                continue
            if t.k == "id" and i + 1 < end and ts[i + 1].s == "!":
                k = i + 2
                if ts[k].k == "id":
                    k += 1
                k = match(ts, k)
                if k < end and ts[k].s == ";":
                    k += 1
                module.list.append(Item(t.s + "!", "call", vis, line, start, k, test, module))
                i = k
                continue
            i += 1

    # ------------------------------------------------------------ names
    def lookup(self, module, name, seen=(), last=False):
        """What `name` is in `module`: ('mod', Module) or ('item', Item) or None.

        A module and an item may share a name (`mod cast; use cast::cast`): at a path's end it is the item."""
        key = (id(module), name, last)
        if key in seen:
            return None
        seen = seen + (key,)
        if last and name in module.children and name not in module.items and name in module.uses:
            found = self.imported(module, name, seen, True)
            if found and found[0] == "item":
                return found
        if name in module.children and not (last and name in module.items):
            return "mod", module.children[name]
        if name in module.items and (last or module.items[name].kind not in ("fn", "const", "static", "macro")):
            return "item", module.items[name]
        if name in module.uses:
            return self.imported(module, name, seen, last)
        for path, vis, line, test in module.globs:
            target = self.resolve(module, path, seen)
            if target and target[0] == "mod" and target[1] is not module:
                found = self.lookup(target[1], name, seen, last)
                if found:
                    return found
        return None

    def imported(self, module, name, seen, last):
        """A name may be imported twice, as a module and as a function (`std::io` and `error::io`)."""
        found = [self.resolve(module, path, seen) for path, *_ in module.uses[name]]
        if len(found) > 1:
            if last:
                found.sort(key=lambda f: not (f and f[0] == "item"))
            else:
                found.sort(key=lambda f: bool(f and f[0] == "item" and f[1].kind == "fn"))
        return found[0]

    def resolve(self, module, path, seen=(), strict=False):
        """The item or module that a path names, seen from `module`; what lies inside an item is the item.

        Where a path is lost on the way, the module that it is lost in; None if `strict`."""
        at = module
        path = list(path)
        if not path:
            return None
        first = path[0]
        top = module
        while top.parent:
            top = top.parent
        if first == "crate":
            at, path = top, path[1:]
        elif first == "$":
            return None
        elif first in ("self", "super"):
            while path and path[0] in ("self", "super"):
                if path[0] == "super":
                    if at.parent is None:
                        return None
                    at = at.parent
                path = path[1:]
        else:
            found = self.lookup(module, first, seen, len(path) == 1)
            if not found:
                crate = self.by_ident.get(first)
                if crate and crate.lib:
                    found = ("mod", crate.lib)
                else:
                    return None
            if found[0] == "item":
                return found
            at, path = found[1], path[1:]
        while path:
            found = self.lookup(at, path[0], seen, len(path) == 1)
            if not found:
                if strict:
                    # a name from outside the repository, imported there
                    return ("outside", at) if path[0] in at.uses else None
                return ("mod", at) if at is not module else None
            if found[0] == "item":
                return found
            at, path = found[1], path[1:]
        return "mod", at


def use_tree(ts, i, end, prefix=()):
    """(path, alias) of every leaf between i and end."""
    out, path = [], list(prefix)
    while i < end:
        t = ts[i]
        if t.s == "{":
            k = match(ts, i)
            j = i + 1
            while j < k - 1:
                e, depth = j, 0
                while e < k - 1 and not (ts[e].s == "," and depth == 0):
                    depth += (ts[e].s == "{") - (ts[e].s == "}")
                    e += 1
                out += use_tree(ts, j, e, path)
                j = e + 1
            return out
        if t.s == "*":
            return out + [(path + ["*"], "*")]
        if t.s == "as":
            alias = ts[i + 1].s
            return out + [(path, alias)]
        if t.k == "id":
            if t.s == "self" and path:
                i += 1
                continue
            path = path + [t.s]
        i += 1
    if path:
        out.append((path, path[-1]))
    return out


def impl_head(head):
    """(trait path or None, type path, names in the trait's <>) of what stands between `impl` and `{`."""
    i = 0
    if head and head[0].s == "<":
        depth = 0
        while i < len(head):
            depth += (head[i].s == "<") - (head[i].s == ">")
            i += 1
            if depth == 0:
                break

    inside = []

    def path(i):
        out, depth = [], 0
        while i < len(head):
            s = head[i].s
            if s in ("for", "where") and depth == 0:
                break
            if s == "<":
                depth += 1
            elif s == ">":
                depth -= 1
            elif head[i].k == "id" and s not in ("dyn", "mut", "impl"):
                (out if depth == 0 else inside).append(s)
            i += 1
        return out, i

    first, i = path(i)
    if i < len(head) and head[i].s == "for":
        arguments = list(inside)
        second, _ = path(i + 1)
        return first, second, arguments
    return None, first, []


# ---------------------------------------------------------------- references
class Ref:
    __slots__ = ("file", "line", "owner", "test", "to", "name")

    def __init__(self, file, line, owner, test, to, name):
        self.file, self.line, self.owner, self.test, self.to, self.name = file, line, owner, test, to, name


def references(house):
    """Every use of an item of this repository by another, as (from Item or None, to Item)."""
    out = []
    for crate in house.crates:
        for root, _ in crate.roots:
            walk(house, root, out)
    return out


def dangling(house):
    """Paths from crate, self, super or a crate of this repository that lead nowhere."""
    out = []

    def visit(module):
        ts = house.toks[module.file]
        heads = {"crate", "self", "super"} | set(house.by_ident)
        found = [(line, path) for entries in module.uses.values() for path, _, line, _ in entries]
        found += [(line, path) for path, _, line, _ in module.globs if path]
        for item in module.list:
            found += [(line, path) for line, path in paths(ts, item) if len(path) > 1]
        for line, path in found:
            known = path[0] in heads or len(path) > 1 and (house.lookup(module, path[0]) or ("",))[0] == "mod"
            if known and not house.resolve(module, path, strict=True):
                out.append((f"{module.file}:{line}", "::".join(path)))
        for child in module.children.values():
            if child.file in house.toks:
                visit(child)

    for crate in house.crates:
        for root, _ in crate.roots:
            visit(root)
    return sorted(set(out))


def walk(house, module, out):
    ts = house.toks[module.file]
    used = set()
    for item in module.list:
        for line, path in paths(ts, item):
            scope = module
            found = house.resolve(scope, path)
            if found:
                used.add(path[0])
                to = found[1]
                if found[0] == "item" and to is not item:
                    out.append(Ref(module.file, line, item, item.test or module.test, to, "::".join(path)))
                elif found[0] == "mod" and to.file != module.file and len(path) > 1:
                    out.append(Ref(module.file, line, item, item.test or module.test, to, "::".join(path)))
    for alias, path, vis, line, test in [(a, *u) for a, us in module.uses.items() for u in us]:
        reexport = vis.startswith("pub")
        if alias in used or reexport:
            continue
        found = house.resolve(module, path)
        if found and found[1] is not module and getattr(found[1], "file", None) != module.file:
            out.append(Ref(module.file, line, None, test or module.test, found[1], "::".join(path)))
    for child in module.children.values():
        if child.file == module.file or child.file in house.toks:
            walk(house, child, out)


def paths(ts, item):
    """Paths in an item: chains with `::`, and single names that look like uses of an item."""
    i, out = item.start, []
    local = {}
    end = item.end
    while i < end:
        t = ts[i]
        if t.s == "use" and t.k == "id":
            k = i + 1
            while k < end and ts[k].s != ";":
                k += 1
            for path, alias in use_tree(ts, i + 1, k):
                local[alias] = path
                if path[-1] == "*":
                    path = path[:-1]
                if path:
                    out.append((t.line, path))
            i = k + 1
            continue
        if t.s == "pub" and i + 2 < end and ts[i + 1].s == "(" and ts[i + 2].s in ("crate", "super", "self", "in"):
            i = match(ts, i + 1)
            continue
        if t.k == "id" and (i == 0 or ts[i - 1].s != "."):
            path, j = [t.s], i + 1
            while j + 1 < end and ts[j].s == "::" and ts[j + 1].k == "id":
                path.append(ts[j + 1].s)
                j += 2
            before, after = ts[i - 1].s if i else "", ts[j].s if j < end else ""
            if i and before == "::":
                i = j
                continue
            if len(path) > 1:
                if path[0] in local:
                    path = local[path[0]] + path[1:]
                out.append((t.line, path))
            elif t.s in local:
                pass
            elif t.s in ("self", "Self", "crate", "super"):
                pass
            elif t.s[0].isupper():
                out.append((t.line, path))
            elif before in ("fn", "let", "mut", "mod", "for", "|", "ref") or after in (":", "=") and before != "(":
                pass
            elif after in ("(", "!", "::"):
                if before != "fn":
                    out.append((t.line, path))
            elif before in ("(", ",") and after in (")", ",") and i > 2 and ts[i - 2].k == "id":
                # a function given to map, map_err, ...
                if ts[i - 2].s in ("map", "and_then", "map_err", "filter", "filter_map", "all", "any", "map_or",
                                   "is_some_and", "is_ok_and", "value_parser", "then", "for_each"):
                    out.append((t.line, path))
            i = j
            continue
        # functions that serde's attributes name
        if t.k == "str" and i > 3 and ts[i - 1].s == "=" and ts[i - 2].s in (
                "default", "serialize_with", "deserialize_with", "with", "skip_serializing_if"):
            words = t.s.strip('"').split("::")
            if all(w.isidentifier() for w in words):
                out.append((t.line, words))
        i += 1
    return out
