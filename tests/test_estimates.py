"""The estimate: hand-computed figures, and an unknown that stays unknown."""

import json
import math
import re
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import settings as h_settings
from hypothesis import strategies as st

import infrastructure
from children import child
from estimates import (
    GPUS,
    SECTIONS,
    START_SIZES,
    Amount,
    Assumed,
    Estimate,
    Gpu,
    Head,
    Quote,
    Room,
    Size,
    Work,
    adapter_weights,
    cache_bytes,
    cost,
    estimate,
    examples_of,
    expected_slices,
    file_bytes,
    flops_per_token,
    hours_on,
    linear_weights,
    measure_prompts,
    other_weights,
    quote_of,
    slice_chances,
    slices_of,
    steps,
    total,
    training_memory,
    yield_of,
)
from finetune_skills.bundle import bundle_root
from finetune_skills.cli import main
from finetune_skills.scaffold import create_project
from infrastructure import get_slice_points
from settings import (
    PROMPTS,
    Architecture,
    LengthClass,
    ModelChoice,
    ModelSpec,
    PersonaFile,
    ProjectSettings,
    Slicing,
    Training,
    load_persona_template,
    load_project,
)

QWEN = Architecture(
    layers=36, hidden=2560, intermediate=9728, heads=32, kv_heads=8, head_dim=128,
    tied_embeddings=True, qk_norm=True
)  # fmt: skip
LLAMA = Architecture(
    layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128,
    tied_embeddings=False
)  # fmt: skip
VOCABULARY = {"qwen": 151936, "llama": 128256}
SIZES = {
    "user_sim": 100, "user_sim_turn": 20, "persona": 30, "assistant": 200, "system_prompt": 50,
    "assessor": 10, "rubric": 90, "criteria": 3, "fixup": 40,
}  # fmt: skip
MEASURED = {name: Size(tokens, "measured") for name, tokens in SIZES.items()}
ROLES = ("user_sim", "assistant", "judges[0]", "base", "fixup")


def spec(name: str, priced: bool = True, **more: Any) -> dict[str, Any]:
    price = {"input": 3.0, "output": 15.0, "source": "a page", "checked": "2026-01-31"}
    return (
        {"model": f"openai:{name}", "reasoning_tokens": 0}
        | ({"price": price} if priced else {})
        | more
    )


def project(unpriced: frozenset[str] = frozenset(), **more: Any) -> ProjectSettings:
    """Every role decided; 600 tokens an exchange, of which 360 are the reply at a ratio of 1.5."""
    roles: dict[str, Any] = {name: spec(name, name not in unpriced) for name in ROLES}
    roles["judges"] = [roles.pop("judges[0]")]
    data = {
        "schema": 1, "name": "demo", "domain": "returns", "language": "en", "roles": roles,
        "target": {"hardware": "laptop", "offline": True, "context_window": 32768},
        "slicing": {"mode": "whole", "target_examples": 100},
        "thresholds": {"fixup_share": 0.5},
    }  # fmt: skip
    return ProjectSettings.model_validate(data | more)


def personas(lengths: dict[str, LengthClass]) -> PersonaFile:
    return PersonaFile.model_construct(length_classes=lengths)


def found(given: ProjectSettings | None = None, exchanges: int = 4, **more: Any) -> Estimate:
    """One length class, half of the transcripts pass, a quarter of the messages come twice."""
    lengths = {"only": LengthClass(weight=1.0, exchanges=exchanges)}
    assumed = Assumed(pass_rate=0.5, retry_share=0.25)
    return estimate(given or project(), personas(lengths), MEASURED, assumed=assumed, **more)


def works(made: Estimate, stage: str) -> dict[str, Work]:
    bill = next(bill for bill in made.bills if bill.stage.name == stage)
    return {work.role: work for work in bill.stage.works}


# Slices


def test_slice_chances_are_what_a_person_works_out() -> None:
    # 6 exchanges: 3, then a gap of 2 (one in four) gives 5, and 6 is always the last.
    assert slice_chances(6, 3, 2, 5) == {3: 1.0, 5: 0.25, 6: 1.0}
    assert slice_chances(2, 3, 2, 5) == {}
    assert slice_chances(3, 3, 2, 5) == {3: 1.0}
    assert expected_slices(6, Slicing()) == 2.25


