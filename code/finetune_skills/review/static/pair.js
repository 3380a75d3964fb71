import { keys, tabs } from "./keys.js";
import { Saver, compare, doneCounter, guardLinks, say, sendLeft } from "./save.js";

const review = document.getElementById("review");
const start = JSON.parse(review.dataset.state);
const notes = document.getElementById("notes");
const on = document.getElementById("on");
let label = start.label;
const showDone = doneCounter(Boolean(label.choice));
let timer;

const saver = new Saver({
  ...start,
  url: `/api${location.pathname}`,
  onConflict: (newer) => compare(newer, label, (mine) => {
    if (!mine) show({ choice: newer.choice, notes: newer.notes });
    saver.settle(newer.revision, mine);
  }),
  onSaved: (left) => left && show(left),
});

function show(next) {
  label = next;
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.setAttribute("aria-pressed", String(button.dataset.choice === label.choice));
  }
  if (document.activeElement !== notes) notes.value = label.notes;
  document.getElementById("all-done").hidden = !showDone(Boolean(label.choice));
}

function change(part) {
  show({ ...label, ...part });
  saver.change(label);
}

function choose(choice) {
  change({ choice });
  if (review.dataset.todo) on.focus();
}

function commit() {
  clearTimeout(timer);
  if (notes.value !== label.notes) change({ notes: notes.value });
}

const flush = () => (commit(), say("Saving"), saver.flush().then(() => say("Saved", "good")));

async function go(url) {
  if (!url) return;
  await flush();
  location.href = url;
}

notes.oninput = () => {
  clearTimeout(timer);
  timer = setTimeout(commit, 500);
};
notes.onblur = commit;
for (const leaving of ["beforeunload", "pagehide"]) addEventListener(leaving, commit);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.onclick = () => choose(button.dataset.choice);
}
guardLinks(flush);
tabs();
keys([
  [["l"], "the left one is better", () => choose("left")],
  [["r"], "the right one is better", () => choose("right")],
  [["t"], "no difference", () => choose("tie")],
  [["e"], "write a note (Escape leaves it)", () => notes.focus()],
  [["Enter"], "next pair without a choice", (event) => {
    if (event.target.matches("a, button")) return false;
    return label.choice ? void go(review.dataset.todo) : false;
  }],
  [["["], "pair before", () => go(review.dataset.previous)],
  [["]"], "next pair", () => go(review.dataset.next)],
], (field) => field.blur());

show(saver.adopt() || label);
saver.pump();
sendLeft(start.id);
