"""The gate hook: would this shell command run a stage whose gate is closed?

    gate_hook.py < EVENT.json           exit 2 and one message when it would, else 0
    gate_hook.py session-start FOLDER   one status line for the project in FOLDER
    gate_hook.py check ROOT SCRIPT      asks for one script; run by the first form

Starts with `python -I`. It reads the shell command as text and the project as data; what it imports
comes from the bundle. A shell line can't be understood completely, so the scripts ask as well: this
is the early and friendly answer. Where the line stays unclear it lets the command through: make,
just, a shell script, a notebook or a person's own program are not looked into, and what they start
asks for its gate itself.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = os.path.dirname(os.path.realpath(__file__))
BUNDLE = os.path.dirname(HERE)
PATIENCE = 50  # seconds; hooks.json gives 60, and a hook that runs out of time would let through
DEPTH = 6  # shells within shells

HEREDOC = re.compile(
    r"^([^\n]*?)<<-?[ \t]*(['\"]?)(\w+)\2([^\n]*)\n(.*?)^[ \t]*\3[ \t]*$", re.DOTALL | re.MULTILINE
)
TOKEN = re.compile(
    r"""(?P<gap>[ \t\r]+|\\\n)|(?P<note>\#[^\n]*)|(?P<to>\d*(?:&>>?|[<>]&|>>|>\||<<<|[<>]))"""
    r"""|(?P<op>&&|\|\||;;|\|&|[;&|()\n`])"""
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\;&|()<>`])+)|(?P<odd>.)""",
    re.DOTALL,
)
PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""", re.DOTALL)
NESTED = re.compile(r"\$\(([^()]*)\)|`([^`]*)`")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?|py")
SHELLS = {"sh", "bash", "zsh", "dash", "ksh"}
KEYWORDS = {"then", "do", "else", "elif", "if", "while", "until", "!", "{", "time"}
# Programs that run the rest of their words, and those of their options that take a value.
WRAPPERS: dict[str, set[str]] = {
    "env": {"-u", "--unset", "-S"},
    "sudo": {"-u", "-g", "-C", "-D"},
    "nice": {"-n"},
    "ionice": {"-c", "-n"},
    "timeout": {"-s", "-k", "--signal", "--kill-after"},
    "stdbuf": {"-i", "-o", "-e"},
    "xargs": {"-n", "-P", "-I", "-L", "-d"},
    "taskset": set(),
    "exec": {"-a"},
    "conda": {"-n", "-p", "--name", "--prefix"},
    **{name: set() for name in ("nohup", "setsid", "command", "builtin", "caffeinate")},
    **{name: set() for name in ("poetry", "pipenv", "hatch", "pdm", "rye", "pixi")},
}
RUN_FIRST = {"poetry", "pipenv", "hatch", "pdm", "rye", "pixi", "conda", "uv"}
ONE_MORE = {"timeout", "taskset"}  # a word of their own before the command
LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "coverage", "ipython"}
LAUNCHER_MODULES = {"torch.distributed.run", "torch.distributed.launch", "accelerate", "coverage"}
LAUNCHER_MODULES |= {"accelerate.commands.launch", "pdb", "cProfile", "profile", "trace", "runpy"}
UV_VALUES = {"--with", "--with-editable", "--with-requirements", "--python", "-p", "--extra"}
UV_VALUES |= {"--group", "--env-file", "--index", "--index-url", "--project", "--package", "-w"}
UV_VALUES |= {"--only-group", "--no-group", "--cache-dir", "--config-file", "--find-links", "-f"}
PYTHON_VALUES = {"-W", "-X", "--check-hash-based-pycs"}
HARMLESS = {"--help", "-h", "--dry-run"}


def main() -> int:
    if sys.argv[1:2] == ["session-start"]:
        print(status_line(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["check"]:
        return tell(closed(sys.argv[2], sys.argv[3]))
    event = json.load(sys.stdin)
    command = (event.get("tool_input") or {}).get("command")
    here = event.get("cwd") or os.getcwd()
    seen = stages_run(command, here) if isinstance(command, str) else []
    for root, script in dict.fromkeys(seen):
        code = ask(root, script)
        if code:
            return code
    return 0


# ── what a shell command would run ────────────────────────────────────────────────────────────────


def stages_run(command: str, here: str) -> list[tuple[str, str]]:
    """Each gated stage script that the command would run, with the root of its project."""
    found = (gated(path) for path in Line(here, dict(os.environ)).scripts(command))
    return [each for each in found if each]


def gated(path: str) -> tuple[str, str] | None:
    """(root, script) when the path is a gated script of a project that has gates."""
    folder, name = os.path.split(os.path.normpath(path))
    root = os.path.dirname(folder)
    if name not in requires() or os.path.basename(folder) != "scripts":
        return None
    return (root, name) if os.path.isdir(os.path.join(root, ".finetune")) else None


class Line:
    """One shell command, read without running it: where it stands, which variables it has set."""

    def __init__(self, here: str, names: dict[str, str], depth: int = 0) -> None:
        self.here, self.names, self.depth = here, {**names, "PWD": here}, depth

    def scripts(self, text: str) -> Iterator[str]:
        """Absolute paths of the Python scripts that the text would run."""
        if self.depth > DEPTH:
            return
        bodies: list[str] = []
        text = HEREDOC.sub(lambda match: without_body(match, bodies), text)
        outer: list[str] = []
        for words, ending in simple_commands(text):
            for inner in substitutions(words):
                yield from self.inside(inner)
            yield from self.of([self.expand(word) for word in words])
            if ending == "(":
                outer.append(self.here)
            elif ending == ")" and outer:
                self.here = outer.pop()
        for body in bodies:
            yield from self.inside(body)

    def inside(self, text: str) -> Iterator[str]:
        return Line(self.here, self.names, self.depth + 1).scripts(text)

    def expand(self, word: str) -> str:
        """The word without its quotes; variables that are known are put in."""
        parts = []
        for single, double, escaped, bare in PIECE.findall(word):
            parts.append(single or escaped or self.filled(double or bare))
        plain = "".join(parts)
        home = self.names.get("HOME", "")
        return home + plain[1:] if home and (plain == "~" or plain.startswith("~/")) else plain

    def filled(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            return self.names.get(match[1] or match[2], match[0])

        return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)

    def of(self, words: list[str]) -> Iterator[str]:
        """The scripts that one simple command would run."""
        words = self.after_assignments(words)
        if not words or self.depth > DEPTH:
            return
        name, rest = os.path.basename(words[0]), words[1:]
        if name in ("cd", "pushd"):
            self.go([word for word in rest if not word.startswith("-") or word == "-"])
        elif name == "export":
            self.after_assignments(rest)
        elif PYTHON.fullmatch(name):
            yield from self.of_python(rest)
        elif "/" in words[0] and name.endswith(".py"):
            yield from self.run(words[0], rest)
        else:
            yield from self.of_runner(name, rest)

    def of_runner(self, name: str, rest: list[str]) -> Iterator[str]:
        """The scripts that a program runs for its user; none when it is no runner."""
        if name == "eval":
            yield from self.inside(" ".join(rest))
        elif name in SHELLS:
            yield from self.of_shell(rest)
        elif name in ("tmux", "screen"):
            for word in rest:
                yield from self.inside(word if " " in word else "")
        elif name in ("uv", "uvx"):
            yield from self.of_uv(rest)
        elif name in WRAPPERS:
            yield from self.of_wrapper(name, rest)
        elif name in LAUNCHERS:
            yield from self.first_script(rest)

    def after_assignments(self, words: list[str]) -> list[str]:
        """Without the keywords and A=1 in front; a line of assignments alone sets them."""
        at = 0
        while at < len(words) and (words[at] in KEYWORDS or ASSIGNMENT.fullmatch(words[at])):
            at += 1
        if at == len(words):
            pairs = (ASSIGNMENT.fullmatch(word) for word in words)
            self.names.update((pair[1], pair[2]) for pair in pairs if pair)
        return words[at:]

    def go(self, to: list[str]) -> None:
        folder = to[0] if to else self.names.get("HOME", self.here)
        if folder != "-" and "$" not in folder:
            self.here = os.path.normpath(os.path.join(self.here, folder))
            self.names["PWD"] = self.here

    def run(self, path: str, arguments: list[str]) -> Iterator[str]:
        if not HARMLESS & set(arguments):
            yield os.path.normpath(os.path.join(self.here, path))

    def of_shell(self, words: list[str]) -> Iterator[str]:
        """`bash -c TEXT`, `bash -lc TEXT`."""
        for at, word in enumerate(words):
            if re.fullmatch(r"-\w*c\w*", word):
                yield from self.inside(" ".join(words[at + 1 : at + 2]))
                return
            if not word.startswith(("-", "+")):
                return

    def of_python(self, words: list[str]) -> Iterator[str]:
        at = 0
        while at < len(words):
            word = words[at]
            if word == "-m" or re.fullmatch(r"-[BEIOPSbdiqsuvx]+m", word):
                yield from self.of_module(words[at + 1 :])
                return
            if word == "-c" or re.fullmatch(r"-[BEIOPSbdiqsuvx]*c.*", word):
                return
            if not word.startswith("-") or word == "-":
                yield from self.run(word, words[at + 1 :])
                return
            at += 2 if word in PYTHON_VALUES else 1

    def of_module(self, words: list[str]) -> Iterator[str]:
        name = words[0] if words else ""
        if name in LAUNCHER_MODULES:
            yield from self.first_script(words[1:])
        elif name:
            yield from self.run(name.replace(".", "/") + ".py", words[1:])

    def first_script(self, words: list[str]) -> Iterator[str]:
        """`torchrun --nproc 2 scripts/train.py ...`: the first word that is a Python file."""
        for at, word in enumerate(words):
            if word.endswith(".py"):
                yield from self.run(word, words[at + 1 :])
                return

    def of_uv(self, words: list[str]) -> Iterator[str]:
        here, at, module = self.here, 0, False
        while at < len(words) and (words[at] == "run" or words[at].startswith("-")):
            word, _, value = words[at].partition("=")
            module = module or word in ("-m", "--module")
            if word == "--directory":
                value, at = (value, at) if value else (" ".join(words[at + 1 : at + 2]), at + 1)
                here = os.path.join(here, value)
            at += 2 if word in UV_VALUES and "=" not in words[at] else 1
        inner = Line(os.path.normpath(here), self.names, self.depth + 1)
        rest = words[at:]
        if "run" not in words[:at] or not rest:
            return
        if module:
            yield from inner.of_module(rest)
        elif rest[0].endswith(".py"):
            yield from inner.run(rest[0], rest[1:])
        else:
            yield from inner.of(rest)

    def of_wrapper(self, name: str, words: list[str]) -> Iterator[str]:
        inner = Line(self.here, self.names, self.depth + 1)
        if name in RUN_FIRST:
            if "run" not in words:
                return
            words = words[words.index("run") + 1 :]
        at = 0
        while at < len(words) and (words[at].startswith("-") or ASSIGNMENT.fullmatch(words[at])):
            if name == "env" and words[at] in ("-C", "--chdir"):
                inner.go(words[at + 1 : at + 2])
                at += 2
                continue
            if name == "env" and words[at] in ("-S", "--split-string"):
                yield from inner.inside(" ".join(words[at + 1 :]))
                return
            at += 2 if words[at] in WRAPPERS[name] else 1
        yield from inner.of(words[at + (name in ONE_MORE) :])


def without_body(match: re.Match[str], bodies: list[str]) -> str:
    """The here-document's text is data, except where a shell reads it."""
    before, _, _, after, body = match.groups()
    reader = re.split(r"[;&|(]", before)[-1].split()
    if reader and os.path.basename(reader[0]) in SHELLS:
        bodies.append(body)
    return f"{before} {after}\n"


def simple_commands(text: str) -> Iterator[tuple[list[str], str]]:
    """The words of each simple command, still quoted, and what ends it; redirections are left out,
    except that `python < FILE` runs the file."""
    words: list[str] = []
    target = ""
    for match in TOKEN.finditer(text):
        kind, part = match.lastgroup, match[0]
        if kind == "to":
            target = part
        elif kind == "word" and target:
            if target == "<" and len(words) == 1:
                words.append(part)
            target = ""
        elif kind == "word":
            words.append(part)
        elif kind == "op":
            yield words, part
            words, target = [], ""
    yield words, ""


def substitutions(words: list[str]) -> Iterator[str]:
    """The commands in "$(...)": the shell runs them, but not within single quotes."""
    for word in words:
        for quoted in re.findall(r'"((?:\\.|[^"\\])*)"', re.sub(r"'[^']*'", "", word)):
            for dollar, tick in NESTED.findall(quoted):
                yield dollar or tick


# ── what the gate says ────────────────────────────────────────────────────────────────────────────


def requires() -> dict[str, str]:
    """The bundle's table: script -> gate."""
    import importlib.util

    path = os.path.join(package(), "stages.py")
    spec = importlib.util.spec_from_file_location("finetune_stages", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.REQUIRES)


def package() -> str:
    inside = os.path.join(BUNDLE, "code", "finetune_skills")
    return inside if os.path.isdir(inside) else os.path.dirname(BUNDLE)


def ask(root: str, script: str) -> int:
    """0 when the gate is open; asks in another interpreter when this one can't read YAML."""
    if able():
        return tell(closed(root, script))
    python = launcher().ready_python(BUNDLE)
    if python is None:
        gate = requires()[script]
        return tell(f"gate {gate}: can't be checked without PyYAML. Run once: finetune status")
    import subprocess

    return subprocess.call([python, "-I", os.path.realpath(__file__), "check", root, script])


def able() -> bool:
    import importlib.util

    return sys.version_info >= (3, 11) and importlib.util.find_spec("yaml") is not None


def launcher() -> Any:
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    path, kept = os.path.join(BUNDLE, "bin", "finetune"), sys.dont_write_bytecode
    spec = spec_from_loader("finetune_launcher", SourceFileLoader("finetune_launcher", path))
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = kept
    return module


def closed(root: str, script: str) -> str:
    """Why the script may not run yet; empty when it may."""
    import contextlib
    import io
    import signal

    kernel, gates = the_kernel(), the_gates()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one message, not a line per damaged row
            gate = requires()[script]
            return str(gates.closed_gates(Path(root), gates.upstream(gate))[gate])
    except kernel.FinetuneError as error:
        return str(error)
    finally:
        signal.alarm(0)


def too_long(*_: object) -> None:
    raise TimeoutError("the files that the gate looked at take too long to read")


def the_kernel() -> Any:
    sys.path.insert(0, os.path.join(BUNDLE, "code"))
    import infrastructure

    return infrastructure


def the_gates() -> Any:
    """The table of gates; after the bundle on the path, so that nothing beside it comes first."""
    sys.path.append(os.path.dirname(package()))
    from finetune_skills import gates

    return gates


def tell(why: str) -> int:
    """The one message; what comes from the project is cut and kept to one line."""
    if not why:
        return 0
    plain = "".join(sign if sign.isprintable() else " " for sign in why)[:500]
    print(f"finetune: stopped before it ran. {plain}", file=sys.stderr)
    return 2


def status_line(root: str) -> str:
    """One line for the start of a session; figures and our own words only."""
    fallback = "finetune: this folder is a fine-tuning project. Where it stands: finetune status"
    if not able():
        return fallback
    kernel = the_kernel()
    try:
        found = the_gates().closed_gates(Path(root))
    except kernel.FinetuneError:
        return fallback
    names, waiting = list(found), [name for name, why in found.items() if why]
    done = f"{len(names) - len(waiting)} of {len(names)} gates are open"
    following = f"; the next is {waiting[0]}" if waiting else ""
    return f"finetune: a fine-tuning project; {done}{following}. Where it stands: finetune status"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # noqa: BLE001 - gate-hook closes for a gated command
        print(f"finetune: gate hook: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)