@pytest.mark.parametrize("rule", [(3, 2, 5), (1, 1, 1), (4, 3, 3), (2, 1, 6)])
@pytest.mark.parametrize("exchanges", [1, 3, 4, 7, 15, 25, 40])
def test_the_expectation_is_the_mean_over_many_ids(
    exchanges: int, rule: tuple[int, int, int]
) -> None:
    cuts = [get_slice_points(exchanges, f"t{n}", *rule) for n in range(2000)]
    first, least, most = rule
    slicing = Slicing(first=first, min_gap=least, max_gap=most)
    mean = sum(map(len, cuts)) / len(cuts)
    assert expected_slices(exchanges, slicing) == pytest.approx(mean, abs=0.08)
    for point, chance in slice_chances(exchanges, *rule).items():
        assert chance == pytest.approx(sum(point in cut for cut in cuts) / 2000, abs=0.06)


@pytest.mark.parametrize(("exchanges", "about"), [(15, 5), (25, 8), (50, 15), (100, 29)])
def test_known_lengths_give_the_known_number_of_slices(exchanges: int, about: int) -> None:
    assert abs(expected_slices(exchanges, Slicing()) - about) < 0.6


def test_each_reply_is_learned_once_however_the_gaps_fall() -> None:
    # 6 exchanges: 3 at the point 3; 2 at the point 5, one in four; 3 or 1 at the point 6.
    learned = {each.exchanges: each.learned for each in slices_of(6, Slicing())}
    assert learned == {3: 3.0, 5: 0.5, 6: 0.75 * 3 + 0.25 * 1}
    for exchanges in range(3, 60):
        assert sum(e.learned for e in slices_of(exchanges, Slicing())) == pytest.approx(exchanges)


def test_what_is_learned_at_a_point_is_the_mean_over_many_ids() -> None:
    cuts = [get_slice_points(20, f"t{n}") for n in range(2000)]
    for each in slices_of(20, Slicing()):
        gains = [b - a for cut in cuts for a, b in pairwise([0, *cut]) if b == each.exchanges]
        assert each.learned == pytest.approx(sum(gains) / 2000, abs=0.15)


def test_auto_keeps_a_conversation_whole_where_it_fits() -> None:
    assert [e.exchanges for e in examples_of(6, Slicing(mode="auto"), fits=6)] == [6]
    assert [e.exchanges for e in examples_of(6, Slicing(mode="auto"), fits=5)] == [3, 5, 6]
    assert [e.exchanges for e in examples_of(6, Slicing(mode="whole"), fits=5)] == [6]


def test_what_one_transcript_gives_counts_kept_and_lost_examples() -> None:
    # Limit 3,050 = 50 + 5 x 600: of 6 exchanges the slices 3 and 5 fit, and 6 does not.
    room = Room(50, 600, 360.0, 3050)
    per = yield_of([LengthClass(weight=1.0, exchanges=6)], Slicing(mode="slices"), room)
    assert (room.fits, per.examples, per.over) == (5, 1.25, 1.0)
    assert per.tokens == 1850 + 0.25 * 3050
    assert per.learned == 3.5 * 360
    assert (per.longest, per.over_share) == (3050, 1 / 2.25)


def test_truncated_examples_are_kept_at_the_limit() -> None:
    slicing = Slicing(mode="whole", over_limit="truncate")
    per = yield_of([LengthClass(weight=1.0, exchanges=6)], slicing, Room(50, 600, 360.0, 3050))
    assert (per.examples, per.tokens, per.learned, per.over_share) == (1, 3050, 5 * 360, 1.0)


# Calls and tokens, worked out by hand: 4 exchanges, 600 tokens each, 240 user and 360 reply


def test_examples_go_back_to_transcripts_and_exchanges() -> None:
    plan = found().plan
    assert plan is not None
    # one example each; half pass, so twice as many; four exchanges each
    assert (plan.examples, plan.passing, plan.transcripts, plan.exchanges) == (100, 100, 200, 800)


