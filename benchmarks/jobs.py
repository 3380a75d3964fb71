"""One measured job in a process of its own: `python benchmarks/jobs.py '{"job": "calls", ...}'`.

`run.py` starts it and reads one line of JSON from it. CPU and wall time are taken around the job
alone: imports, connections and the first calls come before.
"""

import argparse
import asyncio
import contextlib
import gc
import http.client
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests")]

Spec = dict[str, Any]
Figures = dict[str, Any]
Message = dict[str, str]

SYSTEM = "You answer in a few plain sentences and ask one question back."
SYSTEM_WORDS = 700  # an assistant prompt with its rules and examples; about 1,000 tokens
MAX_TOKENS = 64
SLOTS = 64
WARM_UP = 128


def main() -> int:
    spec: Spec = json.loads(sys.argv[1])
    print(json.dumps(JOBS[spec["job"]](spec)))
    return 0


class Meter:
    """CPU seconds of this process and its children, and wall seconds, around a `with` block."""

    def __enter__(self) -> "Meter":
        gc.collect()
        self.cpu_s, self.wall_s = -cpu_seconds(), -time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += cpu_seconds()
        self.wall_s += time.monotonic()


def cpu_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# == clients: the bare ones, and the kernel ========================================================


class Client(Protocol):
    """One long-lived client; `scope` names the call for a journal."""

    async def ask(self, messages: list[Message], scope: str) -> str: ...

    async def run(
        self, items: Iterable[int], work: Callable[[int], Awaitable[Any]], at_once: int
    ) -> Counter[str]:
        """All items, so many at work and 64 calls in flight; what failed, by kind."""
        ...

    async def close(self) -> None: ...


async def run_bare(
    items: Iterable[int], work: Callable[[int], Awaitable[Any]], at_once: int
) -> Counter[str]:
    """The shortest loop that keeps so many items at work; it retries nothing."""
    source, failed = iter(items), Counter[str]()

    async def worker() -> None:
        for item in source:
            try:
                await work(item)
            except Exception as error:  # noqa: BLE001  counted and reported by kind
                failed[type(error).__name__] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return failed


class BareAiohttp:
    """One aiohttp session and nothing else."""

    def __init__(self, url: str) -> None:
        import aiohttp

        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SLOTS))
        self.url = f"{url}/v1/chat/completions"

    async def ask(self, messages: list[Message], scope: str) -> str:
        body = {"model": "m", "messages": messages, "max_tokens": MAX_TOKENS}
        async with self.session.post(self.url, json=body) as response:
            return str((await response.json())["choices"][0]["message"]["content"])

    async def run(
        self, items: Iterable[int], work: Callable[[int], Awaitable[Any]], at_once: int
    ) -> Counter[str]:
        return await run_bare(items, work, at_once)

    async def close(self) -> None:
        await self.session.close()


class BareOpenAI(BareAiohttp):
    """The openai SDK as its own documentation uses it, retries off."""

    def __init__(self, url: str) -> None:
        import openai

        self.client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=60
        )

    async def ask(self, messages: list[Message], scope: str) -> str:
        sent: Any = messages
        answer = await self.client.chat.completions.create(
            model="m", messages=sent, max_completion_tokens=MAX_TOKENS
        )
        return answer.choices[0].message.content or ""

    async def close(self) -> None:
        await self.client.close()


class BareAnthropic(BareAiohttp):
    """The anthropic SDK as its own documentation uses it, retries off."""

    def __init__(self, url: str) -> None:
        import anthropic

        self.client = anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, timeout=60)

    async def ask(self, messages: list[Message], scope: str) -> str:
        turns: Any = messages[1:]
        answer = await self.client.messages.create(
            model="m", system=messages[0]["content"], messages=turns, max_tokens=MAX_TOKENS
        )
        return "".join(block.text for block in answer.content if block.type == "text")

    async def close(self) -> None:
        await self.client.close()


