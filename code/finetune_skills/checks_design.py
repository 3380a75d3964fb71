"""The checks of the design phase: model, taxonomy, rubric, personas, prompts.

Each is a pure function of files. Mistakes of one file come from `settings`; here stands what only
several files together can get wrong. `tokens` is in checks_tokens.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

from finetune_skills.bundle import bundle_root
from finetune_skills.findings import Checked, Finding, Places, loaded, places, told, zero_weights
from infrastructure import FinetuneError, ReadReport, iter_records, load_rubric, selector_hash

PROJECT, TAXONOMY = "config/project.yaml", "config/input-taxonomy.yaml"
PERSONAS, RUBRIC = "config/persona-template.yaml", "config/rubric.yaml"
CHOICE, CRITIQUE = "design/model-choice.md", "design/critique.md"
PROMPTS: tuple[str, ...] = ("config/prompts/user_sim.md", "config/prompts/assistant.md")
PROMPTS += ("config/prompts/assessor.md", "config/prompts/fixup.md", "config/system-prompt.md")

GENERATING = ("user_sim", "assistant")  # their words end up in the training data, so terms apply
MODEL_SEEN: tuple[str, ...] = ("project.yaml#/roles/base", "project.yaml#/target")
MODEL_SEEN += tuple(f"project.yaml#/roles/{r}/{k}" for r in GENERATING for k in ("model", "terms"))
MODEL_SEEN += ("project.yaml#/roles/fixup", f"{CHOICE}#/")
TAXONOMY_SEEN = ("input-taxonomy.yaml#/", f"{CRITIQUE}#/taxonomy")
RUBRIC_SEEN = ("rubric.yaml#/", f"{CRITIQUE}#/rubric")
PERSONAS_SEEN: tuple[str, ...] = (
    "persona-template.yaml#/",
    "project.yaml#/limits",
    "project.yaml#/seeds/personas",
)
PERSONAS_SEEN += ("project.yaml#/seeds/evaluation", f"{CRITIQUE}#/personas")
PROMPTS_SEEN = (*PROMPTS, f"{CRITIQUE}#/prompts")


# ── model ─────────────────────────────────────────────────────────────────────────────────────────


def check_model(root: Path) -> Checked:
    """A base model is pinned and described, and what writes training data may be learned from."""
    from settings import load_model_choice, load_project

    checked = Checked(items=2)
    project = loaded(load_project, root, checked)
    choice = loaded(load_model_choice, root, checked)
    if project is not None:
        checked.findings += _undecided(project.roles, places(root, PROJECT))
        checked.figures["output terms"] = _terms(project.roles)
    if choice is not None:
        about = {"base": choice.base.id, "revision": choice.base.revision[:12]}
        about |= {"licence": choice.base.licence, "window": choice.base.context_window}
        checked.figures |= about | {"practical length": choice.base.context_window // 2}
        checked.findings += _unlikely(choice, places(root, CHOICE))
    if project is not None and choice is not None:
        checked.findings += _disagreeing(project, choice, places(root, CHOICE))
    return checked


def _undecided(roles: Any, at: Places) -> Iterator[Finding]:
    if roles.base is None:
        todo = "Write the model that will be fine-tuned, for example `model: local:NAME`."
        yield Finding(at("roles", "base"), "no model yet.", todo)
    for name in (*GENERATING, "fixup"):
        role = getattr(roles, name)
        if role is None and name != "fixup":
            todo = "Its words will be learned, so name it and the terms of its provider."
            yield Finding(at("roles", name), "no model yet.", todo)
        elif role is not None and role.terms is None:
            todo = "A person reads them once: add `terms:` with source, checked and note."
            said = "nobody has written down whether its outputs may be used for training."
            yield Finding(at("roles", name), said, todo)


def _terms(roles: Any) -> dict[str, str]:
    """Per generating role: where the terms are, who read them when; for the model card."""
    told_by = {}
    for name in (*GENERATING, "fixup"):
        role = getattr(roles, name)
        if role is not None and role.terms is not None:
            terms = role.terms
            told_by[name] = f"{role.model}: {terms.note} ({terms.source}, {terms.checked})"
    return told_by


def _unlikely(choice: Any, at: Places) -> Iterator[Finding]:
    """What the model's own name and window speak against."""
    if re.search(r"[-_](pt|base|pretrained?)$", choice.base.id, re.IGNORECASE):
        todo = "Look for the same name with -it, -Instruct or -chat, or without -Base."
        yield Finding(at("base", "id"), "is the name of a bare base model.", todo)
    if choice.training.method == "full" and choice.base.parameters > 4:
        said = f"full training of {choice.base.parameters:g} billion parameters needs many GPUs."
        yield Finding(at("training", "method"), said, "Use lora or qlora, or a smaller model.")