def test_prompts_grow_with_the_whole_history_for_both_agents() -> None:
    made = works(found(), "generate")
    # history: (0 + 1 + 2 + 3) x 600 = 3,600 tokens; 200 conversations x 1.25 = 250
    user, assistant = made["user_sim"], made["assistant"]
    assert (user.calls, user.sent) == (1000, 250 * (4 * (100 + 30 + 20) + 3600))
    assert (user.received, user.cached) == (1000 * 240, 250 * (3 * 130 + 3 * 600))
    assert (assistant.calls, assistant.sent) == (1000, 250 * (4 * (200 + 240) + 3600))
    assert (assistant.received, assistant.cached) == (360_000, 250 * (3 * 440 + 3 * 600))


def test_each_judge_reads_each_transcript_once_and_repaired_ones_again() -> None:
    judge = works(found(), "assess")["judges[0]"]
    # 200 transcripts and the half of them that is repaired; 10 + 90 + 4 x 600 tokens each
    assert (judge.calls, judge.sent, judge.received) == (300, 300 * 2500, 300 * 3 * 60)
    assert judge.cached == 299 * 90


def test_repairs_send_half_a_conversation_for_each_reply() -> None:
    fixup = works(found(), "fixup")["fixup"]
    # 100 transcripts x 2 replies; 40 + 2 x 600 before + one exchange + the next user message
    assert (fixup.calls, fixup.sent) == (200, 200 * (40 + 1200 + 600 + 240))
    assert fixup.received == 200 * 360


def test_baseline_and_evaluation_do_not_need_a_number_of_examples() -> None:
    undecided = project(slicing={"mode": "whole", "target_examples": None})
    made = found(undecided)
    baseline, evaluation = works(made, "baseline"), works(made, "run_evaluation")
    assert (baseline["user_sim"].calls, baseline["base"].calls) == (100, 80)
    assert baseline["base"].sent == 20 * (4 * (50 + 240) + 3600)
    # 24 personas x 2 runs x 2 models
    assert [evaluation[r].calls for r in ("base", "base (for tuned)", "judges[0]")] == [
        192,
        192,
        96,
    ]
    assert made.plan is None
    assert made.total.value is None
    assert "slicing.target_examples is not decided" in made.total.unknown


def test_examples_on_the_command_line_stand_in_for_the_key() -> None:
    plan = found(project(slicing={"mode": "whole"}), examples=50).plan
    assert plan is not None
    assert plan.transcripts == 100


def test_rounding_never_adds_a_transcript_that_is_a_rounding_error() -> None:
    lengths = {"only": LengthClass(weight=1.0, exchanges=4)}
    plan = estimate(project(), personas(lengths), MEASURED, assumed=Assumed(pass_rate=0.1)).plan
    assert plan is not None
    assert plan.transcripts == 1000


def test_conversations_that_give_no_example_leave_the_plan_unknown() -> None:
    made = found(project(limits={"max_tokens": 600}))
    assert made.plan is None
    assert "no length class gives an example that fits" in made.total.unknown


def test_whole_conversations_compute_less_for_what_they_teach() -> None:
    slices, whole = found(exchanges=6).comparison
    assert (slices.examples, whole.examples) == (225, 100)
    assert slices.learned == whole.learned == 100 * 6 * 360
    assert whole.tokens == 100 * (50 + 3600)
    assert slices.ratio is not None
    assert whole.ratio is not None
    assert slices.ratio > whole.ratio


def test_reasoning_counts_and_makes_a_lower_bound_when_it_is_not_known() -> None:
    thinks = {"user_sim": spec("u"), "assistant": spec("a", reasoning_tokens=40)}
    roles = thinks | {"judges": [spec("j", reasoning_tokens=None)]}
    made = found(project(roles=roles))
    assert works(made, "generate")["assistant"].received == 1000 * (360 + 40)
    assert works(made, "assess")["judges[0]"].lower == ("reasoning tokens of judges[0]",)
    assert "reasoning tokens of judges[0]" in made.total.lower


# Dollars


def test_dollars_are_tokens_times_price_with_and_without_cache() -> None:
    work = works(found(), "generate")["assistant"]
    quote = Quote(3.0, 15.0, 0.3, "a page", "2026-01-31")
    # 1.34 M sent at 3, 0.36 M received at 15; with cache 0.78 M of those sent at 0.3
    assert cost(work, quote).value == pytest.approx(4.02 + 5.4)
    assert cost(work, quote, cache=True).value == pytest.approx(0.56 * 3 + 0.78 * 0.3 + 5.4)


