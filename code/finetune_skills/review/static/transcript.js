import { keys, tabs } from "./keys.js";
import { Saver, ask, compare, doneCounter, guardLinks, hint, say, sendLeft } from "./save.js";

const review = document.getElementById("review");
const start = JSON.parse(review.dataset.state);
const cards = [...document.querySelectorAll(".criterion")];
const whole = document.getElementById("whole");
const on = document.getElementById("on");
const texts = ["notes", "rubric_misses"].map((name) => document.getElementById(name));
const PARTS = ["verdict", "criteria", "agreed", "notes", "rubric_misses", "fine"];
const UNDO = `undo/${document.body.dataset.mode}/${start.id}`;
const NAMED = { verdict: "the whole transcript", rubric_misses: "what the rubric misses" };
const showTab = tabs((name) => name === "panel" && focusCard(at, false));

let label = start.label;
const showDone = doneCounter(complete());
let at = 0; // the open criterion; cards.length is the whole transcript
let timer;

// ── the label and its history ─────────────────────────────────────────────────────────────────────

const saver = new Saver({
  id: start.id,
  url: `/api/labels/${start.id}`,
  revision: start.revision,
  onConflict: (newer) => compare(newer, label, (mine) => {
    if (!mine) {
      remember(label); // undo brings it back
      show(pick(newer));
    }
    saver.settle(newer.revision, mine);
  }),
  onSaved: (left) => left && show(pick(left)),
});

function pick(from) {
  return Object.fromEntries(PARTS.map((key) => [key, from[key]]));
}

function history() {
  try {
    return JSON.parse(sessionStorage.getItem(UNDO)) || [];
  } catch {
    return [];
  }
}

function remember(state) {
  try {
    sessionStorage.setItem(UNDO, JSON.stringify([...history().slice(-49), state]));
  } catch {
    return;
  }
}

function change(part, undoing = false) {
  if (!undoing) remember(label);
  const next = { ...label, ...part };
  next.agreed = Object.keys(next.criteria).filter((c) => next.criteria[c] === start.shown[c]);
  show(next);
  saver.change({ ...label, ...start.hashes });
}

function undo() {
  commit();
  const past = history();
  if (!past.length) return hint("Nothing to undo");
  const last = past.pop();
  sessionStorage.setItem(UNDO, JSON.stringify(past));
  const changed = start.asked.find((c) => last.criteria[c] !== label.criteria[c]);
  change(last, true);
  if (changed) focusCard(cards.findIndex((card) => card.dataset.id === changed));
}

// ── showing ───────────────────────────────────────────────────────────────────────────────────────

function missing() {
  return start.asked.filter((criterion) => !label.criteria[criterion]);
}

function complete() {
  return !missing().length && Boolean(label.verdict);
}

function show(next) {
  label = next;
  for (const card of cards) showCard(card);
  for (const button of whole.querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === label.verdict));
  }
  for (const field of texts) {
    if (document.activeElement !== field) field.value = label[field.id];
  }
  showFindings();
  const left = missing().length;
  const words = [left ? `${left} criteria` : "", label.verdict ? "" : "the verdict"];
  const said = words.filter(Boolean).join(" and ");
  document.getElementById("still").textContent = said ? `Left: ${said}` : "All answered";
  document.getElementById("count").textContent = `${start.asked.length - left}/${start.asked.length}`;
  document.body.toggleAttribute("data-complete", complete());
  showDone(complete());
  on.classList.toggle("primary", complete());
}

function showCard(card) {
  const said = label.criteria[card.dataset.id];
  const mark = card.querySelector(".yours .answer");
  mark.textContent = said || "-";
  mark.className = `answer ${said ? said.toLowerCase() : "none"}`;
  card.classList.toggle("answered", Boolean(said));
  card.classList.toggle("differs", differs(card.dataset.id));
  card.querySelector("[data-agree]")?.setAttribute("aria-pressed", String(said === start.shown[card.dataset.id]));
  for (const button of card.querySelectorAll("[data-say]")) {
    button.setAttribute("aria-pressed", String(button.dataset.say === said));
  }
  const before = card.querySelector(".earlier");
  const earlier = start.earlier?.criteria[card.dataset.id];
  before.hidden = !earlier || Boolean(said);
  before.textContent = earlier ? `You said ${earlier} before.` : "";
}