def _disagreeing(project: Any, choice: Any, at: Places) -> Iterator[Finding]:
    base, target = choice.base, project.target
    if project.roles.base is not None and base.served_as != project.roles.base.model:
        said = f'is "{base.served_as}", but roles.base.model is "{project.roles.base.model}".'
        yield Finding(at("base", "served_as"), said, "Make them equal: it is one model.")
    if choice.offline != target.offline:
        mine, theirs = str(choice.offline).lower(), str(target.offline).lower()
        said = f"is {mine}, but target.offline in {PROJECT} is {theirs}."
        yield Finding(at("offline"), said, "Decide once.")
    if target.context_window > base.context_window:
        said = f"is {base.context_window}, but target.context_window in {PROJECT} is "
        todo = "Lower that, or take another model."
        yield Finding(at("base", "context_window"), f"{said}{target.context_window}.", todo)


# ── taxonomy ──────────────────────────────────────────────────────────────────────────────────────


def check_taxonomy(root: Path) -> Checked:
    """Every group has a dimension, every value can be drawn, edge cases are within their band."""
    from settings import GROUPS, load_taxonomy

    checked, at = Checked(), places(root, TAXONOMY)
    taxonomy = loaded(load_taxonomy, root, checked)
    if taxonomy is not None:
        empty = [group for group in GROUPS if not getattr(taxonomy, group)]
        todo = "Add one with weights; what does not vary in the data is not learned."
        checked.findings += [Finding(at(group), "has no dimension.", todo) for group in empty]
        checked.findings += zero_weights(at, _taxonomy_weights(taxonomy))
        checked.findings += _edge_share(taxonomy, at)
        checked.findings += _impossible(taxonomy, at)
        checked.items = sum(map(len, taxonomy.dimensions().values()))
        shares = {t.name: t.weight for t in taxonomy.topics if t.edge_case}
        checked.figures = {"dimensions": len(taxonomy.dimensions()), "values": checked.items}
        checked.figures["edge-case share"] = round(sum(shares.values()), 6)
    checked.findings += critique_findings(root, "taxonomy", (TAXONOMY,))
    return checked


def _taxonomy_weights(taxonomy: Any) -> Iterator[tuple[tuple[str | int, ...], float]]:
    from settings import GROUPS

    for number, topic in enumerate(taxonomy.topics):
        yield ("topics", number), topic.weight
        for name, weight in topic.subtopics.items():
            yield ("topics", number, "subtopics", name), weight
    for name, weight in taxonomy.difficulty.items():
        yield ("difficulty", name), weight
    for group in GROUPS:
        for name, values in getattr(taxonomy, group).items():
            for value, weight in values.items():
                yield (group, name, value), weight


def _edge_share(taxonomy: Any, at: Places) -> Iterator[Finding]:
    band, share = taxonomy.edge_cases, sum(t.weight for t in taxonomy.topics if t.edge_case)
    if not band.lowest - 1e-9 <= share <= band.highest + 1e-9:
        said = f"topics with edge_case: true hold {share:.3g} of the weight; the band is "
        said += f"{band.lowest:g} to {band.highest:g}."
        yield Finding(at("edge_cases"), said, f"Aim at {band.target:g}: change weights or marks.")


COMBINATIONS = 200_000  # of the constrained dimensions; beyond that the draw itself will say