def test_nothing_is_saved_by_a_cache_that_nobody_priced() -> None:
    assert all(bill.with_cache is None for bill in found().bills)


def test_the_total_is_the_sum_of_what_is_known() -> None:
    made = found()
    amounts = [amount.value for bill in made.bills for amount in bill.amounts]
    assert made.total.value == pytest.approx(math.fsum(a for a in amounts if a is not None))
    assert made.total.unknown == ()


@given(st.sets(st.sampled_from(ROLES), min_size=1))
@h_settings(max_examples=40, deadline=None)
def test_one_price_less_makes_the_total_unknown_and_names_it(dropped: set[str]) -> None:
    made = found(project(frozenset(dropped)))
    assert made.total.value is None
    named = {each.split()[2].rstrip(":") for each in made.total.unknown}
    assert named - {"base"} == dropped - {"base"}
    assert ("base" in named) == ("base" in dropped)
    assert 0 <= made.total.known < (found().total.value or 0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=8))
def test_a_sum_is_known_only_if_all_of_its_parts_are(parts: list[tuple[float, bool]]) -> None:
    amounts = [Amount(n) if known else Amount(unknown=("x",)) for n, known in parts]
    known = [n for n, there in parts if there]
    assert total(amounts).known == pytest.approx(sum(known))
    assert (total(amounts).value is None) == (len(known) < len(parts))


HERE = {"model": "local:m", "preset": "ollama"}
ELSEWHERE = {"model": "local:m", "base_url": "http://10.0.0.7:8000/v1"}


@pytest.mark.parametrize(
    ("given", "free"),
    [
        (HERE, True),
        ({"model": "llamacpp:a.gguf"}, True),
        ({"model": "python:mine:reply"}, True),
        ({"model": "local:m", "base_url": "http://127.0.0.1:9/v1"}, True),
        ({"model": "openai:m"}, False),
        ({"model": "local:m", "preset": "mistral"}, False),
        (ELSEWHERE, False),
    ],
)
def test_only_a_model_on_this_machine_costs_nothing(given: dict[str, str], free: bool) -> None:
    quote = quote_of(ModelSpec.model_validate(given))
    assert (quote.free, bool(quote.problem)) == (free, not free)


def test_a_price_table_without_a_date_counts_for_nothing() -> None:
    pytest.importorskip("genai_prices")
    known = ModelSpec(model="openai:gpt-5-mini")
    assert quote_of(known).problem == "no price"
    dated = quote_of(known, "2026-10-14")
    assert (dated.checked, dated.problem) == ("2026-10-14", "")
    assert re.fullmatch(r"genai-prices \d.*", dated.source)
    assert dated.input == pytest.approx(
        1e6 * (infrastructure.cost_of(infrastructure.Usage(1, 0), "gpt-5-mini", None) or 0)
    )


# Training and serving


@pytest.mark.parametrize(
    ("a", "name", "tokens", "checkpointing", "head", "gigabytes"),
    [
        (QWEN, "qwen", 2048, True, "none", 9.4),
        (LLAMA, "llama", 2048, True, "none", 17.9),
        (QWEN, "qwen", 1024, False, "none", 15.5),
        (LLAMA, "llama", 1024, False, "none", 24.3),
        (QWEN, "qwen", 2048, True, "full", 12.6),
        (LLAMA, "llama", 2048, True, "full", 20.3),
    ],
)
def test_memory_is_that_of_the_worked_examples(
    a: Architecture, name: str, tokens: int, checkpointing: bool, head: Head, gigabytes: float
) -> None:
    how = Training(method="lora", hardware="x", checkpointing=checkpointing)
    memory = training_memory(a, VOCABULARY[name], how, tokens, tokens, head)
    assert memory is not None
    assert round(memory.peak / 1e9, 1) == gigabytes
    assert memory.wanted == memory.peak * 1.1 + 1e9


def test_weights_are_counted_exactly() -> None:
    # Llama, one layer: 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336 = 218,103,808
    assert linear_weights(LLAMA) == 32 * 218_103_808
    # two tables of 128,256 x 4,096, and 65 norms of 4,096
    assert other_weights(LLAMA, 128_256) == 2 * 525_336_576 + 65 * 4096
    assert linear_weights(LLAMA) + other_weights(LLAMA, 128_256) == 8_030_261_248
    # in + out of q and o 8,192 each, of k and v 5,120 each, of the other three 18,432 each
    assert adapter_weights(LLAMA, 16) == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)