class BareGoogle(BareAiohttp):
    """The google-genai SDK as its own documentation uses it; it retries nothing by itself."""

    ROLES = {"user": "user", "assistant": "model"}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        from google import genai

        options: Any = {"base_url": url, "timeout": 60_000}
        self.client = genai.Client(api_key="k", http_options=options)

    async def ask(self, messages: list[Message], scope: str) -> str:
        turns: Any = [
            {"role": self.ROLES[message["role"]], "parts": [{"text": message["content"]}]}
            for message in messages[1:]
        ]
        config: Any = {
            "system_instruction": messages[0]["content"],
            "max_output_tokens": MAX_TOKENS,
        }
        answer = await self.client.aio.models.generate_content(
            model="m", contents=turns, config=config
        )
        return answer.text or ""

    async def close(self) -> None:
        await self.client.aio.aclose()


class Kernel:
    """`code/infrastructure.py`, as a stage script uses it."""

    def __init__(self, kind: str, url: str, journal: Path | None) -> None:
        import infrastructure

        self.kernel = infrastructure
        self.stack = contextlib.ExitStack()
        options: dict[str, Any] = {"base_url": f"{url}/v1" if kind in OPENAI_ROUTE else url}
        if kind != "local":
            options["api_key"] = "k"
        if journal:
            options["journal"] = self.stack.enter_context(infrastructure.Journal(journal))
        self.backend = infrastructure.get_backend(kind, model="m", concurrency=SLOTS, **options)

    async def ask(self, messages: list[Message], scope: str) -> str:
        result = await self.backend.chat(messages, max_tokens=MAX_TOKENS, scope=scope)
        return str(result.content)

    async def run(
        self, items: Iterable[int], work: Callable[[int], Awaitable[Any]], at_once: int
    ) -> Counter[str]:
        report = await self.kernel.run_all(list(items), work, concurrency=at_once, progress=False)
        kinds = (getattr(error, "kind", type(error).__name__) for _, error in report.failed)
        # Adding drops what is zero.
        return Counter(kinds) + Counter({"pending": len(report.pending)})

    async def close(self) -> None:
        await self.backend.aclose()
        self.stack.close()


OPENAI_ROUTE = ("local", "openai")
BARE = {
    "aiohttp": BareAiohttp,
    "openai": BareOpenAI,
    "anthropic": BareAnthropic,
    "google": BareGoogle,
}


def make_client(spec: Spec, folder: Path) -> Client:
    family, _, kind = spec["client"].partition(":")
    if family == "bare":
        return BARE[kind](spec["url"])
    return Kernel(kind, spec["url"], folder / "journal.jsonl" if spec.get("journal") else None)


# == calls and conversations =======================================================================


def run_calls(spec: Spec) -> Figures:
    return asyncio.run(measure_calls(spec))


async def measure_calls(spec: Spec) -> Figures:
    """Warm up, set the server, then the job and nothing but the job between the two readings."""
    work = Work(spec)
    with tempfile.TemporaryDirectory() as folder:
        client = make_client(spec, Path(folder))
        control(spec["url"], {"size": spec["load"].get("size", 300)})
        await client.run(range(-WARM_UP, 0), lambda item: work.single(client, item), SLOTS)
        control(spec["url"], spec["load"])
        with Meter() as meter:
            items, at_once = range(spec["items"]), spec.get("at_once", SLOTS)
            failed = await client.run(items, lambda item: work.item(client, item), at_once)
        stats = control(spec["url"])
        await client.close()
    return {
        "cpu_s": meter.cpu_s,
        "wall_s": meter.wall_s,
        "lost": spec["items"] - work.done,
        "failed": dict(failed),
        "history_bytes": len(json.dumps(work.longest)),
        "stats": stats,
    }


class Work:
    """What one item of a run is: a single call, or a conversation of several exchanges."""

    def __init__(self, spec: Spec) -> None:
        self.exchanges: int = spec.get("exchanges", 0)
        self.longest: list[Message] = []
        self.done = 0

    async def item(self, client: Client, number: int) -> None:
        if self.exchanges:
            await self.conversation(client, number)
        else:
            await self.single(client, number)
        self.done += 1

    async def single(self, client: Client, number: int) -> None:
        question = f"Question {number}: what helps against a long day at a desk?"
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        if not await client.ask(messages, scope=f"bench/{number}"):
            raise ValueError("an answer without text")

    async def conversation(self, client: Client, number: int) -> None:
        """A simulated user and an assistant in turns; each sees all that was said before."""
        said: list[str] = []
        for turn in range(2 * self.exchanges):
            messages = seen_by("assistant" if turn % 2 else "user", said, number)
            said.append(await client.ask(messages, scope=f"bench/{number}/{turn}"))
            self.longest = messages if len(messages) > len(self.longest) else self.longest