def _impossible(taxonomy: Any, at: Places) -> Iterator[Finding]:
    """Constraints that together rule out every combination, or one value altogether."""
    rules = taxonomy.constraints
    names = sorted({name for rule in rules for side in (rule.when, rule.never) for name in side})
    values = {name: list(taxonomy.dimensions()[name]) for name in names}
    seen: Counter[tuple[str, str]] = Counter()
    for drawn in islice(product(*values.values()), COMBINATIONS):
        persona = dict(zip(names, drawn, strict=True))
        if not any(_breaks(persona, rule) for rule in rules):
            seen.update(persona.items())
    lost = [(n, v) for n, each in values.items() for v in each if not seen[n, v]]
    for name, value in lost[:3]:
        said = f"the constraints rule out {name} = {value} in every combination."
        yield Finding(at("constraints"), said, "Loosen one, or remove the value.")


def _breaks(persona: Mapping[str, str], rule: Any) -> bool:
    """All that `when` names and any of what `never` names: as sampling.py reads it."""
    when = all(persona[name] in wanted for name, wanted in rule.when.items())
    return when and any(persona[name] in wanted for name, wanted in rule.never.items())


# ── rubric ────────────────────────────────────────────────────────────────────────────────────────

# Words by which a question asks for a size. Models can't count, so code has to.
COUNTING = re.compile(
    r"\b(word count|(?<!for )how (many|long)|number of|too (long|short)|(longer|shorter) than|length"
    r"|ratio|proportion|percent(age)?|twice as)\b|\d ?%",
    re.IGNORECASE,
)


def check_rubric(root: Path) -> Checked:
    """The kernel can score with it, each question has its NA rule, examples and, if it counts,
    its computed statistic."""
    from settings import check_file

    checked, at = Checked(), places(root, RUBRIC)
    checked.findings += map(told, check_file(root / RUBRIC, RUBRIC))
    if not checked.findings:
        try:
            rubric = load_rubric(root / RUBRIC)
        except FinetuneError as error:
            checked.findings += _from_kernel(root, str(error))
        else:
            checked.items = len(rubric.criteria)
            checked.findings += _weak_criteria(rubric, at)
            checked.figures = {"criteria": len(rubric.criteria), "gates": len(rubric.safety_gates)}
            examples = [len(c.calibration_examples) for c in rubric.criteria.values()]
            checked.figures |= {"calibration examples": sum(examples)}
    checked.findings += critique_findings(root, "rubric", (RUBRIC,))
    return checked


def _from_kernel(root: Path, said: str) -> Iterator[Finding]:
    for line in said.splitlines():
        where, _, what = line.removeprefix(f"{root}/").partition(": ")
        yield Finding(where, what)


def _weak_criteria(rubric: Any, at: Places) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for name, criterion in rubric.criteria.items():
        question = " ".join(criterion.question.lower().split())
        if question in first:
            said = f"asks the same as {first[question]}."
            yield Finding(at("criteria", name, "question"), said, "Keep one of the two.")
        first.setdefault(question, name)
        counting = COUNTING.search(criterion.question)
        if counting and not criterion.statistics:
            said = f'asks for a size ("{counting[0]}"), and models can\'t count.'
            todo = "Name what code computes: `statistics: [mean_ratio, over_2]`."
            yield Finding(at("criteria", name, "question"), said, todo)
        kinds = {str(example["type"]) for example in criterion.calibration_examples}
        for needed in ("PASS", "FAIL"):
            if not any(kind.endswith(needed) for kind in kinds):
                said = f"no example is a {needed} or BORDERLINE_{needed}."
                todo = "A judge needs both sides of the line."
                yield Finding(at("criteria", name, "calibration_examples"), said, todo)


# ── personas ──────────────────────────────────────────────────────────────────────────────────────


def check_personas(root: Path) -> Checked:
    """The template draws people who fit the taxonomy, and conversations that fit the limit."""
    from settings import load_persona_template, load_project, load_taxonomy

    checked, at = Checked(), places(root, PERSONAS)
    template = loaded(load_persona_template, root, checked)
    project, taxonomy = loaded(load_project, root, checked), loaded(load_taxonomy, root, checked)
    if template is not None:
        weights = list(_persona_weights(template))
        checked.items, checked.figures = len(weights), {"values": len(weights)}
        checked.findings += zero_weights(at, weights)
        checked.figures["personas without a flaw"] = template.flaw_patterns.none_share
    if template is not None and project is not None:
        checked.findings += _too_long(template, project.limits, at)
        checked.figures["longest"] = max(c.exchanges for c in template.length_classes.values())
    if template is not None and taxonomy is not None:
        said = list(_against_taxonomy(template, taxonomy, at))
        checked.findings += said or _as_drawn(root, template, taxonomy, checked)
    checked.findings += critique_findings(root, "personas", (PERSONAS,))
    return checked


