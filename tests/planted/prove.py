"""Proves that the simulation's oracle finds bugs: each patch beside this file plants one.

All patches are applied to a copy of the sources under target/planted, each behind a switch
that the environment variable PLANTED turns on, so that one build serves all. Then the
simulation runs once without any, which must find nothing, and once with each, which must
find a violation within a minute. What no simulation can show, since its sockets seal nothing,
says in a line `Judge:` which unit tests must fail. Ends with `N of N found`; exit code 1 where
one isn't.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "planted"
TREE = TARGET / "tree"
WITHOUT = 3_000
SEEDS = 6_000
SECONDS = 60
BUILD_SECONDS = 600

SWITCH = '''//! Which bug of `tests/planted` is on: the one that PLANTED names.

/// Whether this one is.
pub fn on(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("PLANTED").ok());
    planted.as_deref() == Some(name)
}
'''


def copy_tree():
    """Copies what a build of the simulation needs. What didn't change keeps its time, so
    that cargo builds only what did."""
    files = {"src/planted.rs": SWITCH}
    for name in ["Cargo.toml", "Cargo.lock"]:
        files[name] = (ROOT / name).read_text()
    for folder in ["src", "tests", "benches"]:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".rs", ".html"}:
                files[str(path.relative_to(ROOT))] = path.read_text()
    for path in [*(ROOT / "config").iterdir(), *(ROOT / "docs").glob("*.md")]:
        files[str(path.relative_to(ROOT))] = path.read_text()
    files["src/lib.rs"] += "\npub mod planted;\n"
    return files


def apply(files, patches):
    """Applies every patch on its own, which must work, and then all together."""
    scratch = TARGET / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for name, text in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    stale = [p.stem for p in patches if git_apply(scratch, p, "--check").returncode]
    if stale:
        sys.exit(f"prove: these patches don't apply any more: {', '.join(stale)}")
    for patch in patches:
        done = git_apply(scratch, patch)
        if done.returncode:
            sys.exit(f"prove: {patch.stem} doesn't apply beside the others: {done.stderr}")
    for path in [path for path in TREE.rglob("*") if path.is_file()]:
        if str(path.relative_to(TREE)) not in files:
            path.unlink()
    for name in files:
        text, path = (scratch / name).read_text(), TREE / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    shutil.rmtree(scratch)


def git_apply(folder, patch, *more):
    command = ["git", "apply", "-C1", *more, str(patch)]
    # Outside any repository: git would skip what it takes for another one's files.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(TARGET), "GIT_DIR": "/dev/null"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=60)


def build():
    env = {**os.environ, "CARGO_TARGET_DIR": str(TARGET / "build"),
           "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
    command = ["cargo", "test", "--no-run", "--release", "--lib", "--test", "sim", "--message-format=json"]
    built = subprocess.run(command, cwd=TREE, env=env, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    for message in messages:
        if message.get("reason") == "compiler-message" and message["message"]["level"] == "error":
            print(message["message"]["rendered"])
    programs = {m["target"]["name"]: m["executable"] for m in messages
                if m.get("reason") == "compiler-artifact" and m["executable"] and m["profile"]["test"]}
    if built.returncode or not {"sim", "natsmux"} <= programs.keys():
        sys.exit("prove: the patched sources don't build")
    return programs


def simulate(program, planted, seeds):
    """The first seed that violates something, what it violates, and the seconds it took."""
    env = {**os.environ, "SEEDS": str(seeds), "VIOLATIONS": "1"}
    env.pop("SEED", None)
    env.pop("PLANTED", None)
    if planted:
        env["PLANTED"] = planted
    begun = time.monotonic()
    try:
        ran = subprocess.run([program], env=env, capture_output=True, text=True, timeout=SECONDS)
        output = ran.stdout
    except subprocess.TimeoutExpired:
        return None, f"nothing within {SECONDS} s", time.monotonic() - begun
    took = time.monotonic() - begun
    found = re.search(r"^seed (\d+) violates (.*)$", output, re.MULTILINE)
    if found:
        return int(found[1]), found[2], took
    return None, output.strip().splitlines()[-1] if output.strip() else "no output", took


def judge(program, planted, tests):
    """The first unit test among `tests` that fails, if one does, and the seconds it took."""
    env = {**os.environ, "PLANTED": planted}
    begun = time.monotonic()
    ran = subprocess.run([program, tests], env=env, capture_output=True, text=True, timeout=SECONDS)
    took = time.monotonic() - begun
    failed = re.search(r"^test (\S+) \.\.\. FAILED$", ran.stdout, re.MULTILINE)
    return failed and failed[1], took


def check_repeats(program, seed):
    """The same seed must give the same trace in another process."""
    env = {**os.environ, "SEED": str(seed)}
    env.pop("PLANTED", None)
    traces = [subprocess.run([program], env=env, capture_output=True, timeout=SECONDS).stdout for _ in range(2)]
    if traces[0] != traces[1]:
        sys.exit(f"prove: seed {seed} has another trace in another process")
    print(f"seed {seed}: the same trace of {len(traces[0].splitlines())} lines in two processes", flush=True)


def main():
    wanted = sys.argv[1:]
    patches = sorted(HERE.glob("*.patch"))
    patches = [p for p in patches if not wanted or p.stem in wanted]
    apply(copy_tree(), sorted(HERE.glob("*.patch")))
    programs = build()
    program = programs["sim"]
    seed, what, took = simulate(program, None, WITHOUT)
    print(f"{'(none)':28} {'':10} {what} ({took:.1f} s)", flush=True)
    if seed is not None:
        sys.exit(f"prove: seed {seed} violates something without any planted bug")
    check_repeats(program, 7)
    found = 0
    for patch in patches:
        text = patch.read_text()
        layer = re.search(r"^Layer: (.*)$", text, re.MULTILINE)[1]
        tests = re.search(r"^Judge: (.*)$", text, re.MULTILINE)
        if tests:
            what, took = judge(programs["natsmux"], patch.stem, tests[1])
            found += what is not None
            place = "unit test" if what else "NOT FOUND"
            what = what or f"{tests[1]} passes"
        else:
            seed, what, took = simulate(program, patch.stem, SEEDS)
            found += seed is not None
            place = f"seed {seed}" if seed is not None else "NOT FOUND"
        print(f"{patch.stem:28} {layer:10} {place:12} {took:5.1f} s  {what[:100]}", flush=True)
    print(f"{found} of {len(patches)} found")
    sys.exit(found != len(patches))


if __name__ == "__main__":
    main()