def test_four_bits_take_less_and_full_tuning_is_unknown() -> None:
    made = {
        method: training_memory(
            LLAMA, 128_256, Training.model_validate({"method": method, "hardware": "x"}), 2048, 1024
        )
        for method in ("qlora", "lora", "full")
    }
    assert made["full"] is None
    assert made["qlora"] is not None
    assert made["lora"] is not None
    nf4 = 0.5 + 1 / 64 + 4 / (64 * 256)
    weights = linear_weights(LLAMA) * nf4 + other_weights(LLAMA, 128_256) * 2
    assert made["qlora"].parts["weights"] == weights < made["lora"].parts["weights"]
    assert made["qlora"].parts["adapter"] * 2 == made["lora"].parts["adapter"]


def test_hours_are_a_range_from_45_to_15_percent_of_the_peak() -> None:
    # 3.6e15 x 0.45 operations at 45 % of 1e12 a second: 3,600 seconds
    assert hours_on(Gpu("x", 1, 1e12), 3.6e15 * 0.45) == pytest.approx((1.0, 3.0))
    per_token = flops_per_token(LLAMA, 128_256, 0, checkpointing=True)
    assert per_token == 6 * (linear_weights(LLAMA) + 128_256 * 4096)
    assert flops_per_token(LLAMA, 128_256, 0, checkpointing=False) == per_token * 2 / 3


def test_steps_are_rounded_up_in_each_epoch() -> None:
    how = Training(method="lora", hardware="x", batch=1, accumulation=8, epochs=3)
    assert steps(1294, how) == 486  # 1,294 / 8 -> 162, x 3


def test_a_served_file_and_its_cache_are_known_for_known_formats_only() -> None:
    assert file_bytes(8e9, "q4_k_m") == pytest.approx(4.8e9)
    assert file_bytes(8e9, "IQ2_XXS") is None
    assert cache_bytes(LLAMA, 8192) == 2 * 32 * 1024 * 8192 * 2


def choice(architecture: Architecture | None = QWEN, **more: Any) -> ModelChoice:
    base = {
        "id": "q/4b", "revision": "0" * 40, "instruct": True, "licence": "x", "served_as": "q",
        "context_window": 32768, "vocabulary": 151936, "parameters": 4.0,
    }  # fmt: skip
    data = {
        "schema": 1, "base": base | more, "quantisation": "Q4_K_M", "deployment": ["gguf"],
        "architecture": architecture and architecture.model_dump(), "offline": True,
        "training": {"method": "lora", "hardware": "one GPU"}, "budget": 1.0, "expertise": "us",
        "alternatives": [{"id": "a", "why_not": "b"}, {"id": "c", "why_not": "d"}], "why": "fits",
    }  # fmt: skip
    return ModelChoice.model_validate(data)


def test_a_training_plan_counts_steps_tokens_and_gpus() -> None:
    plan = found(choice=choice(), gpu_prices={"L4": (2.0, "2026-01-31")}).training
    assert plan is not None
    # 80 of 100 examples of 50 + 4 x 600 tokens; 80 / 8 = 10 steps, two epochs
    assert (plan.examples, plan.steps, plan.tokens) == (80, 20, 80 * 2450)
    assert plan.learned == 80 * 4 * 360
    row = next(row for row in plan.gpus if row.gpu.kind == "L4")
    assert row.hours is not None
    assert row.dollars == pytest.approx(tuple(2 * hour for hour in row.hours))
    assert [row.fits for row in plan.gpus] == [True] * len(GPUS)
    assert sum(row.dollars is None for row in plan.gpus) == len(GPUS) - 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (choice(None), "no architecture"),
        (choice(parameters=30.0), "architecture gives 4.0 billion parameters"),
    ],
)
def test_memory_stays_unknown_without_sizes_that_fit_the_model(
    given: ModelChoice, said: str
) -> None:
    plan = found(choice=given).training
    assert plan is not None
    assert (plan.memory, plan.gpus[0].fits, plan.gpus[0].hours) == (None, None, None)
    assert said in plan.unknown[0]


