"""The check of the gate `tokens`: conversations fit, and what they cost is known and affordable.

It looks at the project's files only. Prices come from project.yaml and never from an installed
price table, so that the result is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_skills.findings import Checked, Finding, told

if TYPE_CHECKING:
    from estimates import Bill, Estimate
    from settings import ProjectSettings

# What the result can change with. The prompts' own sizes are not here: they are written after this
# gate and move the cost by little; the check reads them anew each time, and fails when it matters.
# `tuned` is not here either: it is set last, and until then costs what `base` costs.
TOKENS_SEEN = (
    "project.yaml#/limits",
    "project.yaml#/slicing",
    "project.yaml#/budgets",
    "project.yaml#/thresholds/reply_ratio_good",
    "project.yaml#/thresholds/fixup_share",
    "project.yaml#/thresholds/lost_slices",
    "project.yaml#/roles/user_sim",
    "project.yaml#/roles/assistant",
    "project.yaml#/roles/judges",
    "project.yaml#/roles/evaluation_judges",
    "project.yaml#/roles/fixup",
    "project.yaml#/roles/base",
    "persona-template.yaml#/length_classes",
)
PROJECT, PERSONAS = "config/project.yaml", "config/persona-template.yaml"
NEEDED = {
    "user_sim": "Write which model plays the users.",
    "assistant": "Write which model writes the replies to learn.",
    "judges": "Write which models judge, best two of other families than the assistant's.",
}


def check_tokens(root: Path) -> Checked:
    """The longest conversation fits, the number of examples is decided, and the cost of each stage
    is known and within its budget."""
    from estimates import estimate, measure_prompts
    from settings import SettingsError, load_persona_template, load_project

    checked = Checked(items=1)
    try:
        project, personas = load_project(root), load_persona_template(root)
    except SettingsError as error:
        checked.findings += map(told, error.findings)
        return checked
    roles = project.roles.model_copy(update={"tuned": None})
    project = project.model_copy(update={"roles": roles})
    found = estimate(project, personas, measure_prompts(root))
    for wrong in (_unseen(root), _undecided(project), _lengths(project, found)):
        checked.findings += wrong
    checked.findings += _unpriced(found)
    checked.findings += _over_budget(found)
    checked.figures = figures_of(found)
    return checked


def _unseen(root: Path) -> Iterator[Finding]:
    """What is left out of a file cannot be watched: a default could change under a passed gate."""
    from infrastructure import selector_hash

    for selector in TOKENS_SEEN:
        if selector_hash(root, selector) is None:
            name, _, place = selector.partition("#/")
            said = "is not written down, so a change of it could not be seen."
            todo = "Write it, with null or [] where it is not decided."
            yield Finding(f"config/{name} {place.replace('/', '.')}", said, todo)


def _undecided(project: ProjectSettings) -> Iterator[Finding]:
    for role, todo in NEEDED.items():
        if not getattr(project.roles, role):
            said = "is not decided, so the cost is not known."
            yield Finding(f"{PROJECT} roles.{role}", said, todo)
    if project.slicing.target_examples is None:
        todo = "Write how many; finetune estimate --examples N shows what a number costs."
        said = "how many training examples are wanted is not decided."
        yield Finding(f"{PROJECT} slicing.target_examples", said, todo)


def _lengths(project: ProjectSettings, found: Estimate) -> Iterator[Finding]:
    room, share = found.room, project.thresholds.lost_slices
    if found.longest > room.fits:
        tokens = room.tokens(found.longest)
        said = f"{found.longest} exchanges are {tokens:,.0f} tokens; the limit is {room.limit:,}."
        todo = f"Plan at most {room.fits} exchanges, or raise limits.max_tokens."
        yield Finding(f"{PERSONAS} length_classes.{found.longest_class}", said, todo)
    if found.per.over_share > share:
        said = f"{found.per.over_share:.1%} of the examples are over the limit of tokens."
        todo = f"thresholds.lost_slices allows {share:.0%}: plan shorter conversations."
        yield Finding(f"{PERSONAS} length_classes", said, todo)
    if found.plan is None and project.slicing.target_examples is not None:
        said = f"{found.unknown[0]}."
        todo = "Plan conversations of at least slicing.first exchanges, within limits.max_tokens."
        yield Finding(f"{PERSONAS} length_classes", said, todo)
    context = project.limits.context
    if context is not None and found.longest_prompt > context:
        said = f"is {context:,}, and the longest prompt is {found.longest_prompt:,.0f} tokens."
        yield Finding(f"{PROJECT} limits.context", said, "Plan shorter conversations or raise it.")


def _unpriced(found: Estimate) -> Iterator[Finding]:
    """Each decided role without a price, once. A role on this machine needs none."""
    seen: set[int] = set()
    for bill in found.bills:
        for work, quote in zip(bill.stage.works, bill.quotes, strict=True):
            if quote.problem and work.spec is not None and id(work.spec) not in seen:
                seen.add(id(work.spec))
                said = f"{work.model} has no price here, so the cost is not known."
                todo = "Add price: {input: ..., output: ..., source: PAGE, checked: DATE}"
                todo += " in dollars per million tokens, from the provider's page."
                yield Finding(f"{PROJECT} roles.{work.role}", said, todo)


def _over_budget(found: Estimate) -> Iterator[Finding]:
    for bill in found.bills:
        if bill.over_budget:
            said = (
                f"{bill.dollars.known:,.2f} dollars are needed, {bill.stage.budget:,.2f} are set."
            )
            todo = "Raise it, plan fewer examples, or take a cheaper model."
            yield Finding(f"{PROJECT} budgets.{bill.stage.name}", said, todo)


def figures_of(found: Estimate) -> dict[str, Any]:
    """What the ledger keeps. A word in place of a number is an unknown."""
    plan, works = found.plan, [work for bill in found.bills for work in bill.stage.works]
    complete = plan is not None
    figures: dict[str, Any] = {
        "limit": found.room.limit,
        "longest exchanges": found.longest,
        "exchanges that fit": found.room.fits,
        "examples": plan.examples if plan else "unknown",
        "personas": plan.transcripts if plan else "unknown",
        "calls": round(sum(work.calls for work in works)) if complete else "unknown",
        "tokens": round(sum(w.sent + w.received for w in works)) if complete else "unknown",
    }
    return figures | {f"dollars {bill.stage.name}": _told(bill) for bill in found.bills}


def _told(bill: Bill) -> str:
    amount, budget = bill.dollars, bill.stage.budget
    said = "unknown" if amount.value is None else f"{amount.value:.2f}"
    said = f"at least {said}" if amount.lower and amount.value is not None else said
    return f"{said} ({'no budget set' if budget is None else f'budget {budget:.2f}'})"
