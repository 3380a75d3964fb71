"""The review server over real sockets: who gets in, what is shown, what is kept."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from children import CODE
from finetune_skills.labels import load_labels
from finetune_skills.review.text import plain as plain_text
from infrastructure import canonical_hash
from reviews import INJECTIONS, Project, Server, begin, pilot, serving, talk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return pilot(tmp_path_factory.mktemp("review") / "desk")


@pytest.fixture(scope="module")
def server(made: Project) -> Iterator[Server]:
    with serving(made.root) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return pilot(tmp_path / "desk")


def state_of(server: Server, item: str) -> dict[str, object]:
    """What a page's script starts from."""
    found = Attributes("data-state")
    found.feed(server.request(f"/t/{item}").text)
    return dict(json.loads(found.values[0]))


class Attributes(HTMLParser):
    """Every value of one attribute, and every element's name."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name, self.values, self.tags, self.text = name, list[str](), list[str](), list[str]()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for name, value in attrs if name == self.name]
        self.handlers += [name for name, value in attrs if name.startswith("on")]
        self.handlers += [name for name, value in attrs if "javascript:" in (value or "")[:20]]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# Who gets in


def test_the_address_is_of_this_machine_only(server: Server) -> None:
    assert server.url.startswith(f"http://127.0.0.1:{server.port}/?token=")
    sockets = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
    mine = [line.split() for line in sockets.splitlines() if f":{server.port:04X} " in line[:30]]
    assert all(parts[1].startswith("0100007F:") for parts in mine if parts[3] == "0A")


@pytest.mark.parametrize("path", ["/", "/t/t1", "/api/labels/t1", "/static/review.css", "/nope"])
def test_nobody_gets_anything_without_the_cookie(server: Server, path: str) -> None:
    for cookie in ("", "finetune_review_1=x", f"finetune_review_{server.port}=wrong"):
        answer = server.request(path, cookie=cookie)
        assert (answer.status, "t1" in answer.text) == (403, False)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "[::1]:80", "127.0.0.1.evil"]
)
def test_another_host_is_refused_even_with_the_cookie(server: Server, host: str) -> None:
    assert server.request("/", host=host).status == 403
    assert server.request("/", host=f"localhost:{server.port}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": None}, {"origin": "null"}, {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1"}, {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"}, {"cookie": None},
    ],
)  # fmt: skip
def test_a_change_that_another_page_sent_is_refused(
    server: Server, headers: dict[str, str | None]
) -> None:
    body = {"base_revision": 0, "reviewer": "Ann", "label": {"turns": 4, "verdict": "bad"}}
    assert server.request("/api/labels/t5", body, **headers).status == 403
    assert server.request("/api/labels/t5").json == {"newer": None}


def test_the_token_works_once(project: Project) -> None:
    with serving(project.root) as server:
        parts = urlsplit(server.url)
        for token in (parts.query, "token=", "token=wrong"):
            assert server.request(f"/?{token}", cookie="").status == 403
        assert server.request(f"/?{parts.query}").headers["location"] == "/"  # our own browser


def test_the_cookie_is_for_this_page_alone(project: Project) -> None:
    server = begin(project.root)
    try:
        parts = urlsplit(server.url)
        answer = server.request(f"/?{parts.query}")
        assert (answer.status, answer.headers["location"]) == (303, "/")
        said = answer.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= set(said.split("; "))
        assert parts.query.removeprefix("token=").lower() not in said
    finally:
        server.end()


def test_every_answer_forbids_what_the_page_does_not_need(server: Server) -> None:
    for answer in (server.request("/"), server.request("/static/save.js"),
                   server.request("/", cookie=""), server.request("/t/none")):  # fmt: skip
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "item",
    ["..%2f..%2fconfig%2fproject.yaml", "../../config/project.yaml", "%2e%2e", "%00", "t1.json",
     "t1%0d%0aset-cookie:x=1", "a" * 300, "CON", "%ff%fe"],
)  # fmt: skip
def test_an_id_that_is_a_path_is_simply_unknown(server: Server, item: str) -> None:
    for path in (f"/t/{item}", f"/static/{item}"):
        answer = server.request(path)
        assert answer.status == 404
        assert "Tarn" not in answer.text


def test_a_huge_body_is_refused_and_changes_nothing(server: Server) -> None:
    big = b'{"label": "' + b"x" * 1_100_000 + b'"}'
    assert server.request("/api/labels/t5", big).status == 413
    assert server.request("/api/labels/t5").json == {"newer": None}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b"[" * 50_000, b'{"base_revision": "0"}', b'{"base_revision": -1}',
     b'{"base_revision": 0, "reviewer": "Ann", "label": []}',
     b'{"base_revision": 0, "reviewer": "Bo", "label": {"turns": 4}}',
     b'{"base_revision": 0, "reviewer": "Ann", "label": {"turns": 4, "verdict": "x"}}'],
)  # fmt: skip
def test_a_broken_change_is_an_answer_and_no_label(server: Server, body: bytes) -> None:
    answer = server.request("/api/labels/t5", body)
    assert (answer.status, bool(answer.json["error"])) == (400, True)
    assert server.request("/api/labels/t5").json == {"newer": None}


# What is shown


def test_the_queue_says_why_each_transcript_is_in_it(server: Server) -> None:
    text = server.request("/").text
    for reason in ("NO on S2", "not assessed by strict: 1", "about H1, N2; scores 0.18 apart",
                   "what does the rubric miss?", "0.82, needs 0.80", "pilot-001"):  # fmt: skip
        assert reason in text


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("reason=safety", ["t3"]), ("reason=error", ["t4"]), ("reason=perfect", ["t1"]),
        ("reason=disagreement", ["t2", "t4"]), ("text=T5", ["t5"]), ("state=done", []),
        ("reason=nonsense&page=x", ["t1", "t2", "t3", "t4", "t5"]), ("batch=none", []),
    ],
)  # fmt: skip
def test_filters_leave_what_they_say(server: Server, query: str, ids: list[str]) -> None:
    text = server.request(f"/?{query}").text
    assert sorted(re.findall(r'href="/t/(\w+)[^"]*" class="line', text)) == ids


def test_a_transcript_stands_beside_what_the_judges_said(server: Server) -> None:
    text = server.request("/t/t2").text
    assert "step 4. Then look whether" in text
    assert "The strict judge thought long about H1." in text
    assert '<mark data-q="1 2">Turn the blue valve a qu</mark>' in text  # one quote of each judge
    assert "buries the lede" in text


def test_a_quote_that_is_nowhere_is_said_to_be_so(project: Project) -> None:
    quotes = {"H1": [{"exchange": 1, "quote": "I never wrote this"},
                     {"exchange": 9, "quote": "question   3.\nIt is"}]}  # fmt: skip
    project.transcript("t9", talk(4))
    project.assess("t9", talk(4), quotes=quotes)
    with serving(project.root, "--sample", "9") as server:
        text = server.request("/t/t9").text
    assert "not in this transcript" in text
    assert "(said to be in 9)" in text


def test_injections_stay_text(project: Project) -> None:
    def shape(pairs: list[tuple[str, str]], name: str) -> Attributes:
        project.transcript("t1", pairs, persona={"name": name, "communication_style": name})
        with serving(project.root) as server:
            found = Attributes()
            for path in ("/", "/t/t1"):
                answer = server.request(path)
                assert answer.status == 200
                found.feed(answer.text)
            return found

    plain = shape([("plain", "plain") for _ in range(30)], "plain")
    pairs = list(zip(INJECTIONS[::2], INJECTIONS[1::2], strict=True))
    found = shape(pairs, INJECTIONS[0])
    extra = [tag for tag in found.tags if tag != "span"]
    assert extra == [tag for tag in plain.tags if tag != "span"]
    assert found.handlers == []
    said = "".join(found.text)
    assert [text for text in INJECTIONS if plain_text(text) not in said] == []
    assert "\u241b[31mred" in said
    assert "<U+202E>right to left" in said
    assert not {"\x1b", "\u202e", "\x00", "\u2066", "\u200b"} & set(said)


def test_injections_of_judges_and_reviewers_stay_text(project: Project) -> None:
    evil = "<script>document.title='owned'</script>"
    both = dict.fromkeys(project.rubric.criteria, evil)
    project.transcript("t9", talk(4))
    project.assess("t9", talk(4), reasonings=both, errors=both,
                   quotes={"H1": [{"quote": evil}], "H2": evil, "H3": [7]})  # fmt: skip
    with serving(project.root, "--sample", "9", by=evil) as server:
        server.save("t9", notes=evil, by=evil)
        found = Attributes("src")
        for path in ("/", "/?name=1", "/t/t9"):
            found.feed(server.request(path).text)
    assert len(found.values) == found.tags.count("script") == 3
    assert all(value.startswith("/static/") for value in found.values)


def test_a_repaired_transcript_shows_what_was_changed(project: Project) -> None:
    repaired = [*talk(2, "t1"), ("And now?", "Close the valve.")]
    project.transcript("t1", repaired, folder="data/repaired")
    with serving(project.root) as server:
        text = server.request("/t/t1").text
    assert "<del>Turn</del>" in text
    assert "<ins>Close</ins>" in text
    assert "1 exchanges were cut away by the repair" in text


def test_verdicts_about_an_older_text_are_not_shown(project: Project) -> None:
    project.transcript("t1", talk(4, "other"))
    with serving(project.root) as server:
        text = server.request("/t/t1").text
    assert "The verdicts are of an earlier text" in text
    assert "thought long about" not in text


def test_transcripts_without_any_verdict_can_be_labelled(project: Project) -> None:
    for path in (project.root / "data/assessments").iterdir():
        path.unlink()
    with serving(project.root) as server:
        assert "No verdicts here yet" in server.request("/").text
        assert state_of(server, "t1")["shown"] == {}
        assert server.save("t1", verdict="good").json == {"revision": 1}


def test_older_shapes_of_transcripts_are_read(project: Project) -> None:
    path = project.root / "data/raw/transcripts/deep/er/old.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"transcript_id": 7, "conversations": [["hello", "there"]]}))
    with serving(project.root, "--sample", "9") as server:
        assert "hello" in server.request("/t/7").text


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"exchanges": 7}', '{"id": "../x", "exchanges": []}', '{"exchanges": [7]}']
)
def test_a_file_that_is_no_transcript_is_named_and_costs_nothing_else(
    project: Project, text: str
) -> None:
    (project.root / "data/raw/transcripts/broken.json").write_text(text)
    with serving(project.root) as server:
        page = server.request("/").text
    assert "data/raw/transcripts/broken.json" in page
    assert "/t/t5" in page


def test_new_and_changed_transcripts_show_after_a_reload(project: Project) -> None:
    with serving(project.root, "--sample", "9") as server:
        project.transcript("new", talk(3))
        assert "/t/new" in server.request("/").text
        project.transcript("t1", [("entirely", "different")])
        assert "entirely" in server.request("/t/t1").text


# Blind


def test_a_blind_page_holds_no_verdict(project: Project) -> None:
    with serving(project.root, "--blind", "--batch", "pilot-001") as server:
        pages = [server.request(path).text for path in ("/", "/?reason=safety", "/t/t3", "/t/t2")]
        state = state_of(server, "t2")
    told = ("judge thought", "strict", "mild", "passed", "failed", "0.82", "1.00", "NO on",
            "disagree", "threshold", "<mark", "Agree")  # fmt: skip
    for page in pages:
        for criterion in project.rubric.criteria.values():
            page = page.replace(criterion.question, "")
        assert [word for word in told if word in page] == []
        assert "/t/t1" in page or "question 4" in page
    assert (state["shown"], state["unanimous"], state["blind"]) == ({}, [], True)
    assert state["hashes"]["seen"] == {}  # type: ignore[index]


def test_two_transcripts_with_opposite_verdicts_look_alike_when_blind(project: Project) -> None:
    for item, answer in (("t8", "YES"), ("t9", "NO")):
        project.transcript(item, talk(4))
        answers = dict.fromkeys(project.rubric.criteria, answer)
        project.assess(item, talk(4), {"mild": answers, "strict": answers})
    project.batch("pilot-002", ["t8", "t9"])
    with serving(project.root, "--blind", "--batch", "pilot-002") as server:
        pages = [(server.request(f"/t/{item}").text, item) for item in ("t8", "t9")]
    ways = ("data-next", "1 of 2", "2 of 2", "href", "</a>")
    lines = zip(*(page.replace(item, "T").splitlines() for page, item in pages), strict=True)
    differ = [pair for pair in lines if pair[0] != pair[1]]
    assert [line for line, _ in differ if not any(way in line for way in ways)] == []


def test_a_blind_label_says_so_and_never_what_was_seen(project: Project) -> None:
    with serving(project.root, "--blind") as server:
        server.save("t1", verdict="good", criteria={"H1": "YES"}, agreed=["H1"], seen={"mild": "x"})
        [label] = load_labels(project.root)
    assert (label.blind, label.seen, label.agreed) == (True, {}, ())


def test_a_blind_reader_does_not_see_their_own_open_label(project: Project) -> None:
    with serving(project.root) as server:
        server.save("t1", verdict="bad", notes="I saw it all")
    with serving(project.root, "--blind") as server:
        assert "I saw it all" not in server.request("/t/t1").text


# What is kept


def test_what_was_acknowledged_survives_a_kill_at_once(project: Project) -> None:
    with serving(project.root) as server:
        for number in range(5):
            assert server.save("t1", number, notes=f"note {number}").status == 200
        server.kill()
    with serving(project.root) as server:
        assert server.request("/api/labels/t1").json["newer"]["notes"] == "note 4"


def test_two_windows_never_overwrite_each_other(project: Project) -> None:
    with serving(project.root) as server:
        assert server.save("t1", 0, verdict="good", notes="first").status == 200
        late = server.save("t1", 0, verdict="bad", notes="second")
        assert (late.status, late.json["newer"]["notes"]) == (409, "first")
        again = server.save("t1", late.json["newer"]["revision"], verdict="bad", notes="second")
        assert again.json == {"revision": 2}
    rows = (project.root / "data/reviews/labels.jsonl").read_text()
    assert "first" in rows
    assert "second" in rows


def test_a_stale_label_shows_what_was_said_and_counts_as_to_do(project: Project) -> None:
    with serving(project.root) as server:
        hashes = state_of(server, "t1")["hashes"]
        assert isinstance(hashes, dict)
        answers = dict.fromkeys(project.rubric.criteria, "YES")
        server.save("t1", verdict="good", criteria=answers, **hashes)
        assert "1 of 5 done" in server.request("/").text
        project.assess("t1", talk(4, "t1"), {"strict": {"H1": "NO"}}, prompt_hash="q")
        assert "0 of 5 done" in server.request("/").text
        state = state_of(server, "t1")
    assert state["stale"] == "the verdict of strict has changed"
    assert state["earlier"]["verdict"] == "good"  # type: ignore[index]
    assert state["label"]["verdict"] is None  # type: ignore[index]


def test_the_name_is_asked_once_and_kept_with_every_label(project: Project) -> None:
    name = "Zo\u00eb"
    with serving(project.root, by="") as server:
        assert 'value="ann"' in server.request("/").text
        assert server.request("/t/t1").status == 303
        assert server.request("/api/reviewer", {"name": " \x1b "}).status == 400
        assert server.request("/api/reviewer", {"name": f" {name} "}).json == {"reviewer": name}
        assert server.save("t1", by=name, verdict="good").status == 200
    assert [label.reviewer for label in load_labels(project.root)] == [name]


# A/B


def paired(project: Project) -> Path:
    """Two arms of one persona, in folders that name the arms."""
    for arm, text in (("base", "short"), ("tuned", "long and kind")):
        for item in ("a1", "a2"):
            project.transcript(item, [("hi", f"{text} {item}")], folder=f"data/evaluation/{arm}")
    pairs = [[f"data/evaluation/{arm}/{item}.json" for arm in ("base", "tuned")]
             for item in ("a1", "a2")]  # fmt: skip
    path = project.root / "pairs.json"
    path.write_text(json.dumps([{"pair": pair, "arms": ["base", "tuned"]} for pair in pairs]))
    return path


def test_a_pair_is_shown_without_its_arms_and_the_choice_is_kept(project: Project) -> None:
    with serving(project.root, "--ab", str(paired(project))) as server:
        assert server.request("/").headers["location"] == "/ab/1"
        text = server.request("/ab/1").text
        assert [word for word in ("base", "tuned", "evaluation", "Person a1") if word in text] == []
        body = {"base_revision": 0, "reviewer": "Ann", "label": {"choice": "left", "notes": "warm"}}
        assert server.request("/api/ab/1", body).json == {"revision": 1}
        body["label"] = {"choice": "tie"}
        assert server.request("/api/ab/1", body).status == 409
        assert server.request("/ab/3").status == server.request("/t/t1").status == 404
        assert server.request("/").headers["location"] == "/ab/2"
    row = json.loads((project.root / "data/reviews/ab.jsonl").read_text())
    assert (row["choice"], row["reviewer"], len(row["pair"])) == ("left", "Ann", 2)
    first = text.index("short a1") < text.index("long and kind a1")
    assert row["left"] == row["pair"][0 if first else 1]


def test_sides_are_drawn_for_each_pair_and_stay(project: Project) -> None:
    from finetune_skills.review.pairs import load_pairs

    for number in range(40):
        for arm in ("base", "tuned"):
            project.transcript(f"{arm}{number}", [("hi", arm)], folder="data/evaluation")
    path = project.root / "pairs.jsonl"
    names = ([f"data/evaluation/{arm}{n}.json" for arm in ("base", "tuned")] for n in range(40))
    path.write_text("\n".join(map(json.dumps, names)))
    sides = [pair.left.startswith("base") for pair in load_pairs(project.root, path, 2)]
    assert sides == [pair.left.startswith("base") for pair in load_pairs(project.root, path, 2)]
    assert 10 < sum(sides) < 30


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[1]", '[["../../x.json", "y.json"]]', '[["a.json"]]', '[["n", "n"]]']
)
def test_a_file_without_pairs_says_what_one_is(project: Project, text: str) -> None:
    path = project.root / "pairs.json"
    path.write_text(text)
    with pytest.raises(AssertionError, match=r"pairs\.json|not a transcript"):
        begin(project.root, "--ab", str(path))


# The command


def refused(root: Path, *flags: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "finetune_skills.cli", "review", "--no-browser", *flags]
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    return done.returncode, done.stderr


def test_with_nothing_to_review_it_says_what_makes_transcripts(tmp_path: Path) -> None:
    code, said = refused(Project(tmp_path / "desk").root)
    assert (code, said.count("\n")) == (2, 1)
    assert "scripts/generate.py" in said


def test_an_unknown_batch_is_answered_with_the_known_ones(made: Project) -> None:
    code, said = refused(made.root, "--batch", "pilot-01")
    assert (code, 'Did you mean "pilot-001"?' in said) == (2, True)


def test_a_mistake_in_the_rubric_is_a_page_that_names_its_line(project: Project) -> None:
    with serving(project.root) as server:
        path = project.root / "config/rubric.yaml"
        right = path.read_text()
        path.write_text(right.replace("weight: 0.3\n", "weight: 3\n", 1))
        answer = server.request("/t/t1")
        assert (answer.status, "rubric.yaml:" in answer.text) == (400, True)
        path.write_text(right)
        assert server.request("/t/t1").status == 200


def test_a_port_in_use_is_said(made: Project, server: Server) -> None:
    code, said = refused(made.root, "--port", str(server.port))
    assert (code, f"port {server.port}" in said) == (2, True)


def test_a_project_keeps_its_port_and_falls_back_to_another(project: Project) -> None:
    with serving(project.root) as one:
        with serving(project.root) as other:
            assert other.port != one.port
        port = one.port
    with serving(project.root) as again:
        assert again.port == port


def test_ctrl_c_ends_it_with_what_was_done_and_what_is_left(project: Project) -> None:
    with serving(project.root, "--batch", "pilot-001") as server:
        hashes = state_of(server, "t1")["hashes"]
        assert isinstance(hashes, dict)
        answers = dict.fromkeys(project.rubric.criteria, "YES")
        server.save("t1", verdict="good", criteria=answers, **hashes)
        server.save("t2", notes="begun")
        code, said = server.end()
    assert code == 0
    assert "2 transcripts labelled in this session, 4 to do" in said
    assert "finetune review --batch pilot-001" in said
    assert "Traceback" not in said


def test_at_a_terminal_the_address_is_one_line(project: Project) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "finetune_skills.cli", "review", "--no-browser", "--by", "Ann"]
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    child = subprocess.Popen(command, cwd=project.root, env=environment, stdout=slave,
                             stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)  # fmt: skip
    line = os.read(master, 1000).decode()
    child.terminate()
    assert child.wait(20) == 0
    os.close(master)
    os.close(slave)
    assert line.startswith("http://127.0.0.1:")
    assert line.count("\n") == 1


def test_the_command_starts_without_the_web_framework() -> None:
    script = "import finetune_skills.cli, sys; print('starlette' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout == "False\n"


def test_hashes_are_those_that_the_judges_use(made: Project, server: Server) -> None:
    hashes = state_of(server, "t1")["hashes"]
    assert isinstance(hashes, dict)
    assert hashes["transcript_hash"] == canonical_hash([list(pair) for pair in talk(4, "t1")])
    assert hashes["rubric_hash"] == made.rubric.hash
    assert sorted(hashes["seen"]) == ["mild", "strict"]