def seen_by(speaker: str, said: list[str], number: int) -> list[Message]:
    """The conversation with the speaker's own lines as the assistant's."""
    opening = {"role": "system", "content": f"You are the {speaker} of conversation {number}."}
    roles = ("assistant", "user") if speaker == "user" else ("user", "assistant")
    lines = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)]
    first = [{"role": "user", "content": "Begin."}] if speaker == "user" else []
    return [opening, *first, *lines]


def control(url: str, load: Spec | None = None) -> Figures:
    """Read the server's counters, or give it a new load and set them to zero."""
    route = "__stats" if load is None else "__config"
    body = None if load is None else json.dumps(load).encode()
    with urllib.request.urlopen(f"{url}/{route}", body) as response:
        return dict(json.load(response))


# == simulated conversations, as the stage makes them ==============================================


def run_generate(spec: Spec) -> Figures:
    return asyncio.run(measure_generate(spec))


async def measure_generate(spec: Spec) -> Figures:
    """The support desk's personas through `simulate_conversation`: draws, prompts, lengths, the
    artefact filter, journal and transcripts, all as the stage does it."""
    import infrastructure as kernel
    import simulation
    import stage

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rules, people = desk(folder, spec["items"], spec["exchanges"])
        options: Spec = {"base_url": f"{spec['url']}/v1", "concurrency": SLOTS}
        with kernel.Journal(folder / "journal.jsonl") as journal:
            model = kernel.get_backend("local", model="m", journal=journal, **options)
            control(spec["url"], {"size": 300})
            await kernel.run_all(range(WARM_UP), lambda n: model.complete(f"{n}"), progress=False)
            control(spec["url"], spec["load"])

            async def work(person: Spec) -> None:
                fields = {"persona": json.dumps(person)}
                made = await simulation.simulate_conversation(person, fields, model, model, rules)
                text = simulation.text_of(made.transcript)
                kernel.atomic_write(folder / f"{person['id']}.json", text)
                if len(made.transcript["exchanges"]) != spec["exchanges"]:
                    raise ValueError(f"{made.fate}: {made.why}")

            with stage.fewer_collections(), Meter() as meter:
                report = await kernel.run_all(
                    people, work, concurrency=spec["items"], progress=False
                )
            stats = control(spec["url"])
            await model.aclose()
    failed = Counter(str(error)[:60] for _, error in report.failed)
    lost = spec["items"] - len(report.done)
    return {"cpu_s": meter.cpu_s, "wall_s": meter.wall_s, "lost": lost, "failed": dict(failed),
            "history_bytes": 0, "stats": stats}  # fmt: skip


def desk(folder: Path, count: int, exchanges: int) -> tuple[Any, list[Spec]]:
    """Rules and people of the example; everybody writes at length, so that no text is refused."""
    sys.path.insert(0, str(ROOT / "code/templates/scripts"))
    import personas

    import curation
    import settings
    import simulation
    from finetune_skills.scaffold import create_project

    answers = {"name": "b", "domain": "d", "language": "en", "hardware": "h", "offline": "true"}
    create_project(folder / "desk", ROOT, answers, example="support-desk")
    root = folder / "desk"
    inspect = curation.inspector(settings.load_artefacts(root), "en")
    rules = simulation.Rules.of(root, 3, inspect)
    plan = personas.prepare(settings.load_taxonomy(root), settings.load_persona_template(root))
    people = list(personas.draw_personas(plan, 1, range(1, count + 1), "training"))
    style = {"communication_style": "formal", "target_exchanges": exchanges}
    return rules, [person | style for person in people]


# == transcripts, judged as the stage does it ======================================================