# Prompts


def test_what_is_not_written_yet_has_a_start_value_and_says_so(tmp_path: Path) -> None:
    sizes = measure_prompts(tmp_path)
    assert {name: size.tokens for name, size in sizes.items()} == START_SIZES
    assert all(size.source.startswith("start value") for size in sizes.values())


def test_only_sections_that_prompts_have_are_measured() -> None:
    assert all({*wanted} <= {*PROMPTS[name]} for name, wanted in SECTIONS.values())


IMPORT = """
import sys
from pathlib import Path
opened = []
def watch(event, given):
    if event.startswith("socket.") or (event == "open" and not str(given[0]).endswith(ENDS)):
        opened.append((event, given))
ENDS = (".py", ".pyc", ".so")
import pydantic, asyncio, importlib.metadata  # what it stands on
sys.addaudithook(watch)
import estimates
bad = {"yaml", "numpy", "openai", "anthropic", "genai_prices", "tiktoken"} & set(sys.modules)
print(opened, sorted(bad))
"""


def test_importing_it_opens_nothing() -> None:
    assert child("-c", IMPORT).stdout == "[] []\n"


def test_what_is_written_is_measured(root: Path) -> None:
    prompts = root / "config/prompts"
    prompts.mkdir(exist_ok=True)
    (prompts / "assistant.md").write_text(
        "For people.\n\n## System\nBe kind.\n\n## Too long\nCut.\n"
    )
    (root / "config/system-prompt.md").write_text("You help with returns.\n")
    sizes = measure_prompts(root)
    assert sizes["assistant"].tokens == infrastructure.count_tokens("Be kind.")
    assert sizes["system_prompt"].tokens == infrastructure.count_tokens("You help with returns.")
    assert sizes["rubric"].source.startswith("measured: config/rubric.yaml")
    assert sizes["criteria"].tokens > 1


# The command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "demo"
    values = {"name": "demo", "domain": "returns", "language": "en", "hardware": "laptop"}
    create_project(root, bundle_root(), values | {"offline": "true"})
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    for path in made.rglob("*"):
        if path.is_file() and path.parts[-2] in ("config", "prompts"):
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


PRICE = 'price: {input: 0.5, output: 1.5, source: "https://%s", checked: "2026-01-31"}'
EDITS = {
    "user_sim: null": "user_sim: {model: 'openai:small', " + PRICE % "a.example/prices" + "}",
    "assistant: null": "assistant: {model: 'openai:large', "
    + PRICE % ("b.example/" + "x" * 90)
    + "}",
    "judges: []": "judges: [{model: 'google:\\x1b[31mj', " + PRICE % "c.example" + "}]",
    "base: null": 'base: {model: "local:qwen", preset: ollama}',
    "fixup: null": 'fixup: {model: "openai:nobody-knows"}',
}


@pytest.fixture
def decided(root: Path) -> Path:
    path = root / "config/project.yaml"
    text = path.read_text()
    for old, new in EDITS.items():
        text = text.replace(old, new, 1)
    path.write_text(text)
    return root


