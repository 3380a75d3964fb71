"""The `finetune` command: it scaffolds, checks and shows; it holds no pipeline logic.

stdout carries results (`--json` everywhere), stderr progress. Exit 0: passed. 1: not. 2: usage or
environment. Imports happen inside the verbs, so that `finetune --help` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from finetune_skills.estimate import estimate
from finetune_skills.judges import judges

EXAMPLE = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
as_json = click.option("--json", "json_", is_flag=True, help="One JSON object on stdout.")


class Verbs(click.Group):
    """Shows our errors as one text without a traceback, with their own exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from finetune_skills.bundle import use_bundle

        use_bundle()
        from infrastructure import FinetuneError

        try:
            return super().invoke(ctx)
        except FinetuneError as error:
            click.echo(str(error), err=True)
        except OSError as error:  # a name too long, a folder that is closed
            click.echo(f"{error.filename or 'finetune'}: {error.strerror or error}", err=True)
        sys.exit(2)


@click.group(cls=Verbs, context_settings=EXAMPLE)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda *given: tell_version(*given),
    help="Show the version and exit.",
)
def main() -> None:
    """From "I want a model that is good at DOMAIN conversations" to one that is shown to be better.

    Start with `finetune init DIR`, then follow `finetune status`.
    """


def tell_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """The release, where it is known, and a short hash of what a project would get."""
    if asked:
        from finetune_skills.bundle import bundle_root, use_bundle

        use_bundle()
        from finetune_skills.scaffold import bundle_version

        click.echo(bundle_version(bundle_root()))
        ctx.exit()


def project() -> Path:
    from infrastructure import project_root

    return project_root()


def show(value: Any, text: str, json_: bool) -> None:
    """The result: as JSON, or as text for a person."""
    click.echo(json.dumps(value, indent=2) if json_ else text)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", help="Short name; start value: the folder's name.")
@click.option("--domain", help="What the model should be good at, in one sentence.")
@click.option("--language", help="Main language, such as en.")
@click.option("--hardware", help="The machine that will run the model.")
@click.option("--offline", type=click.Choice(["true", "false"]), help="Without any network?")
@click.option("--budget", help="Dollars for the whole project at most, such as 50, or none.")
@click.option("--providers", help="Kinds of model you can use, such as openai,local, or none.")
@click.option("--example", default="", help="Begin with a complete example of this name.")
@as_json
def init(directory: Path, example: str, json_: bool, **flags: str | None) -> None:
    """Make a project: config, modules, and the record that upgrades need.

    Asks for what no flag says, when it runs at a terminal. Overwrites nothing.

    Example: finetune init my-project --domain "returns and refunds of a web shop"
    """
    from finetune_skills.answers import answers, hints, texts
    from finetune_skills.bundle import bundle_root
    from finetune_skills.scaffold import bundle_files, create_project, without_effect

    sources = bundle_files(bundle_root(), example)  # an unknown example, before any question
    given = {key: text for key, text in flags.items() if text is not None}
    if idle := without_effect(sources, given):
        said = ", ".join(f"--{key}" for key in idle)
        raise click.UsageError(f"the example {example} has decided this itself, leave out {said}")
    values = answers(given, directory.resolve().name, ask=not example)
    files = create_project(directory, bundle_root(), texts(values), example=example)
    wrong, todo = project_mistakes(directory), hints(values)
    told = {"project": str(directory), "files": [str(path) for path in files], "mistakes": wrong}
    lines = [f"{directory}: {len(files)} files", *(f"  {line}" for line in wrong), *todo]
    following = f"Next: cd {directory} && finetune status"
    show(told | {"todo": todo}, "\n".join([*lines, following]), json_)


def project_mistakes(root: Path) -> list[str]:
    """What the answers got wrong, so that it is said at once and not at the first gate."""
    from settings import SettingsError, load_project

    try:
        load_project(root)
    except SettingsError as error:
        return [str(finding) for finding in error.findings]
    return []


@main.command()
@as_json
def status(json_: bool) -> None:
    """Phases, gates, what is missing, and the next command.

    Example: finetune status --json
    """
    from finetune_skills import gates

    root = project()
    if said := gates.ledger_damage(root):
        click.echo(said, err=True)
    found = gates.states(root)
    following = gates.next_command(found)
    told = {"gates": [state.to_dict() for state in found.values()], "next": following}
    show(told, status_table(found, following), json_)


MOST_SHOWN = 5  # findings of one gate in the table