def _persona_weights(template: Any) -> Iterator[tuple[tuple[str | int, ...], float]]:
    own, style = template.persona_template, template.persona_template.communication_style
    for name, weight in own.age_range.items():
        yield ("persona_template", "age_range", name), weight
    for name, weight in style.weights.items():
        yield ("persona_template", "communication_style", "weights", name), weight
    for family in ("primary", "secondary"):
        for name, flaw in getattr(template.flaw_patterns, family).patterns.items():
            yield ("flaw_patterns", family, "patterns", name), flaw.weight
    for key in ("trajectory", "response_types", "length_classes"):
        for name, option in getattr(template, key).items():
            yield (key, name), option.weight
    for name, values in template.attributes.items():
        for value, weight in values.items():
            yield ("attributes", name, value), weight


def _too_long(template: Any, limits: Any, at: Places) -> Iterator[Finding]:
    """The longest has to fit; the shortest must not be below what a transcript needs."""
    each = limits.tokens_per_exchange
    for name, length in template.length_classes.items():
        tokens = length.exchanges * each
        if tokens > limits.max_tokens:
            said = f"{length.exchanges} exchanges of {each} tokens are {tokens:,}, and "
            said += f"limits.max_tokens is {limits.max_tokens:,}."
            todo = f"At most {limits.max_tokens // each} exchanges fit."
            yield Finding(at("length_classes", name), said, todo)
        if length.exchanges < limits.min_exchanges:
            said = f"{length.exchanges} exchanges are fewer than limits.min_exchanges "
            yield Finding(at("length_classes", name), f"{said}({limits.min_exchanges}).",
                          "Every such transcript would be rejected.")  # fmt: skip


def _against_taxonomy(template: Any, taxonomy: Any, at: Places) -> Iterator[Finding]:
    topics = template.persona_template.topics
    if topics.count.at_most > len(taxonomy.topics) and not topics.repeat:
        said = f"{topics.count.at_most} topics without repetition, but the taxonomy has "
        where = at("persona_template", "topics", "count", "at_most")
        yield Finding(where, f"{said}{len(taxonomy.topics)}.", "Lower it, or add topics.")
    for name in template.attributes:
        if name in taxonomy.dimensions():
            said = "is also a dimension of the taxonomy, so that it would be drawn twice."
            yield Finding(at("attributes", name), said, "Keep it in one of the two files.")


def _as_drawn(root: Path, template: Any, taxonomy: Any, checked: Checked) -> Iterator[Finding]:
    """What the draws will really give, and whether the personas on disk are still such draws."""
    from sampling import EDGE, expected_shares, prepare

    try:
        plan = prepare(taxonomy, template)
        share = expected_shares(plan)[EDGE].get("edge case")
    except FinetuneError as error:
        yield Finding(PERSONAS, str(error))
        return
    band = taxonomy.edge_cases
    checked.figures["edge cases among drawn topics"] = (
        "unknown" if share is None else round(share, 4)
    )
    if share is not None and not band.lowest - 1e-9 <= share <= band.highest + 1e-9:
        said = f"topics without repetition make {share:.3g} of them edge cases; the band is "
        said += f"{band.lowest:g} to {band.highest:g}."
        yield Finding(f"{TAXONOMY} edge_cases", said, "Change the weights, or count and repeat.")
    yield from _drawn_files(root, plan, checked)


def _drawn_files(root: Path, plan: Any, checked: Checked) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in ("training", "evaluation"):
        shown, rows = f"data/personas/{name}.jsonl", 0
        for row in iter_records(root / shown, ReadReport()):
            item, rows = str(row.get("id")), rows + 1
            made = row.get("provenance") or {}
            if any(made.get(key, value) != value for key, value in plan.hashes.items()):
                said = f"{item} was drawn from another template or taxonomy."
                todo = "Move the file away and draw again, or take the change back."
                yield Finding(shown, said, todo)
                break
            if seen.setdefault(item, name) != name:
                yield Finding(shown, f"{item} is also in the {seen[item]} set.", "Draw again.")
                break
        checked.figures[f"{name} personas on disk"] = rows


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────