def run_assess(spec: Spec) -> Figures:
    """A project's transcripts through `assess.py`: judges, evidence that is looked up, journal and
    verdicts on disk, combined; timed from the first call to the manifest."""
    import judging

    with tempfile.TemporaryDirectory() as name:
        desk(Path(name), 1, 1)
        root = Path(name) / "desk"
        assess = judged_project(root, spec)
        court = judging.Court.of(root)
        tasks = list(assess.todo(court, list(court.sources.values())))
        # More at work than may be in flight: while some wait for an answer, others are looked at.
        options = argparse.Namespace(repeat=0, shard=(1, 1), concurrency=2 * SLOTS, max_usd=None)
        project = assess.settings.load_project(root)
        reply = {"reasoning": "It is so.", "answer": "YES"}
        reply |= {"evidence": [{"exchange": 1, "quote": OPENING[1]}]}
        said = json.dumps(dict.fromkeys(court.bench.rubric.criteria, reply))
        control(spec["url"], spec["load"] | {"reply": said})
        with Meter() as meter:
            failed, reruns = Counter[str](), -1
            while tasks and reruns < 5:  # what failed is asked again, as a second run does
                reruns += 1
                with assess.stage.models(root, project, "assess", court.judges, options) as models:
                    report = asyncio.run(assess.judge_all(court, tasks, models, options))
                failed.update(str(error)[:60] for _, error in report.failed)
                court = judging.Court.of(root)
                tasks = list(assess.todo(court, list(court.sources.values())))
            rows = court.combined()
            judging.write_combined(root, rows)
        stats = control(spec["url"])
    lost = spec["items"] - sum(row["pass"] is True for row in rows)
    return {"cpu_s": meter.cpu_s, "wall_s": meter.wall_s, "lost": lost, "failed": dict(failed),
            "history_bytes": 0, "stats": stats, "rows": len(rows), "reruns": reruns}  # fmt: skip


OPENING = ("The light blinks orange and the app says nothing.", "Orange means the cartridge.")