def status_table(found: Any, following: str) -> str:
    """At most 80 columns, readable without colour."""
    from finetune_skills.gates import PHASES

    lines = []
    for phase in PHASES:
        rows = [state for state in found.values() if state.phase == phase]
        done = sum(state.state in ("passed", "waived") for state in rows)
        lines.append(f"{phase}  {done}/{len(rows)}")
        for state in rows:
            lines.append(f"  {state.gate:<11}{state.state}" + remark(state))
            if state.state in ("failed", "stale"):
                lines += map(wrapped, state.findings[:MOST_SHOWN])
                more = len(state.findings) - MOST_SHOWN
                lines += [f"      {more} more: finetune gate {state.gate}"] if more > 0 else []
    return "\n".join([*lines, "", f"Next: {following}" if following else "Next: nothing to run"])


def wrapped(text: object, indent: str = "      ") -> str:
    """Indented, and at most 80 columns wide; a long path or word stays whole."""
    import textwrap

    lines = textwrap.TextWrapper(80, indent, f"{indent}  ", break_long_words=False)
    lines.break_on_hyphens = False
    return lines.fill(str(text))


def remark(state: Any) -> str:
    """Why it was waived; and what was made, where that is not the usual."""
    said = state.reason or (state.figures.get("made", "") if state.state == "passed" else "")
    return f" ({said})" if said else ""


@main.command()
@click.argument("name", required=False)
@click.option("--phase", help="All gates of a phase: design, generate or train.")
@click.option("--all", "all_", is_flag=True, help="Every gate, in order.")
@click.option("--by", default="", help="Who runs it; kept in the ledger.")
@as_json
def gate(name: str | None, phase: str | None, all_: bool, by: str, json_: bool) -> None:
    """Run a gate's check, print what it finds, keep the result. Exit 0 passed, 1 not.

    Example: finetune gate model
    """
    from finetune_skills import gates

    names = [n for n, row in gates.GATES.items() if all_ or row.phase == phase]
    names = [name] if name else names
    if not names or (name and (phase or all_)):
        raise click.UsageError("name one gate, or --phase design, generate or train, or --all")
    root, names = project(), [gates.gate_named(each).name for each in names]
    gates.refuse_unreadable(root, names)  # all of them, before the first result is recorded
    found = [gates.pass_gate(root, each, by) for each in names]
    text = "\n".join(gate_text(state) for state in found)
    show([state.to_dict() for state in found], text, json_)
    sys.exit(0 if all(state.state in gates.OPEN for state in found) else 1)


def gate_text(state: Any) -> str:
    from finetune_skills.gates import STATES

    head = f"gate {state.gate}: {state.state} ({STATES[state.state]})"
    return "\n".join([head, *figure_lines(state.figures), *map(wrapped, state.findings)])


def figure_lines(figures: dict[str, Any], indent: str = "    ") -> list[str]:
    """`name: value`, one to a line; what has parts takes a line for each."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *figure_lines(value, f"{indent}  ")]
        elif value not in ({}, []):
            shown = f"{value:,}" if isinstance(value, int) else str(value)
            lines.append(wrapped(f"{name}: {shown}", indent))
    return lines


@main.command()
@click.argument("name")
@click.option("--by", required=True, help="Your name; kept in the ledger and in every report.")
@as_json
def approve(name: str, by: str, json_: bool) -> None:
    """Approve a gate that needs a person. Works only at a terminal.

    Example: finetune approve pilot --by "Ann Example"
    """
    confirm(name)
    decide(name, "approved", by, "", json_)


@main.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; repeated in every report and model card.")
@click.option("--by", required=True, help="Your name.")
@as_json
def waive(name: str, reason: str, by: str, json_: bool) -> None:
    """Let a gate through that has not passed. A person's act, only at a terminal.

    Example: finetune waive tokens --reason "no tokenizer offline" --by Ann
    """
    confirm(name)
    decide(name, "waived", by, reason, json_)


def confirm(name: str) -> None:
    """A person sits here: a terminal, and the gate's name typed by hand."""
    from finetune_skills.gates import gate_named
    from infrastructure import FinetuneError

    gate_named(name)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise FinetuneError(
            f"gate {name}: a person must do this, at a terminal; ask them to run it"
        )
    click.echo(f"Type the gate's name ({name}) to go on: ", nl=False, err=True)
    if sys.stdin.readline().strip() != name:
        raise FinetuneError(f"gate {name}: the name was not typed; nothing was changed")


def decide(name: str, result: str, by: str, reason: str, json_: bool) -> None:
    from finetune_skills import gates

    state = gates.decide(project(), name, result, by, reason)
    show(state.to_dict(), gate_text(state), json_)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@as_json
def upgrade(dry_run: bool, json_: bool) -> None:
    """Bring what is new in this release into the project's copied files, merged with your edits.

    Clashes leave markers and exit 1; files that you deleted stay deleted.

    Example: finetune upgrade --dry-run
    """
    from finetune_skills.bundle import bundle_root
    from finetune_skills.upgrade import apply_upgrade, exit_code, plan_upgrade

    actions = (plan_upgrade if dry_run else apply_upgrade)(project(), bundle_root())
    changes = [action for action in actions if action.kind != "unchanged"]
    text = "\n".join(map(str, changes)) or "nothing to change"
    show([action.to_dict() for action in actions], text, json_)
    sys.exit(exit_code(actions))


