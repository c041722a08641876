#!/usr/bin/env python3
"""Check that the workspace still has the shape ARCHITECTURE.md draws.

    tools/check_layers.py                check the workspace we stand in
    tools/check_layers.py --self-test    check the checker

Four things: each crate depends only on those listed for it; nothing reaches below its layer, not even through
others; `engine` and `model` contain no `async`; every crate of ours is listed here. Dependencies of tests are
free: a test of the engine may well run a model.
"""

import json
import pathlib
import re
import subprocess
import sys

# Which of our crates each may use. The order is the layering, top first: an arrow that pointed up would be a cycle.
ARROWS = {
    "cli": {"api", "cluster", "engine", "grammar", "harmony", "model", "backend", "backend-cuda", "link", "step", "client"},
    "api": {"engine", "grammar", "harmony", "proto", "step"},
    "cluster": {"step"},
    "engine": {"step"},
    "grammar": {"harmony", "step"},
    "harmony": set(),
    "model": {"backend", "link", "step"},
    "backend-cuda": {"backend"},
    "backend": set(),
    "link": set(),
    "client": {"proto"},
    "proto": set(),
    "step": set(),
    "testkit": set(),
}

# Pairs that must not meet, on any path. The edge never sees a tensor; devices and wires know nothing of each other.
STRANGERS = [
    ("api", "model"),
    ("api", "backend"),
    ("engine", "model"),
    ("engine", "backend"),
    ("backend", "link"),
    ("link", "backend"),
]

# Threads, not tasks: a step must never wait for an executor.
SYNCHRONOUS = ["engine", "grammar", "model", "backend", "step"]
ASYNC_RUNTIMES = re.compile(r"^(tokio|futures|async|smol)(-|$)")

# What may hide the word `async` without meaning it, in the order Rust would see it.
NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r(?P<hashes>\#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'""", re.DOTALL
)
ASYNC = re.compile(r"\basync\b|\.\s*await\b")


def wrong_arrows(arrows):
    """Complaints about direct dependencies. `arrows`: crate -> our crates it uses."""
    for crate, used in arrows.items():
        if crate not in ARROWS:
            yield f"crate {crate} has no place in the layering: give it one in tools/check_layers.py and ARCHITECTURE.md"
            continue
        for other in sorted(used - ARROWS[crate]):
            yield f"{crate} depends on {other}, which is not below it"


def strangers_that_meet(arrows):
    """Complaints about pairs that meet through others."""
    for crate, other in STRANGERS:
        if path := path_between(arrows, crate, other):
            yield f"{crate} must never see {other}, yet {' -> '.join(path)}"


def path_between(arrows, start, end):
    paths, seen = [[start]], {start}
    while paths:
        path = paths.pop(0)
        for after in sorted(arrows.get(path[-1], set()) - seen):
            if after == end:
                return [*path, after]
            seen.add(after)
            paths.append([*path, after])
    return None


def async_lines(source):
    """Numbers of the lines whose code, not comment or text, says async or .await."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])

    code = NOT_CODE.sub(blank, source)
    return [number for number, line in enumerate(code.splitlines(), 1) if ASYNC.search(line)]


def async_in(crate, folder, dependencies):
    for path in sorted((folder / "src").rglob("*.rs")):
        for number in async_lines(path.read_text()):
            yield f"{path}:{number}: {crate} is synchronous, this is async"
    for name in sorted(dependencies):
        if ASYNC_RUNTIMES.match(name):
            yield f"{crate} is synchronous, yet depends on {name}"


def workspace():
    """Our crates: folder name -> (folder, names of all its dependencies other than those of tests)."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--no-deps"]
    packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    return {
        short(package["name"]): (
            pathlib.Path(package["manifest_path"]).parent,
            {dependency["name"] for dependency in package["dependencies"] if dependency["kind"] != "dev"},
        )
        for package in packages
    }


def short(name):
    return name.removeprefix("tandem-")


def main():
    crates = workspace()
    arrows = {
        crate: {short(name) for name in dependencies if name.startswith("tandem-")}
        for crate, (_, dependencies) in crates.items()
    }
    complaints = [*wrong_arrows(arrows), *strangers_that_meet(arrows)]
    for crate in SYNCHRONOUS:
        if crate in crates:
            complaints += async_in(crate, *crates[crate])
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"layers: {len(arrows)} crates, {sum(map(len, arrows.values()))} arrows, {len(complaints)} complaints")
    return 1 if complaints else 0


def self_test():
    assert not list(wrong_arrows({"cli": {"api", "model"}, "api": {"engine"}, "step": set()}))
    assert list(wrong_arrows({"engine": {"api"}})) == ["engine depends on api, which is not below it"]
    assert len(list(wrong_arrows({"backend": {"link"}, "link": {"backend"}, "novel": set()}))) == 3
    assert not list(strangers_that_meet({"cli": {"api", "model"}, "model": {"backend"}}))
    around = {"api": {"harmony"}, "harmony": {"model"}, "model": {"backend"}}
    assert [line.split(", yet ")[1] for line in strangers_that_meet(around)] == [
        "api -> harmony -> model",
        "api -> harmony -> model -> backend",
    ]
    order = list(ARROWS)
    assert all(order.index(other) > order.index(crate) for crate in order for other in ARROWS[crate])
    assert async_lines("async fn a() {}\nfn b() { c.await }\nlet d = async { 1 };") == [1, 2, 3]
    quiet = """// async\n/* .await\nasync */\nlet a = "async \\" async"; let b = r#"async " async"#; let asynchronous = '"';"""
    assert async_lines(quiet) == [], async_lines(quiet)
    assert async_lines("let a = '\"';\nasync fn b<'a>(c: &'a str) {}") == [2]
    assert list(async_in("engine", pathlib.Path("/nonexistent"), {"tokio-util", "thiserror"})) == [
        "engine is synchronous, yet depends on tokio-util"
    ]
    print("layers: the checker passes its own test")


if __name__ == "__main__":
    if "--self-test" in sys.argv[1:]:
        self_test()
    else:
        sys.exit(main())