function differs(criterion) {
  const [said, shown] = [label.criteria[criterion], start.shown[criterion]];
  return Boolean(said && shown && said !== shown);
}

function findings() {
  const found = label.verdict === "bad" || label.verdict === "unsure" ? ["verdict"] : [];
  found.push(...start.asked.filter(differs));
  return label.rubric_misses.trim() ? [...found, "rubric_misses"] : found;
}

function wordsOf(finding) {
  if (finding === "verdict") return `You call it ${label.verdict}.`;
  if (finding === "rubric_misses") return "The rubric misses something.";
  return `${finding}: you say ${label.criteria[finding]}, the judges ${start.shown[finding]}.`;
}

function showFindings() {
  const place = document.getElementById("findings");
  const list = place.querySelector("ul");
  const wanted = findings();
  for (const item of [...list.children]) {
    if (!wanted.includes(item.dataset.finding)) item.remove();
  }
  for (const finding of wanted) {
    const there = [...list.children].find((item) => item.dataset.finding === finding);
    const item = there || list.appendChild(newFinding(finding));
    item.querySelector("label span").textContent = wordsOf(finding);
    const field = item.querySelector("input");
    if (document.activeElement !== field) field.value = label.fine[finding] || "";
    if (!list.contains(document.activeElement)) list.append(item); // in the order of the criteria
  }
  place.hidden = !wanted.length;
}

function newFinding(finding) {
  const [item, named, words, field] = ["li", "label", "span", "input"].map((tag) => document.createElement(tag));
  item.dataset.finding = finding;
  Object.assign(field, { maxLength: 20000, placeholder: "fine, because ..." });
  field.setAttribute("dir", "auto");
  field.setAttribute("aria-description", `why ${NAMED[finding] || finding} is fine`);
  field.oninput = later;
  field.onblur = commit;
  named.append(words, field);
  item.append(named);
  return item;
}

// ── moving through the criteria ───────────────────────────────────────────────────────────────────

function focusCard(place, moveFocus = true) {
  at = Math.min(Math.max(place, 0), cards.length);
  for (const [n, card] of cards.entries()) {
    card.classList.toggle("current", n === at);
    card.querySelector(".head").setAttribute("aria-expanded", String(n === at));
  }
  markNear();
  const target = cards[at] || whole;
  if (moveFocus) {
    if (narrow()) showTab("panel");
    (cards[at]?.querySelector(".head") || whole).focus({ preventScroll: true });
    target.scrollIntoView({ block: "nearest" });
  }
}

const narrow = () => matchMedia("(max-width: 819px)").matches;

function nextUnanswered() {
  const order = [...cards.keys()].map((n) => (at + 1 + n) % cards.length);
  return order.find((n) => !label.criteria[cards[n].dataset.id]);
}

function onward() {
  const next = cards.length ? nextUnanswered() : undefined;
  if (next !== undefined) return focusCard(next);
  focusCard(cards.length);
  if (complete()) {
    on.focus({ preventScroll: true });
    on.scrollIntoView({ block: "nearest" });
  }
}

function answer(said, stay = false) {
  if (!cards[at]) return;
  const criteria = { ...label.criteria, [cards[at].dataset.id]: said };
  change({ criteria });
  if (!stay) onward();
}

function agree(stay = false) {
  if (!cards[at]) return;
  const shown = start.shown[cards[at].dataset.id];
  if (shown) answer(shown, stay);
  else hint(start.blind ? "Blind: answer with y, n or a" : "No verdict to agree with: y, n or a");
}

function agreeWithRest() {
  if (start.blind) return;
  const rest = missing().filter((criterion) => start.unanimous.includes(criterion));
  if (!rest.length) return hint("Nothing left that two judges or more agree on");
  const added = Object.fromEntries(rest.map((criterion) => [criterion, start.shown[criterion]]));
  change({ criteria: { ...label.criteria, ...added } });
  hint(`Agreed on ${rest.join(", ")}. Undo takes it back.`);
  onward();
}

function judgeWhole(verdict) {
  change({ verdict });
  const open = cards[at] && !label.criteria[cards[at].dataset.id];
  if (!open) onward(); // else the reader is in the middle of a question
}

