"""`finetune estimate`: what every stage will need, as a table for people and as JSON for programs.

It reads files and computes. It builds no model client and never goes to the network; a price is
shown only with its source and its date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from estimates import Amount, Bill, Estimate, Quote, TrainingPlan, Work

STAGES = ("baseline", "generate", "assess", "fixup", "run_evaluation", "training")
WIDTH = 80


@click.command("estimate")
@click.option("--examples", type=click.IntRange(min=1), help="In place of target_examples.")
@click.option(
    "--pass-rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of transcripts that pass; start value 0.7.",
)
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only these.")
@click.option(
    "--gpu-price",
    "gpu",
    multiple=True,
    metavar="KIND=USD",
    help="Dollars per hour, as you read it.",
)
@click.option(
    "--price-table",
    metavar="DATE",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Use genai-prices, released on this day.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also every input and where it comes from.")
@click.option("--json", "json_", is_flag=True, help="One JSON object on stdout.")
def estimate(
    examples: int | None,
    pass_rate: float | None,
    stages: tuple[str, ...],
    gpu: tuple[str, ...],
    price_table: Any,
    verbose: bool,
    json_: bool,
) -> None:
    """Tokens, calls, dollars, memory and hours, before any is spent.

    Reads the project's files only: no model is called, no price is fetched. What is not known is
    called unknown.

    Example: finetune estimate --examples 1000 --gpu-price A100-80=2.5
    """
    from infrastructure import project_root

    day = price_table.date().isoformat() if price_table else ""
    root = project_root()
    found, note = estimate_of(root, examples, pass_rate, gpu_prices(gpu), day)
    told = as_dict(found, stages or STAGES, note)
    if json_:
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo("\n".join(text_of(found, stages or STAGES, note, verbose)))


def estimate_of(
    root: Path,
    examples: int | None = None,
    pass_rate: float | None = None,
    gpu: dict[str, tuple[float, str]] | None = None,
    table_date: str = "",
) -> tuple[Estimate, str]:
    """The estimate of a project, and why nothing is said about training, if so."""
    from estimates import Assumed, estimate, measure_prompts
    from infrastructure import FinetuneError
    from settings import SettingsError, load_persona_template, load_project

    _need_table(table_date)
    try:
        project, personas = load_project(root), load_persona_template(root)
    except SettingsError as error:
        raise FinetuneError(str(error)) from None
    assumed = Assumed() if pass_rate is None else Assumed(pass_rate=pass_rate)
    choice, note = choice_of(root)
    about = (measure_prompts(root), choice, assumed, examples, table_date, gpu)
    return estimate(project, personas, *about), note


def _need_table(table_date: str) -> None:
    from importlib.util import find_spec

    from infrastructure import FinetuneError

    if table_date and find_spec("genai_prices") is None:
        said = "--price-table: genai-prices is not installed."
        raise FinetuneError(f"{said} Install finetune-skills[prices], or leave the option out.")


def choice_of(root: Path) -> tuple[Any, str]:
    """What design/model-choice.md says; None and why when it cannot be read yet."""
    from settings import SettingsError, load_model_choice

    try:
        return load_model_choice(root), ""
    except SettingsError as error:
        return None, str(error.findings[0])


def gpu_prices(given: tuple[str, ...]) -> dict[str, tuple[float, str]]:
    """KIND=USD, each said today by the person who typed it."""
    from datetime import date

    from estimates import GPUS
    from infrastructure import FinetuneError, unknown

    prices: dict[str, tuple[float, str]] = {}
    for each in given:
        kind, _, price = each.partition("=")
        if kind not in {gpu.kind for gpu in GPUS}:
            raise FinetuneError(f"--gpu-price: {unknown('GPU', kind, [g.kind for g in GPUS])}")
        try:
            value = float(price)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            said = f'--gpu-price: "{price}" is no price. Write {kind}=2.5, dollars per hour.'
            raise FinetuneError(said)
        prices[kind] = (value, date.today().isoformat())
    return prices


# ══ for programs ══════════════════════════════════════════════════════════════════════════════════


def as_dict(found: Estimate, stages: tuple[str, ...], note: str) -> dict[str, Any]:
    """The same content as the text; null is unknown."""
    bills = [bill for bill in found.bills if bill.stage.name in stages]
    told: dict[str, Any] = {"limits": limits_dict(found), "plan": vars_of(found.plan)}
    told["stages"] = [bill_dict(bill) for bill in bills]
    told["total"] = amount_dict(total_of(bills))
    told["comparison"] = [vars_of(each) | {"ratio": each.ratio} for each in found.comparison]
    if "training" in stages:
        told["training"] = training_dict(found.training) if found.training else None
    told["unknown"] = [*found.unknown, *([note] if note else [])]
    told["inputs"] = [vars_of(each) for each in found.inputs]
    return told


def limits_dict(found: Estimate) -> dict[str, Any]:
    room = found.room
    return {
        "max_tokens": room.limit,
        "system_prompt_tokens": room.system,
        "longest_class": found.longest_class,
        "longest_exchanges": found.longest,
        "longest_tokens": room.tokens(found.longest),
        "exchanges_that_fit": room.fits,
        "over_limit_share": found.per.over_share,
        "longest_prompt": found.longest_prompt,
    }


def vars_of(record: Any) -> dict[str, Any]:
    return {} if record is None else dict(vars(record))


def total_of(bills: list[Bill]) -> Amount:
    from estimates import total

    return total(bill.dollars for bill in bills)


def amount_dict(amount: Amount) -> dict[str, Any]:
    """`dollars` is null when a part is unknown; `known` is what the other parts come to."""
    return {
        "dollars": amount.value,
        "known": amount.known,
        "unknown": list(amount.unknown),
        "lower_bound_because": list(amount.lower),
    }


def bill_dict(bill: Bill) -> dict[str, Any]:
    rows = zip(bill.stage.works, bill.quotes, bill.amounts, strict=True)
    cached = bill.with_cache
    told = {"stage": bill.stage.name, "budget": bill.stage.budget, **amount_dict(bill.dollars)}
    told["with_cache"] = amount_dict(cached) if cached else None
    return told | {"roles": [row_dict(*row) for row in rows]}


def row_dict(work: Work, quote: Quote, amount: Amount) -> dict[str, Any]:
    return {
        "role": work.role,
        "model": work.model,
        "calls": work.calls,
        "tokens_sent": work.sent,
        "tokens_received": work.received,
        "tokens_cached_at_best": work.cached,
        "received_is_lower_bound": bool(work.lower),
        "price": price_dict(quote),
        "runs_here": quote.free,
        **amount_dict(amount),
    }


def price_dict(quote: Quote) -> dict[str, Any] | None:
    """Never without source and date; null when it is unknown or nothing is paid."""
    if quote.free or quote.problem:
        return None
    kept = ("input", "output", "cached_input", "source", "checked")
    return {name: getattr(quote, name) for name in kept}


def training_dict(plan: TrainingPlan) -> dict[str, Any]:
    told = vars_of(plan)
    told["memory"] = plan.memory and vars_of(plan.memory) | {"with_margin": plan.memory.wanted}
    told["gpus"] = [
        {
            "kind": row.gpu.kind,
            "gigabytes": row.gpu.gigabytes,
            "fits": row.fits,
            "hours": row.hours,
            "dollars": row.dollars,
            "price": gpu_price_dict(row),
        }
        for row in plan.gpus
    ]
    return told


def gpu_price_dict(row: Any) -> dict[str, Any] | None:
    if row.price is None:
        return None
    return {"per_hour": row.price, "source": "said on the command line", "checked": row.said}


# ══ for people: at most 80 columns, no colour ═════════════════════════════════════════════════════


def text_of(found: Estimate, stages: tuple[str, ...], note: str, verbose: bool) -> list[str]:
    """The whole answer. A line with a dollar sign holds a price, its date, and next its source."""
    bills = [bill for bill in found.bills if bill.stage.name in stages]
    lines = [*limits_text(found), "", *plan_text(found), "", *comparison_text(found)]
    if bills:
        lines += ["", *bills_text(bills), "", *prices_text(bills)]
    if "training" in stages:
        lines += ["", *training_text(found.training, note)]
    return [*lines, *(["", *inputs_text(found)] if verbose else [])]


def limits_text(found: Estimate) -> list[str]:
    room, tokens = found.room, found.room.tokens(found.longest)
    fits = "fits" if found.longest <= room.fits else "does NOT fit"
    return [
        "Length of one training example",
        *row("limit", f"{room.limit:,} tokens"),
        *row("longest planned", f"{found.longest} exchanges ({found.longest_class})"),
        *row("", f"{tokens:,.0f} tokens with the system prompt: {fits}"),
        *row("that fit at most", f"{room.fits} exchanges"),
        *row("over the limit", f"{found.per.over_share:.1%} of the examples"),
    ]


def plan_text(found: Estimate) -> list[str]:
    plan = found.plan
    if plan is None:
        todo = "Set it in config/project.yaml, or say --examples N."
        return ["Plan", *row("unknown", f"{found.unknown[0]}. {todo}")]
    return [
        "Plan",
        *row("examples", f"{plan.examples:,}"),
        *row("per transcript", f"{plan.per_transcript:.2f} examples of one that passes"),
        *row("pass rate", f"{plan.pass_rate:g}"),
        *row("passing", f"{plan.passing:,} transcripts"),
        *row("to generate", f"{plan.transcripts:,} transcripts, each with its own persona"),
        *row("exchanges", f"{plan.exchanges:,}"),
    ]


def comparison_text(found: Estimate) -> list[str]:
    """Slices against whole conversations, from the same transcripts."""
    count = found.comparison[0].transcripts
    lines = [f"Slices against whole conversations, from {count:,} passing transcripts"]
    lines.append(
        f"  {'':<8}{'examples':>10}{'over limit':>12}{'tokens':>16}{'learned':>16}{'ratio':>8}"
    )
    for each in found.comparison:
        ratio = "-" if each.ratio is None else f"{each.ratio:.1f}"
        figures = f"{each.examples:>10,.0f}{each.over_share:>12.1%}{each.tokens:>16,.0f}"
        lines.append(f"  {each.mode:<8}{figures}{each.learned:>16,.0f}{ratio:>8}")
    return [*lines, *wrap("learned: tokens of replies that carry loss; ratio: computed for each")]


def bills_text(bills: list[Bill]) -> list[str]:
    """Calls, tokens and dollars of each stage and role."""
    head = f"  {'':<22}{'calls':>10}{'tokens sent':>17}{'received':>15}{'dollars':>14}"
    lines = ["Calls, tokens and dollars", head]
    for bill in bills:
        lines.append(f"  {bill.stage.name:<64}{dollars(bill.dollars):>14}")
        for work, amount in zip(bill.stage.works, bill.amounts, strict=True):
            received = f"{work.received:,.0f}" + ("+" if work.lower else "")
            counts = f"{work.calls:>10,.0f}{work.sent:>17,.0f}{received:>15}"
            lines.append(f"    {clean(work.role):<20}{counts}{dollars(amount):>14}")
        lines += budget_text(bill)
    amount = total_of(bills)
    lines.append(f"  {'total':<64}{dollars(amount):>14}")
    return lines + remarks(amount) + thinking([work for b in bills for work in b.stage.works])


def budget_text(bill: Bill) -> list[str]:
    """What the budget says, and what a cache could save."""
    lines, cached = [], bill.with_cache
    if cached is not None:
        lines.append(f"    {'with cache, at best':<62}{dollars(cached):>14}")
    if bill.stage.budget is None:
        return lines
    over = "  (over)" if bill.over_budget else ""
    return [*lines, f"    {'budget' + over:<62}{bill.stage.budget:>14,.2f}"]


def remarks(amount: Amount) -> list[str]:
    """Why the total is unknown, and what to write where."""
    lines: list[str] = []
    if amount.unknown:
        lines += wrap(f"known so far: {amount.known:,.2f} dollars. Unknown:")
        lines += [line for each in amount.unknown for line in wrap(f"- {each}")]
    if any("no price" in each for each in amount.unknown):
        lines += wrap(
            "A price goes to its role in config/project.yaml: price: {input: ..., output: ..., "
            "source: PAGE, checked: DATE}, in dollars per million tokens. Or give --price-table "
            "DATE: then genai-prices answers, as released on that day."
        )
    return lines


def thinking(works: list[Work]) -> list[str]:
    """Which roles may write more tokens than are counted."""
    roles = dict.fromkeys(work.role for work in works if work.lower)
    if not roles:
        return []
    said = f"+ is at least: reasoning tokens are not known for {', '.join(roles)}."
    return wrap(f"{said} Write reasoning_tokens there, 0 if it does not think.")


def prices_text(bills: list[Bill]) -> list[str]:
    """Each price once, with source and date."""
    lines, seen = ["Prices, in dollars per million tokens"], set()
    for bill in bills:
        for work, quote in zip(bill.stage.works, bill.quotes, strict=True):
            key = (work.role, work.model)
            if key not in seen:
                seen.add(key)
                lines += price_text(work, quote)
    return lines


def price_text(work: Work, quote: Quote) -> list[str]:
    name = f"{work.role}  {work.model}"
    if quote.problem:
        return wrap(f"{name}: unknown ({quote.problem})")
    if quote.free:
        return wrap(f"{name}: 0, runs on this machine")
    cached = "" if quote.cached_input is None else f", ${quote.cached_input:g} cached"
    price = f"${quote.input:g} sent, ${quote.output:g} received{cached}"
    return [
        *wrap(name),
        f"      {price}; checked {quote.checked}",
        *wrap(f"    source: {quote.source}", "      "),
    ]


def training_text(plan: TrainingPlan | None, note: str) -> list[str]:
    if plan is None:
        return ["Training", *row("unknown", note)]
    lines = [f"Training ({plan.method})"]
    lines += row("examples", number(plan.examples, "in the training part"))
    lines += row("steps", number(plan.steps, ""))
    lines += row("tokens, one epoch", number(plan.tokens, ""))
    lines += row("of them learned", number(plan.learned, ""))
    memory = plan.memory
    if memory:
        lines += row("memory", f"{gb(memory.wanted)} (peak {gb(memory.peak)}; x 1.1 + 1 GB margin)")
        lines += [row(f"  {name}", gb(each))[0] for name, each in memory.parts.items()]
        at = f"at up to 2,048 tokens; here {plan.step_tokens:,.0f}"
        told = "The formula is within 4.6 % of one LoRA step on fake tensors"
        lines += wrap("Peak: the first four, and what is larger: the loss or the last two.")
        lines += wrap(f"{told} {at}. No GPU was measured.")
    else:
        lines += row("memory", "unknown")
    lines += ["", *gpus_text(plan)]
    lines += ["", "Running the tuned model"]
    lines += row("file", gb(plan.file) if plan.file else "unknown")
    lines += row("cache", f"{gb(plan.cache)} at full context" if plan.cache else "unknown")
    lines += wrap("Without the buffers for computing. Measure both on the machine that ships.")
    return lines + [line for each in plan.unknown for line in wrap(f"- unknown: {each}")]


def gpus_text(plan: TrainingPlan) -> list[str]:
    """Hours are a range, because the utilisation is not known before it is measured."""
    lines = ["GPU kinds", f"  {'kind':<16}{'memory':>8}{'fits':>10}{'hours':>20}{'dollars':>20}"]
    for each in plan.gpus:
        fits = {True: "yes", False: "no", None: "unknown"}[each.fits]
        hours, cost = span(each.hours), span(each.dollars)
        known = f"{each.gpu.gigabytes:>5} GB{fits:>10}{hours:>20}{cost:>20}"
        lines.append(f"  {each.gpu.kind:<16}{known}")
    priced = [each for each in plan.gpus if each.price is not None]
    for each in priced:
        said = f"${each.price:g} an hour, said on the command line; checked {each.said}"
        lines += wrap(f"{each.gpu.kind}: {said}")
    told = "Hours: at 45 % to 15 % of the peak, without start-up; run 20 steps to know better."
    told += " A T4 has no bf16: train in fp16 there."
    lines += wrap(told)
    return lines if priced else lines + wrap("Price unknown: say --gpu-price KIND=USD_PER_HOUR.")


def inputs_text(found: Estimate) -> list[str]:
    lines = ["Inputs"]
    for each in found.inputs:
        value = f"{each.value:,}" if isinstance(each.value, int) else str(each.value)
        lines += wrap(f"{each.name:<32}{value}  ({each.source})", " " * 34)
    return lines


def row(name: str, said: str) -> list[str]:
    return wrap(f"{name:<20}{said}", " " * 22)


def wrap(text: str, later: str = "    ") -> list[str]:
    """Lines of at most 80 columns; a long address is broken rather than left too wide."""
    import textwrap

    return textwrap.wrap(
        clean(text), WIDTH, initial_indent="  ", subsequent_indent=later, drop_whitespace=True,
        replace_whitespace=False, break_on_hyphens=False,
    )  # fmt: skip


def clean(text: str) -> str:
    """On one line and without control characters, whatever a file holds."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def dollars(amount: Amount) -> str:
    if amount.value is None:
        return "unknown"
    shown = "under 0.01" if 0 < amount.value < 0.01 else f"{amount.value:,.2f}"
    return shown + ("+" if amount.lower else "")


def number(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:,.0f} {unit}".strip()


def span(pair: tuple[float, float] | None) -> str:
    return "unknown" if pair is None else f"{pair[0]:,.1f} to {pair[1]:,.1f}"


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
