"""Money: a cap in dollars that no run passes, and prices that are known or said to be unknown."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fakes.provider as fakes
from calls import HELLO, PRICE, WIRED, FastTime, ask, model
from children import child
from fakes.provider import FakeProvider, Reply, Request
from fakes.provider import Usage as Tokens
from infrastructure import (
    Budget,
    BudgetReached,
    Journal,
    StopRun,
    Usage,
    cost_of,
    get_backend,
    run_all,
)

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp:DeprecationWarning")
wired = pytest.mark.parametrize("kind", WIRED)
CHEAP = Tokens(10, 5)  # costs $0.006 at PRICE


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def everybody(backend: Any, workers: int = 50, calls: int = 200) -> Any:
    """What becomes of many calls at once."""
    work = lambda item: backend.complete(f"item {item}", max_tokens=100)  # noqa: E731
    return asyncio.run(run_all(range(calls), work, concurrency=workers, progress=False))


# The cap


@wired
def test_fifty_workers_never_pass_the_cap(kind: str, fake: FakeProvider) -> None:
    budget, seen = Budget(1.0), list[float]()

    def respond(request: Request) -> Reply:
        seen.append(budget.spent + budget.held)
        return Reply(usage=Tokens(10, 100), delay=0.002)

    fake.respond = respond
    report = everybody(model(kind, fake, budget=budget, price=PRICE))
    assert isinstance(report.stopped, BudgetReached)
    assert budget.spent <= max(seen) <= 1.0 + 1e-9
    assert len(report.done) == pytest.approx(budget.spent / 0.101)


def test_the_worst_case_is_held_before_a_request_arrives(fake: FakeProvider) -> None:
    budget, held = Budget(1.0), list[float]()
    fake.respond = lambda request: held.append(budget.held) or Reply()
    ask(model("local", fake, budget=budget, price=PRICE), max_tokens=100)
    assert 0.1 < held[0] < 0.12  # 100 tokens at $1,000 per million, and the prompt
    assert (budget.held, budget.spent) == (0, pytest.approx(0.006))


def test_a_call_waits_for_those_in_flight_before_it_is_refused(fake: FakeProvider) -> None:
    fake.respond = lambda request: Reply(usage=CHEAP, delay=0.005)
    budget = Budget(0.25)  # room for two worst cases, and for forty real ones
    report = everybody(model("local", fake, budget=budget, price=PRICE), calls=20)
    assert (len(report.done), report.stopped) == (20, None)
    assert budget.spent == pytest.approx(20 * 0.006)


def test_a_refused_call_names_cap_spending_and_worst_case(fake: FakeProvider) -> None:
    refused = ask(model("local", fake, budget=Budget(0.05), price=PRICE), max_tokens=100)
    assert isinstance(refused, BudgetReached)
    assert "$0.0000 of $0.0500" in str(refused)
    assert ("--max-usd" in str(refused), fake.requests) == (True, [])


def test_one_budget_holds_for_all_models_that_share_it(fake: FakeProvider) -> None:
    budget = Budget(0.13)
    shared = {"budget": budget, "price": PRICE}
    one, two = (model("local", fake, model=name, **shared) for name in ("a", "b"))
    assert ask(one, max_tokens=100).cost == pytest.approx(0.006)
    assert ask(two, max_tokens=100).cost == pytest.approx(0.006)
    assert isinstance(ask(one, max_tokens=120), BudgetReached)


def test_no_cap_only_counts(fake: FakeProvider) -> None:
    budget = Budget()
    ask(model("local", fake, budget=budget, price=PRICE))
    assert budget.spent == pytest.approx(0.006)


# What a call without an answer costs


def test_an_error_page_costs_nothing(fake: FakeProvider) -> None:
    fake.script([fakes.server_error(), fakes.rate_limited("1"), fakes.context_too_long()])
    budget = Budget(1.0)
    assert ask(model("local", fake, budget=budget, price=PRICE), max_tokens=100).kind == "context"
    assert (budget.spent, budget.held) == (0, 0)


@pytest.mark.parametrize("reply", [fakes.dropped(), fakes.truncated_json(), Reply(never=True)])
def test_a_lost_answer_may_have_been_paid_so_its_worst_case_is_kept(
    reply: Reply, fake: FakeProvider
) -> None:
    fake.script([reply] * 2)
    budget = Budget(1.0)
    backend = model("local", fake, budget=budget, price=PRICE, attempt_timeout=0.1)
    assert ask(backend, max_tokens=100).content == "echo: hello"
    assert 2 * 0.1 + 0.006 < budget.spent < 2 * 0.12 + 0.006


def test_a_cancelled_call_keeps_its_worst_case(fake: FakeProvider) -> None:
    fake.script([Reply(never=True)])
    budget = Budget(1.0)
    backend = model("local", fake, budget=budget, price=PRICE)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(backend.chat(HELLO, max_tokens=100), 0.1))
    assert budget.spent > 0.1
    assert budget.held == 0


@pytest.mark.parametrize(
    "reply",
    [fakes.blank_content(), fakes.dropped(), fakes.truncated_json(), fakes.length_stop()],
    ids=["blank", "dropped", "truncated", "length"],
)
def test_journal_and_budget_agree_on_what_a_failed_call_cost(
    reply: Reply, fake: FakeProvider, tmp_path: Path
) -> None:
    fake.script([reply], repeat_last=True)
    budget = Budget(5.0)
    with Journal(tmp_path / "run.jsonl") as journal:
        ask(model("local", fake, budget=budget, price=PRICE, journal=journal), max_tokens=100)
        assert journal.spent >= budget.spent - 1e-9 > 0
    with Journal(tmp_path / "run.jsonl") as again:  # a budget is built from it on the next run
        assert again.spent >= budget.spent - 1e-9


@pytest.mark.parametrize("reply", [fakes.blank_content(), fakes.truncated_json()])
def test_journal_and_budget_agree_when_a_retry_brings_the_answer(
    reply: Reply, fake: FakeProvider, tmp_path: Path
) -> None:
    fake.script([reply])
    budget = Budget(5.0)
    with Journal(tmp_path / "run.jsonl") as journal:
        ask(model("local", fake, budget=budget, price=PRICE, journal=journal), max_tokens=100)
        assert journal.spent >= budget.spent - 1e-9 > 0


# Prices


def test_a_price_counts_fresh_cached_and_written_tokens() -> None:
    price = {"input": 2.0, "cached_input": 0.5, "output": 8.0}
    usage = Usage(1000, 100, reasoning_tokens=50, cached_tokens=400)
    assert cost_of(usage, "any", price) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 8) / 1e6)
    del price["cached_input"]  # no discount that nobody promised
    assert cost_of(usage, "any", price) == pytest.approx((1000 * 2 + 100 * 8) / 1e6)


def test_a_known_model_has_the_price_of_the_price_table() -> None:
    prices = pytest.importorskip("genai_prices")
    tokens = {"input_tokens": 1000, "output_tokens": 100, "cache_read_tokens": 400}
    wanted = prices.calc_price(prices.Usage(**tokens), model_ref="gpt-5-mini").total_price
    assert cost_of(Usage(1000, 100, cached_tokens=400), "gpt-5-mini", None) == float(wanted) > 0


NO_TABLE = """
import sys
sys.modules["genai_prices"] = None
from infrastructure import Usage, cost_of
print(cost_of(Usage(1000, 100), "gpt-5-mini", None))
"""


def test_an_unknown_price_is_unknown_and_never_nothing() -> None:
    assert cost_of(Usage(1000, 100), "a-model-that-nobody-knows", None) is None
    assert child("-c", NO_TABLE).stdout == "None\n"


def test_the_servers_of_this_machine_and_its_own_models_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reply(messages, *, schema=None, scope=''): return 'x'")
    own = get_backend("python:mine:reply", root=tmp_path, budget=Budget(0.0))
    assert ask(own).cost == 0
    assert get_backend("llamacpp:some.gguf").free
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert get_backend("local:m", base_url=f"http://{host}:8000/v1").free


@wired
def test_a_server_of_this_machine_costs_nothing_under_any_cap(
    kind: str, fake: FakeProvider
) -> None:
    budget = Budget(0.0)
    assert ask(model(kind, fake, budget=budget)).cost == 0
    assert budget.spent == 0


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This machine under a name that does not say so."""
    monkeypatch.setenv("NO_PROXY", "*")
    return {"model": "a-model-that-nobody-knows"}