def judged_project(root: Path, spec: Spec) -> Any:
    """So many transcripts and three judges on the fake server; gives the script as a module."""
    import assess  # on the path since `desk`

    path = root / "config/project.yaml"
    text = path.read_text("utf-8")
    begin, end = text.index("  judges:\n"), text.index("  evaluation_judges:")
    judge = '    - {{model: "local:m", base_url: "{}/v1", label: "{}", concurrency: {}}}'
    lines = "\n".join(judge.format(spec["url"], name, SLOTS // 3) for name in "abc")
    path.write_text(f"{text[:begin]}  judges:\n{lines}\n{text[end:]}", "utf-8")
    folder = root / "data/raw/transcripts/bench"
    folder.mkdir(parents=True)
    rng = random.Random("transcripts")
    for number in range(spec["items"]):
        pairs = [OPENING, *((words(rng, 40), words(rng, 50)) for _ in range(9))]
        talk = [{"user": user, "assistant": reply} for user, reply in pairs]
        made = {"id": f"t{number:05}", "exchanges": talk, "provenance": {"batch": "bench"}}
        (folder / f"{made['id']}.json").write_text(json.dumps(made), "utf-8")
    assess.ROOT = root
    return assess


# == tokens ========================================================================================


def run_prefixes(spec: Spec) -> Figures:
    """Counts of every prefix: in one pass, and by counting each prefix from its start."""
    import infrastructure as kernel

    rng = random.Random("exchanges")
    system = words(rng, SYSTEM_WORDS)
    exchanges = [(words(rng, 40), words(rng, 50)) for _ in range(spec["exchanges"])]
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[spec["target"]](Path(folder))
        system_tokens = int(kernel.count_tokens(system, target))  # loads the tokenizer, too
        together, counts = timed(lambda: kernel.count_prefixes(exchanges, system, target), 20)
        one_by_one, naive = timed(lambda: recount(kernel, system, exchanges, target), 2)
    return {
        "cpu_s": together,
        "naive_cpu_s": one_by_one,
        "ratio": one_by_one / together,
        "equal": list(map(int, counts)) == list(map(int, naive)) and int(counts[-1]) > 1000,
        "method": counts[-1].method,
        "tokens": int(counts[-1]),
        "system_tokens": system_tokens,
    }


def recount(kernel: Any, system: str, exchanges: list[tuple[str, str]], target: str) -> list[int]:
    """What a loop over prefixes does; `count_messages_tokens` keeps no counts from call to call."""
    return [
        kernel.count_messages_tokens(as_messages(system, exchanges[:end]), target)
        for end in range(1, len(exchanges) + 1)
    ]


def as_messages(system: str, exchanges: list[tuple[str, str]]) -> list[Message]:
    messages = [{"role": "system", "content": system}]
    for user, assistant in exchanges:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    return messages


def timed(job: Callable[[], Any], times: int) -> tuple[float, Any]:
    """CPU seconds of one run, over several, and the last result."""
    with Meter() as meter:
        for _ in range(times):
            result = job()
    return meter.cpu_s / times, result


def words(rng: random.Random, number: int) -> str:
    """Words of made-up syllables, each text its own."""
    syllables = ("ba", "co", "den", "fir", "gal", "hum", "ist", "jo", "kel", "lun", "mor", "net")
    made = ("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(number))
    return " ".join(made) + "."


def trained() -> Any:
    """A small byte-level tokenizer, trained here: real vocabularies would have to be downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rng = random.Random("corpus")
    tokenizer.train_from_iterator((words(rng, 50) for _ in range(500)), trainer)
    return tokenizer


def own_folder(folder: Path) -> str:
    """A folder as a model brings it, without a chat template."""
    trained().save(str(folder / "tokenizer.json"))
    return str(folder)


def templated_folder(folder: Path) -> str:
    """The same with a chat template and its special tokens."""
    tokenizer = trained()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


def tiktoken_encoding(folder: Path) -> str:
    """The same vocabulary for tiktoken, registered as if it had been downloaded before."""
    import tiktoken
    from tiktoken import registry

    letters = byte_letters()
    ranks = {
        bytes(letters[letter] for letter in token): rank
        for token, rank in trained().get_vocab().items()
    }
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tiktoken.list_encoding_names()  # fills the registry, so that ours is added and not replaced
    constructors: Any = registry.ENCODING_CONSTRUCTORS
    constructors["bench"] = dict
    registry.ENCODINGS["bench"] = encoding
    return "bench"


def byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


TARGETS: dict[str, Callable[[Path], str]] = {
    "tiktoken": tiktoken_encoding,
    "tokenizer.json": own_folder,
    "chat template": templated_folder,
}


# == appends =======================================================================================


def run_appends(spec: Spec) -> Figures:
    """Rows per CPU second of one way to append, and of reading the file back."""
    import infrastructure as kernel

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        rows = [make_row(number) for number in range(spec["items"])]
        with Meter() as meter:
            APPENDS[spec["how"]](path, rows)
        with Meter() as reading:
            kept = sum(1 for _ in kernel.iter_records(path))
        with Meter() as parsing, path.open("rb") as handle:
            for line in handle:
                json.loads(line)
        ids = kernel.load_checkpoint(path)
    lines = len(rows) * (2 if spec["how"] == "together" else 1)
    return {
        "rows_per_cpu_s": lines / meter.cpu_s,
        "reload_per_cpu_s": kept / reading.cpu_s,
        "reload_over_json": reading.cpu_s / parsing.cpu_s,
        "wall_s": meter.wall_s,
        "lost": lines - kept + (len(rows) - len(ids)) * (lines == len(rows)),
        "row_bytes": len(json.dumps(rows[-1])),
    }


def make_row(number: int) -> dict[str, Any]:
    text = words(random.Random(number), 320)
    return {"id": f"row_{number:06}", "schema": 1, "text": text, "score": number / 7}


def append_opened_each_time(path: Path, rows: list[dict[str, Any]]) -> None:
    import infrastructure as kernel

    for row in rows:
        kernel.append_checkpoint(path, row)


def append_kept_open(path: Path, rows: list[dict[str, Any]], sync: bool = True) -> None:
    import infrastructure as kernel

    appender = kernel.Appender(path, sync=sync)
    for row in rows:
        appender.append(row)
    appender.close()


def append_unsynced(path: Path, rows: list[dict[str, Any]]) -> None:
    append_kept_open(path, rows, sync=False)


def append_by_hand(path: Path, rows: list[dict[str, Any]]) -> None:
    """The usual four lines of a script: no lock, no repair of a torn tail, no checksum."""
    for row in rows:
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())


def append_together(path: Path, rows: list[dict[str, Any]]) -> None:
    """Through the journal, 64 callers at once: two lines per call, one sync for all that wait."""
    (path.parent / "bench_model.py").write_text(ECHO_MODEL, encoding="utf-8")
    asyncio.run(journal_rows(path, rows))


ECHO_MODEL = """\
def reply(messages, *, schema=None, scope=""):
    return messages[-1]["content"]
"""


async def journal_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    import infrastructure as kernel

    with kernel.Journal(path) as journal:
        options = {"root": path.parent, "journal": journal, "concurrency": SLOTS}
        async with kernel.get_backend("python", model="bench_model:reply", **options) as backend:

            async def keep(number: int) -> None:
                await backend.complete(rows[number]["text"], scope=f"bench/{number}")

            if failed := await run_bare(range(len(rows)), keep, SLOTS):
                raise RuntimeError(f"the journal failed: {failed}")


APPENDS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "by hand": append_by_hand,
    "opened": append_opened_each_time,
    "kept": append_kept_open,
    "unsynced": append_unsynced,
    "together": append_together,
}


# == review ========================================================================================

WORDS = ("the", "filter", "drips", "since", "monday", "and", "my", "order", "did", "not", "arrive")


def run_review(spec: Spec) -> Figures:
    """CPU of the review server and its client together, for views of a large project."""
    sys.path.insert(0, str(ROOT / "tests"))
    from finetune_skills.review import server
    from finetune_skills.review.queue import Scope

    with tempfile.TemporaryDirectory() as name:
        root = large_project(Path(name) / "desk", spec["items"])
        with Meter() as start:
            review = server.prepare(Scope(root), "Ann", "en", None, 1)
        label_half(review)
        made = server.listen(0, root)
        port = made.getsockname()[1]
        guard, serving = server.server_of(review, port)
        made.listen()
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [made]})
        thread.start()
        try:
            return {"start_s": start.cpu_s} | view_figures(port, guard)
        finally:
            serving.should_exit = True
            thread.join()


def view_figures(port: int, guard: Any) -> Figures:
    """The first view, then steps through conversations of both lengths, each on its own."""
    cookie = f"{guard.cookie_name}={guard.cookie}"
    first = cpu_of_view(port, cookie, "/")
    again = max(cpu_of_view(port, cookie, "/?reason=all&page=7") for _ in range(5))
    short = max(cpu_of_view(port, cookie, f"/t/r{n:04}") for n in range(11, 19))
    long = max(cpu_of_view(port, cookie, f"/t/r{n:04}") for n in range(0, 80, 10))
    return {"first_s": first, "queue_s": again, "step_s": short, "long_step_s": long}


def cpu_of_view(port: int, cookie: str, path: str) -> float:
    with Meter() as meter:
        wire = http.client.HTTPConnection("127.0.0.1", port)
        wire.request("GET", path, headers={"cookie": cookie})
        answer = wire.getresponse()
        text = answer.read()
        wire.close()
    if answer.status != 200 or len(text) < 10_000:
        raise RuntimeError(f"{path}: {answer.status}, {len(text)} bytes")
    return meter.cpu_s


def large_project(root: Path, count: int) -> Path:
    """Transcripts of 12 exchanges, every tenth of 100, each with verdicts of two judges."""
    import reviews

    made = reviews.Project(root)
    for number in range(count):
        draw = random.Random(number)
        length = 100 if number % 10 == 0 else 12
        pairs = [(text_of(draw, 30), text_of(draw, 80)) for _ in range(length)]
        quotes = {c: [{"exchange": n + 1, "quote": pairs[n][1][40:90]}] * 2
                  for n, c in enumerate(made.rubric.criteria) if n < length}  # fmt: skip
        made.transcript(f"r{number:04}", pairs)
        no = {c: "NO" for c in made.rubric.criteria if draw.random() < 0.1}
        made.assess(f"r{number:04}", pairs, {"strict": no}, quotes=quotes)
    return root


def text_of(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def label_half(review: Any) -> None:
    """Half of everything is labelled already, each with what was seen."""
    from finetune_skills.review import views
    from finetune_skills.review.records import read_transcript

    queue = review.queue
    answers = dict.fromkeys(queue.records.rubric.criteria, "YES")
    for number, (item, found) in enumerate(queue.items.items()):
        if number % 2:
            rows = queue.records.current(found.entry)
            text = read_transcript(found.entry.path)
            state = views.label_state(queue, found.entry, text, rows, "Ann")
            row = {"id": item, "reviewer": "Ann", "blind": False, "verdict": "good"}
            queue.store.save(row | state["hashes"] | {"criteria": answers}, 0)


# == the audit =====================================================================================


def run_duplicates(spec: Spec) -> Figures:
    """Conversations of one subject, one in twenty an edited copy of another; pairs of them."""
    from conversations import planted

    find = {"ours": our_duplicates, "datasketch": datasketch_duplicates}[spec["how"]]
    texts, pairs = planted(spec["items"], spec["words"])
    with Meter() as meter:
        found = find(texts)
    figures = {"cpu_s": meter.cpu_s, "rows_per_cpu_s": len(texts) / meter.cpu_s}
    return figures | {"recall": len(found & pairs) / len(pairs), "false": len(found - pairs)}


def our_duplicates(texts: dict[str, str]) -> set[tuple[str, str]]:
    from curation import near_duplicates

    return {(one, other) for one, other, _ in near_duplicates(texts, 0.8)}


def datasketch_duplicates(texts: dict[str, str]) -> set[tuple[str, str]]:
    """As its documentation does it, on runs of three words; what it finds is not verified."""
    from datasketch import MinHash, MinHashLSH

    lsh, made = MinHashLSH(threshold=0.65, num_perm=128), {}
    for item, text in texts.items():
        words = text.lower().replace(".", " ").split()
        runs = {" ".join(run).encode() for run in zip(words, words[1:], words[2:], strict=False)}
        made[item] = MinHash(num_perm=128)
        made[item].update_batch(runs)
        lsh.insert(item, made[item])
    return {(min(item, str(other)), max(item, str(other))) for item, each in made.items()
            for other in lsh.query(each) if other != item}  # fmt: skip


def run_phrases(spec: Spec) -> Figures:
    """Phrases of 3 to 6 words in a tenth of the replies, and the memory that it takes."""
    import numpy as np

    from conversations import conversations

    find = {"ours": our_phrases, "sklearn": sklearn_phrases}[spec["how"]]
    texts = list(conversations(spec["items"], spec["words"]))
    np.unique(np.arange(9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Meter() as meter:
        count = find(texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes here
    figures = {"cpu_s": meter.cpu_s, "rows_per_cpu_s": len(texts) / meter.cpu_s, "found": count}
    return figures | {"mb": (peak - before) * unit / 1e6}


def our_phrases(texts: list[str]) -> int:
    from curation import phrases
    from evidence import wilson

    return len(phrases(texts, wilson))


def sklearn_phrases(texts: list[str]) -> int:
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(ngram_range=(3, 6), binary=True, min_df=0.1)
    return int(counter.fit_transform(texts).shape[1])


# == import ========================================================================================


def run_import(spec: Spec) -> Figures:
    before = set(sys.modules)
    with Meter() as meter:
        __import__(spec["module"])
    return {"cpu_s": meter.cpu_s, "modules": len(set(sys.modules) - before)}


JOBS: dict[str, Callable[[Spec], Figures]] = {
    "calls": run_calls,
    "generate": run_generate,
    "assess": run_assess,
    "prefixes": run_prefixes,
    "appends": run_appends,
    "review": run_review,
    "duplicates": run_duplicates,
    "phrases": run_phrases,
    "import": run_import,
}

if __name__ == "__main__":
    sys.exit(main())
