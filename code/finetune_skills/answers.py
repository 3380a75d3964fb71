"""What `finetune init` asks, and the texts that the answers become in the project's files.

Everything is worked out once, at init, and recorded in the manifest: so an upgrade fills in what
the person was given, even when the shares or the wording below have changed since.
"""

import re
import sys
from collections.abc import Iterable, Mapping

from infrastructure import KINDS, FinetuneError, unknown

NONE = "none"
QUESTIONS = {  # name of the answer: (question, what it is when nobody is asked)
    "name": ("Short name of the project", ""),
    "domain": ("What should the model be good at, in one sentence", "not decided yet"),
    "language": ("Main language (en, de, pt-BR, ...)", "en"),
    "hardware": ("Which machine will run the model", "not decided yet"),
    "offline": ("Must it work without any network (true or false)", "true"),
    "budget": ("Dollars for the whole project at most (none: not decided)", NONE),
    "providers": (f"Providers you can use, of {', '.join(KINDS)} (none: not decided)", NONE),
}
# How a budget is divided; start values. Writing and judging the conversations costs most; a rented
# GPU is often the largest single bill. A stage that is missing in an old record gets null.
SHARES = {
    "baseline": 0.05,
    "generate": 0.35,
    "assess": 0.20,
    "fixup": 0.05,
    "build_dataset": 0.05,
    "submit_training": 0.20,
    "run_evaluation": 0.10,
}
NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")  # as settings.py has it for ids
FORMS = {  # as settings.py has them: what it has to look like, and how that is said
    "language": (
        re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"),
        'a language code. Write "en" or "pt-BR"',
    ),
    "offline": (re.compile("true|false"), "true or false. Write one of the two words"),
}
DOLLARS = re.compile(r"\$?(\d{1,9})(?:\.(\d{1,2}))?")
# kind: (extra that brings its package, what else it needs)
PROVIDERS = {
    "openai": ("openai", "OPENAI_API_KEY"),
    "anthropic": ("anthropic", "ANTHROPIC_API_KEY"),
    "google": ("google", "GOOGLE_API_KEY"),
    "claude": ("", "the Claude Code program"),
    "local": ("local", "a running server"),
    "llamacpp": ("llamacpp", "a GGUF file"),
    "python": ("", "a function of yours"),
}
SPECS = {
    "local": "local:MODEL, preset: llama-server",
    "llamacpp": "llamacpp:FILE.gguf",
    "python": "python:MODULE:FUNCTION",
}


def answers(given: Mapping[str, str], folder: str, ask: bool = True) -> dict[str, str]:
    """From flags; at a terminal, ask for the rest; else the start values. All of them checked."""
    asked = ask and sys.stdin.isatty() and sys.stderr.isatty()
    values = {key: checked(key, text) for key, text in given.items()}
    for key, (question, usual) in QUESTIONS.items():
        usual = usual or re.sub(r"[^A-Za-z0-9._-]+", "-", folder[:120]).strip("-.") or "project"
        if key not in values:
            values[key] = asked_for(key, question, usual) if asked else usual
        values[key] = values[key] or usual
    return {key: values[key] for key in QUESTIONS}


def asked_for(key: str, question: str, usual: str) -> str:
    """At a terminal a wrong answer is asked for again."""
    import click

    def check(text: str) -> str:
        try:
            return checked(key, text)
        except FinetuneError as error:
            raise click.UsageError(str(error)) from None

    return str(click.prompt(question, usual, err=True, value_proc=check))


def checked(key: str, text: str) -> str:
    """The answer in the one form that is recorded; an error says what is wrong with it."""
    if key == "name" and text and not NAME.fullmatch(text):
        said = "Use letters, digits and . _ - only, at most 120."
        raise FinetuneError(f'name: "{text[:40]}" is not a name for files. {said}')
    if key in FORMS and text and not FORMS[key][0].fullmatch(text):
        raise FinetuneError(f'{key}: "{text[:40]}" is not {FORMS[key][1]}.')
    if key == "budget":
        return budget_of(text)
    return ", ".join(providers_of(text)) or NONE if key == "providers" else text


def budget_of(text: str) -> str:
    """Dollars and cents as `12.50`, or `none`."""
    text = text.strip()
    if text.lower() in ("", NONE):
        return NONE
    found = DOLLARS.fullmatch(text)
    if not found:
        said = f'budget: "{text[:40]}" is not a sum of dollars. Write it as 50 or 12.50, or none.'
        raise FinetuneError(said)
    return f"{int(found[1])}.{(found[2] or '').ljust(2, '0')}"


def providers_of(text: str) -> list[str]:
    """The kinds that a comma list names, each once, in the order of the list."""
    names = [name.strip() for name in text.split(",")]
    kinds = [name.lower() for name in names if name and name.lower() != NONE]
    for kind in kinds:
        if kind not in KINDS:
            raise FinetuneError(f"providers: {unknown('provider', kind[:60], KINDS)}")
    return list(dict.fromkeys(kinds))


# ── what becomes of them ──────────────────────────────────────────────────────────────────────────


def texts(values: Mapping[str, str]) -> dict[str, str]:
    """The answers with every text that follows from them; without answers: not decided."""
    kinds = providers_of(values.get("providers", NONE))
    first = kinds[0] if kinds else "KIND"
    more = {f"budget_{stage}": part for stage, part in split(values.get("budget", NONE)).items()}
    more["providers_named"] = ", ".join(kinds) or "not decided yet"
    more["providers_need"] = needed(kinds) or "not known yet"
    more["role_example"] = f"{{model: {SPECS.get(first, f'{first}:MODEL')}}}"
    return {**values, **more}


def split(budget: str) -> dict[str, str]:
    """Each stage's part in whole cents; together exactly the budget."""
    if budget == NONE:
        return dict.fromkeys(SHARES, "null")
    cents, done, share, parts = int(budget.replace(".", "")), 0, 0.0, {}
    for stage, part in SHARES.items():
        share += part
        upto = round(cents * share)
        parts[stage] = f"{(upto - done) // 100}.{(upto - done) % 100:02d}"
        done = upto
    return parts


def needed(kinds: Iterable[str]) -> str:
    """What has to be there before these providers can be called."""
    return ", ".join(f"{kind}: {PROVIDERS[kind][1]}" for kind in kinds)


def hints(values: Mapping[str, str]) -> list[str]:
    """What to install in the new folder and which keys to set, one line each."""
    kinds = providers_of(values.get("providers", NONE))
    extras = [PROVIDERS[kind][0] for kind in kinds if PROVIDERS[kind][0]]
    keys = [PROVIDERS[kind][1] for kind in kinds if PROVIDERS[kind][1].endswith("_KEY")]
    packages = f".[{','.join(extras)}]" if extras else "."
    lines = [f"There: python3 -m venv .venv && .venv/bin/pip install '{packages}'"]
    return lines + ([f"In .env (copy .env.example): {', '.join(keys)}"] if keys else [])