def abroad(fake: FakeProvider, kind: str) -> str:
    path = "/v1" if kind in ("local", "openai") else ""
    return fake.url.replace("127.0.0.1", "0.0.0.0") + path


@wired
def test_a_cap_without_a_price_is_an_error_that_names_the_setting(
    kind: str, fake: FakeProvider, elsewhere: dict[str, Any]
) -> None:
    backend = model(kind, fake, base_url=abroad(fake, kind), budget=Budget(1.0), **elsewhere)
    refused = ask(backend)
    assert isinstance(refused, StopRun)
    assert "`price:" in str(refused)
    assert fake.requests == []


@wired
def test_an_unknown_cost_is_none_and_counted_as_unknown(
    kind: str, fake: FakeProvider, elsewhere: dict[str, Any]
) -> None:
    backend = model(kind, fake, base_url=abroad(fake, kind), budget=Budget(), **elsewhere)
    assert ask(backend).cost is None
    assert (backend.totals.unknown_costs, backend.totals.cost) == (1, 0)


@wired
def test_the_totals_of_a_model_add_up_what_its_calls_cost(kind: str, fake: FakeProvider) -> None:
    fake.respond = lambda request: Reply(usage=CHEAP)
    backend = model(kind, fake, FastTime(), price=PRICE)
    assert [ask(backend).cost for _ in range(3)] == [pytest.approx(0.006)] * 3
    assert (backend.totals.calls, backend.totals.tokens) == (3, 45)
    assert backend.totals.cost == pytest.approx(0.018)