function enter(event) {
  if (event.target === on) return false;
  const head = event.target.closest?.(".head");
  if (head && head.closest(".criterion") !== cards[at]) return false;
  if (!head && event.target.matches?.("a, button, summary, [role=tab]")) return false;
  if (event.key === " " && !event.target.closest?.("#panel")) return false; // scrolls the text
  if (at === cards.length && complete()) return void go(on.getAttribute("href"));
  return agree();
}

// ── quotes and exchanges ──────────────────────────────────────────────────────────────────────────

const quotesOf = (card) => [...(card?.querySelectorAll("[data-quote]") || [])];
const marksOf = (number) => document.querySelectorAll(`mark[data-q~="${number}"]`);
let quoteAt = -1;

function markNear() {
  for (const mark of document.querySelectorAll("mark.near, mark.on")) mark.classList.remove("near", "on");
  for (const quote of quotesOf(cards[at])) {
    for (const mark of marksOf(quote.dataset.quote)) mark.classList.add("near");
  }
  quoteAt = -1;
}

function showQuote(quote) {
  const marks = marksOf(quote.dataset.quote);
  for (const mark of document.querySelectorAll("mark.on")) mark.classList.remove("on");
  for (const mark of marks) mark.classList.add("on");
  if (narrow()) showTab("talk");
  if (document.body.hasAttribute("data-diff")) toggle("diff"); // the marks are in the new text
  marks[0]?.scrollIntoView({ block: "center" });
}

function stepQuote(by) {
  const quotes = quotesOf(cards[at]);
  if (!quotes.length) return hint("No quotes for this criterion");
  const from = quoteAt < 0 && by < 0 ? 0 : quoteAt;
  quoteAt = (from + by + quotes.length) % quotes.length;
  showQuote(quotes[quoteAt]);
}

function stepExchange(by) {
  if (narrow()) showTab("talk");
  const all = [...document.querySelectorAll("#talk .exchanges > li")];
  const top = document.querySelector(".bar").offsetHeight + 20;
  const now = all.findLastIndex((item) => item.getBoundingClientRect().top <= top);
  all[Math.min(Math.max(now + by, 0), all.length - 1)]?.scrollIntoView({ block: "start" });
}

function toggle(name) {
  const button = document.getElementById(`show-${name}`);
  if (!button) return;
  const shown = document.body.toggleAttribute(`data-${name}`);
  button.setAttribute("aria-pressed", String(shown));
}

// ── texts, links, other windows ───────────────────────────────────────────────────────────────────

function later() {
  clearTimeout(timer);
  timer = setTimeout(commit, 500);
}

function commit() {
  clearTimeout(timer);
  const part = {};
  for (const field of texts) if (field.value !== label[field.id]) part[field.id] = field.value;
  const fine = { ...label.fine };
  for (const item of document.querySelectorAll("#findings li")) {
    const said = item.querySelector("input").value;
    if (said !== (fine[item.dataset.finding] || "")) fine[item.dataset.finding] = said;
    if (!said) delete fine[item.dataset.finding];
  }
  if (JSON.stringify(fine) !== JSON.stringify(label.fine)) part.fine = fine;
  if (Object.keys(part).length) change(part);
}

const flush = () => (commit(), saver.flush());

async function go(url) {
  if (!url) return;
  await flush();
  location.href = url;
}

async function look() {
  if (document.hidden || saver.dirty) return;
  const { status, data } = await ask(saver.url);
  if (status !== 200 || saver.dirty || !data.newer || data.newer.revision <= saver.base) return;
  if (data.newer.transcript_hash !== start.hashes.transcript_hash) return;
  saver.base = data.newer.revision;
  show(pick(data.newer));
  say("Brought up to date", "good");
}

function write(id) {
  const field = document.getElementById(id);
  if (narrow()) showTab("panel");
  field.focus();
  field.scrollIntoView({ block: "nearest" });
}

function leave(field) {
  field.blur();
  if (field.closest("#panel")) whole.focus({ preventScroll: true });
}

