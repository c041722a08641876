#!/usr/bin/env python3
"""Check that every crate we link is under a licence that permits it.

    tools/check_licences.py [MANIFEST...]     check these workspaces (default: the one we stand in)
    tools/check_licences.py --list            also print every crate with its licence
    tools/check_licences.py --self-test       check the checker

Asks cargo for the whole dependency graph, once for each platform we ship, all features on, build and test
dependencies included: a crate that only builds ours may still put its text into it. A licence not listed below is
refused until someone has read it. That keeps out GPL, LGPL, AGPL and MPL without naming them.
"""

import json
import re
import subprocess
import sys

PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]

# SPDX identifiers of licences that ask for no more than their notice to be kept.
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
}

# Exceptions that only take conditions away from the licence before them.
HARMLESS_EXCEPTIONS = {"LLVM-exception"}

TOKEN = re.compile(r"\s*([()/]|[A-Za-z0-9.+-]+)")


class BadExpression(ValueError):
    """A licence field that is not an SPDX expression."""


def permitted(expression):
    """Whether an SPDX expression can be met with permissive licences alone: some side of an OR, both of an AND."""
    tokens = tokenize(expression)
    result = alternatives(tokens)
    if tokens:
        raise BadExpression(f"unexpected {tokens[0]!r} in {expression!r}")
    return result


def tokenize(expression):
    tokens, at = [], 0
    expression = expression.strip()
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if not match:
            raise BadExpression(f"unexpected {expression[at]!r} in {expression!r}")
        # Cargo once allowed `MIT/Apache-2.0`, meaning OR.
        tokens.append("OR" if match[1] == "/" else match[1])
        at = match.end()
    return tokens


def alternatives(tokens):
    """alternatives := requirements { OR requirements }; AND binds tighter, as SPDX says."""
    result = requirements(tokens)
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        # No short cut: what follows has to be consumed either way.
        result = requirements(tokens) or result
    return result


def requirements(tokens):
    """requirements := term { AND term }"""
    result = term(tokens)
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        result = term(tokens) and result
    return result


def term(tokens):
    """term := "(" alternatives ")" | identifier [ WITH exception ]"""
    token = tokens.pop(0) if tokens else None
    if token == "(":
        result = alternatives(tokens)
        if not tokens or tokens.pop(0) != ")":
            raise BadExpression("a parenthesis is not closed")
        return result
    if token in (None, ")", "AND", "OR", "WITH"):
        raise BadExpression(f"expected a licence, found {token or 'the end'}")
    result = token in PERMISSIVE
    if tokens and tokens[0] == "WITH":
        tokens.pop(0)
        if not tokens:
            raise BadExpression("expected an exception after WITH, found the end")
        result = tokens.pop(0) in HARMLESS_EXCEPTIONS and result
    return result


def crates_of(manifest, platform):
    """All packages cargo would use on this platform, the workspace's own included."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features", f"--filter-platform={platform}"]
    if manifest:
        command.append(f"--manifest-path={manifest}")
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    return [package for package in metadata["packages"] if package["id"] in used]


def refusal(package):
    """Why this package may not be linked, or None."""
    expression = package.get("license")
    if not expression:
        return f"names no licence (licence file: {package.get('license_file')}); read it and decide"
    try:
        return None if permitted(expression) else f"is under {expression}"
    except BadExpression as error:
        return f"has a licence field nobody can read: {error}"


def main(manifests, show):
    seen, refused = {}, []
    for manifest in manifests or [None]:
        for platform in PLATFORMS:
            for package in crates_of(manifest, platform):
                name = f"{package['name']} {package['version']}"
                if name in seen:
                    continue
                seen[name] = package.get("license")
                if reason := refusal(package):
                    refused.append(f"{name} {reason}")
    if show:
        for name, licence in sorted(seen.items()):
            print(f"{name:44} {licence}")
    for line in sorted(refused):
        print(f"refused: {line}", file=sys.stderr)
    print(f"licences: {len(seen)} crates on {', '.join(PLATFORMS)}, {len(refused)} refused")
    return 1 if refused else 0


def self_test():
    for expression in [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT/Apache-2.0",
        "GPL-3.0-only OR MIT",
        "MIT OR GPL-3.0-only",
        "Apache-2.0 WITH LLVM-exception",
        "(MIT OR Apache-2.0) AND NCSA",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "MIT AND BSD-3-Clause OR GPL-2.0-only",
        "GPL-2.0-only AND MIT OR ISC",
        "(LGPL-3.0-only AND MIT) OR (Apache-2.0 AND (Zlib OR MPL-2.0))",
    ]:
        assert permitted(expression), expression
    for expression in [
        "GPL-3.0-or-later",
        "LGPL-2.1-or-later",
        "AGPL-3.0-only",
        "MPL-2.0",
        "MIT AND MPL-2.0",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "Apache-2.0 WITH Commons-Clause",
        "MIT AND (GPL-2.0-only OR LGPL-3.0-only)",
        "(MIT OR Apache-2.0) AND GPL-2.0-only",
        "ISC AND (MIT OR Apache-2.0) AND OpenSSL",
        "mit",
        "LicenseRef-our-own",
    ]:
        assert not permitted(expression), expression
    for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND MIT", "MIT, Apache-2.0", "MIT WITH"]:
        try:
            permitted(expression)
        except BadExpression:
            continue
        raise AssertionError(f"{expression!r} should be unreadable")
    assert refusal({"license": None, "license_file": "LICENSE"})
    assert refusal({"license": "MIT OR Apache-2.0"}) is None
    assert "GPL" in refusal({"license": "GPL-3.0-only"})
    print("licences: the checker passes its own test")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--self-test" in arguments:
        self_test()
    else:
        show = "--list" in arguments
        sys.exit(main([argument for argument in arguments if argument != "--list"], show))