@main.command("install")
@click.option("--user/--project", help="For all your projects, or for this folder only.")
@click.option("--agent", type=click.Choice(["claude", "agents"]), default="claude")
@click.option("--uninstall", is_flag=True, help="Remove what was put there, and only that.")
@click.option("--force", is_flag=True, help="Also replace installed files that were edited.")
@as_json
def install_skills(user: bool, agent: str, uninstall: bool, force: bool, json_: bool) -> None:
    """Copy skills, code and examples into .claude/skills or .agents/skills.

    Example: finetune install --agent claude
    """
    from finetune_skills import install as installing
    from finetune_skills.bundle import bundle_root

    where, scope = (Path.home(), "user") if user else (Path.cwd(), "project")
    if uninstall:
        report = installing.uninstall(where, agent, scope)
    else:
        report = installing.install(bundle_root(), where, agent, scope, force)
    counts = {name: len(getattr(report, name)) for name in ("added", "updated", "removed")}
    lines = [f"{report.target}: " + ", ".join(f"{n} {name}" for name, n in counts.items())]
    lines += [f"  kept {name}: {why}" for name, why in report.kept.items()]
    lines += [f"  this bundle has no {name} yet" for name in report.missing]
    show(report.to_dict(), "\n".join([*lines, *report.warnings]), json_)
    sys.exit(report.exit_code)


main.add_command(estimate)
main.add_command(judges)


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the project.")
@click.option("--full", is_flag=True, help="Also train, convert and serve a tiny model.")
@as_json
def rehearse(keep: Path | None, full: bool, json_: bool) -> None:
    """Run the example project through every stage: simulated models, offline, free.

    Then plant faults in copies of it. Exit 1: a step failed, or a fault was not caught.

    Example: finetune rehearse --keep my-rehearsal
    """
    from finetune_skills import rehearse as rehearsing
    from infrastructure import FinetuneError

    if full:
        raise FinetuneError("rehearse --full: not built yet. Run it without --full.")
    done, told = rehearsing.rehearse(keep)
    show(told, "\n".join(rehearsing.table(done, told)), json_)
    sys.exit(0 if rehearsing.passed(done) else 1)


@main.command()
@click.option("--batch", default="", metavar="NAME", help="Only this batch, such as pilot-001.")
@click.option("--blind", is_flag=True, help="Hide every verdict: for measuring the judges.")
@click.option(
    "--ab", type=click.Path(path_type=Path), metavar="FILE", help="Compare pairs of files."
)
@click.option("--by", default="", metavar="NAME", help="Your name; else the page asks.")
@click.option("--sample", type=click.IntRange(min=0), help="Drawn at random; start value 10.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: this project's own.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@as_json
def review(
    batch: str,
    blind: bool,
    ab: Path | None,
    by: str,
    sample: int | None,
    port: int,
    no_browser: bool,
    json_: bool,
) -> None:
    """Read transcripts beside their verdicts and label them, on a page of this machine only.

    A person does this. Labels go to data/reviews/labels.jsonl as you work. Ctrl-C ends it.

    Example: finetune review --batch pilot-001
    """
    from finetune_skills.review import start

    root = project()
    given = start.Given(batch, blind, ab, by, sample, port, not no_browser)
    start.review(root, given, lambda url, at: show({"url": url, "port": at}, url, json_))


@main.command()
@click.option("--live", is_flag=True, help="One tiny call to each role's model. May cost a little.")
@as_json
def doctor(live: bool, json_: bool) -> None:
    """Versions, packages, and which keys are set (never the keys). Exit 1: a role doesn't answer.

    Example: finetune doctor --live
    """
    import os

    from finetune_skills import doctor as examining
    from infrastructure import KEYS, find_project

    root = find_project()
    environment_of(root)
    keys = {name: "set" if os.environ.get(name) else "not set" for name in KEYS}
    told = {"project": str(root or "none"), "keys": keys} | examining.examine(root, live)
    show(told, doctor_text(told), json_)
    sys.exit(int(any(not said.startswith("answers") for said in told["roles"].values())))


def environment_of(root: Path | None) -> None:
    """Read the project's .env; a malformed one is said and changes nothing."""
    from settings import SettingsError, read_env

    try:
        _ = read_env(root) if root else []
    except SettingsError as error:
        click.echo(str(error), err=True)


def doctor_text(told: dict[str, Any]) -> str:
    lines = [f"python {told['python']}", f"project {told['project']}"]
    for part in ("packages", "keys", "roles"):
        lines += [f"{part}:", *(f"  {name:<22}{value}" for name, value in told[part].items())]
    return "\n".join(line for line in lines if line != "roles:" or told["roles"])


if __name__ == "__main__":
    main()