for (const field of texts) Object.assign(field, { oninput: later, onblur: commit });
for (const [n, card] of cards.entries()) {
  card.querySelector(".head").onclick = () => focusCard(n === at ? at : n);
  card.querySelector(".body").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (n !== at) focusCard(n, false);
    if (button.dataset.quote) return showQuote(button);
    if ("agree" in button.dataset) agree(true);
    else answer(button.dataset.say, true);
    card.querySelector(".head").focus({ preventScroll: true });
  });
}
for (const button of whole.querySelectorAll("[data-verdict]")) {
  button.onclick = () => change({ verdict: button.dataset.verdict });
}
document.getElementById("talk").addEventListener("click", (event) => {
  const number = event.target.closest("mark")?.dataset.q.split(" ")[0];
  const card = number && document.querySelector(`[data-quote="${number}"]`)?.closest(".criterion");
  if (card) focusCard(cards.indexOf(card));
});
document.getElementById("show-plan").onclick = () => toggle("plan");
document.getElementById("show-diff")?.addEventListener("click", () => toggle("diff"));
document.getElementById("agree-rest")?.addEventListener("click", agreeWithRest);
document.getElementById("undo").onclick = undo;
for (const leaving of ["beforeunload", "pagehide"]) addEventListener(leaving, commit);
addEventListener("focus", look);
guardLinks(flush);

function takeEarlier() {
  if (!start.earlier) return;
  const kept = Object.entries(start.earlier.criteria).filter(([c]) => start.asked.includes(c));
  change({ ...start.earlier, criteria: Object.fromEntries(kept) });
  document.getElementById("stale").hidden = true;
  onward();
}

if (start.stale) {
  const place = document.getElementById("stale");
  place.hidden = false;
  place.querySelector("span").textContent = `Since you labelled this, ${start.stale.replace(/^the /, "the ")}.`;
  document.getElementById("take-earlier").onclick = takeEarlier;
}

keys([
  [["j", "ArrowRight"], "next criterion", () => focusCard(at + 1)],
  [["k", "ArrowLeft"], "criterion before", () => focusCard(at - 1)],
  [["Enter", " "], start.blind ? "go on when all is answered" : "agree with the judges", enter],
  [["y"], "should be YES", () => answer("YES")],
  [["n"], "should be NO", () => answer("NO")],
  [["a"], "should be NA", () => answer("NA")],
  ...(start.blind ? [] : [[["r"], "agree with the rest, where all judges agree", agreeWithRest]]),
  [["g"], "the transcript is good", () => judgeWhole("good")],
  [["b"], "the transcript is bad", () => judgeWhole("bad")],
  [["u"], "unsure about the transcript", () => judgeWhole("unsure")],
  [["e"], "write a note (Escape leaves it)", () => write("notes")],
  [["m"], "the rubric misses something", () => write("rubric_misses")],
  [["f"], "why a finding is fine", () => document.querySelector("#findings input")?.focus()],
  [["q", "Q"], "next quote, quote before", (event) => stepQuote(event.shiftKey ? -1 : 1)],
  [["J", "K"], "next exchange, exchange before", (event) => stepExchange(event.shiftKey && event.code === "KeyK" ? -1 : 1)],
  [["s"], "scheduled flaws and lengths", () => toggle("plan")],
  ...(document.getElementById("show-diff") ? [[["d"], "what the repair changed", () => toggle("diff")]] : []),
  [["z"], "undo", undo],
  ...(start.stale ? [[["c"], "take over all earlier answers", takeEarlier]] : []),
  [["["], "transcript before", () => go(review.dataset.previous)],
  [["]"], "next transcript", () => go(review.dataset.next)],
  [["Escape"], "back to the queue", () => go(document.querySelector(".back").getAttribute("href"))],
], leave);

function takeLeft(age = 3000) {
  const kept = saver.dirty ? null : saver.adopt(age);
  if (!kept) return;
  show(pick(kept));
  say("Brought back what was not saved yet");
  saver.pump();
}

show(label);
takeLeft(0);
focusCard(Math.max(0, cards.length ? cards.findIndex((card) => !label.criteria[card.dataset.id]) : 0), false);
if (!missing().length) focusCard(cards.length, false);
saver.pump();
setInterval(takeLeft, 2000);
look(); // a save of the page before this one may have arrived after this one was made
sendLeft(start.id);