# Numbers of the configuration that a prompt must not say again: they would soon say two things.
REPEATED = re.compile(r"\b\d+ ?%|\b(\d+ ?(-|to|and|\u2013) ?)?\d+ words\b", re.IGNORECASE)


def check_prompts(root: Path) -> Checked:
    """Every section is there, every placeholder is filled, every drawn value reaches the simulator,
    and no number of the configuration is repeated."""
    from settings import PROMPTS as SECTIONS
    from settings import load_prompt, load_system_prompt

    checked, fields = Checked(), _fields(root)
    for name in SECTIONS:
        own = fields if name == "user_sim" else ()
        sections = loaded(lambda root, n=name, f=own: load_prompt(root, n, f), root, checked)
        checked.items += len(sections or ())
    prompt = loaded(load_system_prompt, root, checked)
    if prompt is not None:
        checked.items += 1
        checked.figures["system prompt words"] = len(prompt.split())
    checked.findings += _repeated_numbers(root)
    checked.figures["sections"] = checked.items
    checked.findings += critique_findings(root, "prompts", PROMPTS)
    return checked


def _fields(root: Path) -> tuple[str, ...]:
    """Names of what is drawn for a persona, as single placeholders would write them."""
    from sampling import LABELS, TOPICAL, placeholder
    from settings import SettingsError, load_persona_template, load_taxonomy

    try:
        names = [*load_taxonomy(root).dimensions(), *load_persona_template(root).attributes]
    except SettingsError:
        return ()  # the gates of those files say it
    return (*LABELS, *(placeholder(name) for name in names if name not in TOPICAL))


def _repeated_numbers(root: Path) -> Iterator[Finding]:
    for name in PROMPTS[:2]:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # the loader has said it
        for found in REPEATED.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            said = f'"{found[0]}" is a number that the configuration holds and code enforces.'
            yield Finding(f"{name}:{line}", said, "Use its placeholder, or say it in words.")


# ── critique ──────────────────────────────────────────────────────────────────────────────────────


def critique_findings(root: Path, section: str, artefacts: tuple[str, ...]) -> list[Finding]:
    """Whether critics have looked at these artefacts, and their findings lead somewhere."""
    from settings import load_critique

    checked, at = Checked(), places(root, CRITIQUE)
    about = loaded(lambda root: load_critique(root, section), root, checked)
    if about is None and not checked.findings:
        todo = "Let 5 to 7 roles criticise it; the comment at the top shows the form."
        return [Finding(at(section), "no critique yet.", todo)]
    for number, each in enumerate(about.findings if about else ()):
        where = at(section, "findings", number, "changed")
        checked.findings += _dead_link(root, where, (each.changed or "")[:12], artefacts)
    return checked.findings


def _dead_link(root: Path, where: str, named: str, artefacts: tuple[str, ...]) -> Iterator[Finding]:
    """A change that is claimed and can't be found."""
    if named and named in _starters(artefacts):
        said = "is the starter file itself, so nothing was changed."
        yield Finding(where, said, "Change it, or say why not.")
    elif named and named not in _versions(root, artefacts):
        now = ", ".join(f"{Path(name).stem} {version(root, name)[:12]}" for name in artefacts)
        yield Finding(where, f"{named} is no version that was kept.", f"Now: {now}.")


def version(root: Path, name: str) -> str:
    """The hash by which an artefact is known: of its data for YAML, of its text for a prompt."""
    return selector_hash(root, f"{name}#/" if name.endswith(".yaml") else name) or "unreadable"


def _versions(root: Path, artefacts: tuple[str, ...]) -> set[str]:
    """Every version that is there or was kept."""
    stems = {Path(name).stem for name in artefacts}
    kept = (root / "design/prompt_versions").glob("*.*.*")
    old = {path.name.split(".")[-2] for path in kept if path.name.rsplit(".", 2)[0] in stems}
    return old | {version(root, name)[:12] for name in artefacts}


def _starters(artefacts: tuple[str, ...]) -> set[str]:
    return {version(bundle_root() / "code/templates", name)[:12] for name in artefacts}