def run(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    """The command in this process, with every way to a model or a network closed."""

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("estimate must not call anybody")

    monkeypatch.chdir(root)
    monkeypatch.setattr(infrastructure, "get_backend", closed)
    monkeypatch.setattr(socket, "socket", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    return CliRunner().invoke(main, ["estimate", *words])


EVERYTHING = ("-v", "--examples", "500", "--gpu-price", "L4=2.5", "--pass-rate", "0.5")


def choose(root: Path) -> None:
    design = root / "design/model-choice.md"
    design.parent.mkdir()
    design.write_text(f"---\n{json.dumps(choice().model_dump(by_alias=True))}\n---\n")


def test_every_price_in_the_text_has_its_source_and_date(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(decided)
    said = run(decided, monkeypatch, *EVERYTHING)
    assert (said.exit_code, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    priced = [number for number, line in enumerate(lines) if "$" in line]
    assert len(priced) == 4  # three roles and a GPU
    for number in priced:
        assert re.search(r"checked \d{4}-\d\d-\d\d", lines[number])
        assert "source: " in lines[number + 1] or "said on the command line" in lines[number]


def test_the_text_fits_80_columns_and_holds_no_control_characters(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(decided, monkeypatch, *EVERYTHING).stdout
    assert max(map(len, said.splitlines())) <= 80
    assert said.replace("\n", "").isprintable()
    assert "unknown" in said
    assert "fixup" in said


def prices_in(value: Any) -> list[dict[str, Any]]:
    """Every mapping that holds a unit price, wherever it is."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, dict) and {"input", "per_hour"} & {*value} else []
    return own + [price for each in inner for price in prices_in(each)]


def test_every_price_in_the_json_has_its_source_and_date(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(decided)
    told = json.loads(run(decided, monkeypatch, "--json", *EVERYTHING).stdout)
    prices = prices_in(told)
    assert sum("input" in each for each in prices) > 4
    assert sum("per_hour" in each for each in prices) == 1
    assert all(p["source"] and re.fullmatch(r"\d{4}-\d\d-\d\d", p["checked"]) for p in prices)
    assert told["total"]["dollars"] is None
    assert told["total"]["unknown"] == ["price of fixup: no price"]


def test_a_price_table_counts_from_the_day_that_is_said(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("genai_prices")
    path = decided / "config/project.yaml"
    path.write_text(path.read_text().replace("openai:nobody-knows", "openai:gpt-5-mini"))
    words = ("--json", "--examples", "500", "--price-table", "2026-10-14", "--stage", "fixup")
    [stage] = json.loads(run(decided, monkeypatch, *words).stdout)["stages"]
    assert stage["roles"][0]["price"]["source"].startswith("genai-prices ")
    assert stage["roles"][0]["price"]["checked"] == "2026-10-14"
    assert stage["dollars"] > 0


def test_a_price_table_that_is_not_installed_is_said(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = run(decided, monkeypatch, "--price-table", "2026-10-14")
    assert (said.exit_code, said.stdout) == (2, "")
    assert "finetune-skills[prices]" in said.stderr


def test_the_text_says_what_to_write_where_a_price_is_missing(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = " ".join(run(decided, monkeypatch, "--examples", "500").stdout.split())
    assert "price of fixup: no price" in said
    assert "price: {input: ..., output: ..., source: PAGE, checked: DATE}" in said
    assert "reasoning tokens are not known for user_sim" in said


def test_a_new_project_says_what_is_not_decided(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(root, monkeypatch)
    assert said.exit_code == 0
    assert "slicing.target_examples is not decided" in said.stdout
    assert "design/model-choice.md" in said.stdout


def test_stages_can_be_chosen(decided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--json", "--examples", "500", "--stage", "assess", "--stage", "baseline")
    told = json.loads(run(decided, monkeypatch, *words).stdout)
    assert [stage["stage"] for stage in told["stages"]] == ["baseline", "assess"]
    assert told["total"]["dollars"] > 0
    assert "training" not in told


def test_verbose_shows_every_input_with_its_source(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run(decided, monkeypatch, "-v", "--pass-rate", "0.5").stdout
    assert re.search(r"pass_rate +0\.5  \(command line\)", said)
    assert re.search(r"retry_share +0\.1  \(start value\)", said)
    assert re.search(r"limits\.max_tokens +16,000  \(config/project\.yaml\)", said)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu-price", "L5=1"], "Have: A100-40"),
        (["--gpu-price", "L4=cheap"], "Write L4=2.5"),
        (["--gpu-price", "L4=nan"], "Write L4=2.5"),
        (["--pass-rate", "0"], "0<x<=1"),
        (["--examples", "0"], "x>=1"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    decided: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    said = run(decided, monkeypatch, *words)
    assert (said.exit_code, said.stdout) == (2, "")
    assert told in said.stderr


@pytest.mark.parametrize("name", ["project.yaml", "persona-template.yaml"])
def test_a_missing_file_is_one_line_and_exit_code_2(
    decided: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (decided / ".finetune").mkdir(exist_ok=True)
    (decided / "config" / name).unlink()
    said = run(decided, monkeypatch)
    assert (said.exit_code, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert f"config/{name}: is missing." in said.stderr


def test_the_start_values_of_a_new_project_fit_their_limit(root: Path) -> None:
    made = estimate(load_project(root), load_persona_template(root), measure_prompts(root))
    assert made.longest <= made.room.fits
    assert made.per.over_share == 0
