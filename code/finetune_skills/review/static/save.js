// Keeps every change until the server has it on its disk. A change waits in this browser's storage
// while it is on its way, so neither a reload nor a server that was killed loses it.

const about = document.body.dataset;
const PREFIX = `review/${about.project}/${about.mode}/${about.reviewer}/`;
const WINDOW = Math.random().toString(36).slice(2); // two windows never share a place
const TIMES = ["revision", "at", "schema"];

/** The same text for equal content, whatever the order of its keys. */
export function stable(value) {
  if (Array.isArray(value)) return `[${value.map(stable).sort().join()}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value ?? null);
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${stable(value[key])}`).join()}}`;
}

/** Whether what the server has is what we once sent. */
function alike(newer, sent) {
  const keys = Object.keys(newer).filter((key) => !TIMES.includes(key));
  return keys.every((key) => stable(newer[key]) === stable(sent[key] ?? null));
}

/** Keeps "3 of 5 done" right while this page is open; says whether all are done. */
export function doneCounter(before) {
  const place = document.getElementById("done");
  const [done, total] = [Number(place.dataset.done), Number(place.dataset.total)];
  return (now) => {
    const count = Math.min(total, done - Number(before) + Number(now));
    place.textContent = `${count} of ${total} done`;
    document.querySelector(".bar progress").value = count;
    return count === total;
  };
}

export async function ask(url, body) {
  const sent = { headers: { "content-type": "application/json" }, cache: "no-store" };
  if (body) Object.assign(sent, { method: "POST", body: JSON.stringify(body) });
  if (body && sent.body.length < 60000) sent.keepalive = true; // browsers allow no more
  try {
    const answer = await fetch(url, sent);
    const status = answer.status;
    return { status, data: await (status === 403 ? {} : answer.json()) };
  } catch {
    return { status: 0, data: {} }; // also an answer cut off in its middle: nobody knows its end
  }
}

function stored() {
  const found = [];
  try {
    for (const key of Object.keys(localStorage)) {
      if (key.startsWith(PREFIX)) found.push([key, JSON.parse(localStorage.getItem(key))]);
    }
  } catch {
    return found; // storage is closed: changes then live in this page only
  }
  return found.sort((one, other) => one[1].at - other[1].at);
}

function put(key, value) {
  try {
    if (value) localStorage.setItem(key, JSON.stringify(value));
    else localStorage.removeItem(key);
  } catch {
    return;
  }
}

export function say(words, kind = "") {
  const place = document.getElementById("saved");
  if (!place) return;
  place.textContent = words;
  place.dataset.kind = kind;
}

/** A line over the page; an empty one takes away what this kind has said, and nothing else. */
function notice(words, kind, href, linked) {
  const place = document.getElementById("notice");
  if (!words && place.dataset.kind !== kind) return;
  place.dataset.kind = kind;
  place.replaceChildren(words);
  if (href) {
    const link = document.createElement("a");
    Object.assign(link, { href, textContent: linked });
    place.append(" ", link);
  }
  place.hidden = !words;
}

let fading;

/** A line that goes away by itself. */
export function hint(words) {
  clearTimeout(fading);
  notice(words, "hint");
  fading = setTimeout(() => notice("", "hint"), 6000);
}

const CLOSED = "The review was started again. Open the new address that the terminal shows: what is "
  + "not saved yet is kept in this browser and is sent then.";
const AWAY = "Could not save. It is kept in this browser; trying again.";

export class Saver {
  constructor({ id, url, revision, onConflict, onSaved }) {
    Object.assign(this, { id, url, onConflict, onSaved });
    Object.assign(this, { base: revision, key: PREFIX + id + "/" + WINDOW });
    Object.assign(this, { dirty: false, busy: false, held: false, tries: 0 });
    Object.assign(this, { unsure: [], waiting: [], left: [] });
  }

  /** Take over what an earlier page could not save; gives the label to show, or null. What is
   *  younger than `age` ms may still be on its way from a page that is alive. */
  adopt(age = 0) {
    const before = Date.now() - age;
    this.left = stored().filter(([, entry]) => entry.id === this.id && entry.at <= before);
    return this.#next();
  }

  #next() {
    const [first] = this.left.splice(0, 1);
    if (!first) return null;
    const [key, entry] = first;
    const { base, label, sent, unsure } = entry;
    Object.assign(this, { base, label, dirty: true });
    this.unsure = [...unsure, ...(sent ? [sent] : [])];
    this.keep();
    put(key, null);
    return label;
  }

  change(label) {
    Object.assign(this, { label, dirty: true });
    this.keep();
    this.pump();
  }

  keep() {
    const { id, url, base, label, sent, unsure } = this;
    put(this.key, { id, url, base, label, sent, unsure, at: Date.now() });
  }

  async pump() {
    if (this.busy || this.held || !this.dirty) return;
    clearTimeout(this.timer);
    this.busy = true;
    const label = (this.sent = this.label);
    this.keep();
    say("Saving");
    const body = { base_revision: this.base, reviewer: about.reviewer, label };
    const { status, data } = await ask(this.url, body);
    this.busy = false;
    if (status === 200) this.#saved(label, data.revision);
    else if (status === 409) this.#refused(data.newer, label);
    else this.#failed(status, data, label);
  }

  #saved(label, revision) {
    Object.assign(this, { base: revision, sent: null, unsure: [], tries: 0 });
    notice("", "saver");
    if (this.label !== label) return this.pump();
    this.clean();
  }

  clean() {
    Object.assign(this, { dirty: false, held: false, sent: null, unsure: [] });
    put(this.key, null);
    say("Saved", "good");
    const rest = this.#next();
    if (rest) return this.onSaved?.(rest), this.pump();
    this.onSaved?.(null);
    for (const done of this.waiting.splice(0)) done();
  }

  #refused(newer, label) {
    const ours = newer && [...this.unsure, label].some((sent) => alike(newer, sent));
    if (!newer || ours) {
      this.base = newer ? newer.revision : 0;
      if (ours && alike(newer, this.label)) return this.clean();
      return this.pump();
    }
    this.held = true;
    say("Not saved: another window was first", "bad");
    this.onConflict(newer);
  }

  #failed(status, data, label) {
    this.unsure = [...this.unsure.slice(-20), label];
    this.keep();
    const known = status >= 400 && status !== 403 && status !== 503;
    say(known ? "Not saved" : "Not saved yet", "bad");
    notice(status === 403 ? CLOSED : known ? `${data.error || status}` : AWAY, "saver");
    const pause = known ? 10000 : Math.min(8000, 500 * 2 ** this.tries++);
    this.timer = setTimeout(() => this.pump(), pause);
  }

  /** After a conflict: go on from what the other window saved. */
  settle(revision, mine) {
    Object.assign(this, { base: revision, held: false });
    if (mine) this.pump();
    else this.clean();
  }

  /** Resolves as soon as everything is on the server's disk. */
  flush() {
    if (!this.dirty) return Promise.resolve();
    this.pump();
    return new Promise((done) => this.waiting.push(done));
  }
}

/** Send what other pages left behind; a conflict is left for its own page. */
export async function sendLeft(own) {
  let sent = 0;
  for (const [key, entry] of stored()) {
    if (entry.id === own || key.endsWith("/" + WINDOW)) continue;
    const body = { base_revision: entry.base, reviewer: about.reviewer, label: entry.label };
    let { status, data } = await ask(entry.url, body);
    const tried = [...entry.unsure, ...(entry.sent ? [entry.sent] : [])];
    if (status === 409 && (!data.newer || tried.some((each) => alike(data.newer, each)))) {
      body.base_revision = data.newer?.revision ?? 0;
      ({ status, data } = await ask(entry.url, body));
    }
    if (status === 200) {
      put(key, null);
      sent += 1;
    } else if (status === 409) {
      const page = entry.url.replace("/api/labels/", "/t/").replace("/api/", "/");
      notice("Another window saved something else first:", "left", page, `compare ${entry.id}`);
    }
  }
  if (sent) say(sent === 1 ? "1 kept change was sent" : `${sent} kept changes were sent`, "good");
  return sent;
}

/** Follow links only when everything is saved. */
export function guardLinks(flush) {
  document.addEventListener("click", async (event) => {
    const link = event.target.closest?.("a[href^='/']");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    await flush();
    location.href = link.href;
  });
}

const NAMES = { verdict: "the whole", notes: "notes", rubric_misses: "the rubric misses" };

function flat(label) {
  const { criteria = {}, fine = {}, verdict, notes, rubric_misses, choice } = label;
  const rows = { verdict, ...criteria, notes, rubric_misses, choice };
  for (const [key, why] of Object.entries(fine)) rows[`fine, ${key}`] = why;
  return rows;
}

/** Show both states where they differ; `decide(true)` keeps this window's. */
export function compare(newer, mine, decide) {
  const dialog = document.getElementById("conflict");
  const [theirs, ours] = [flat(newer), flat(mine)];
  const keys = [...new Set([...Object.keys(theirs), ...Object.keys(ours)])];
  const rows = keys.filter((key) => (theirs[key] || "") !== (ours[key] || "")).map((key) => {
    const row = document.createElement("tr");
    for (const [tag, text] of [["th", NAMES[key] || key], ["td", theirs[key]], ["td", ours[key]]]) {
      const cell = document.createElement(tag);
      cell.textContent = text || "-";
      row.append(cell);
    }
    return row;
  });
  document.getElementById("conflict-rows").replaceChildren(...rows);
  const end = (keep) => {
    dialog.onkeydown = null;
    delete dialog.dataset.ready;
    dialog.close();
    decide(keep);
  };
  document.getElementById("take-theirs").onclick = () => end(false);
  document.getElementById("keep-mine").onclick = () => end(true);
  dialog.onkeydown = (event) => {
    if (!dialog.dataset.ready) event.preventDefault(); // that key was meant for a criterion
    else if (event.key === "t" || event.key === "k") end(event.key === "k");
  };
  setTimeout(() => (dialog.dataset.ready = "1"), 600);
  dialog.oncancel = (event) => event.preventDefault(); // it has to be decided
  if (!dialog.open) dialog.showModal();
}
