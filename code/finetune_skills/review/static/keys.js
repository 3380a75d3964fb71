// Single keys for everything. One table per page gives both the keys and what `?` shows.

const SIGNS = { " ": "Space", ArrowRight: "\u2192", ArrowLeft: "\u2190", ArrowDown: "\u2193", ArrowUp: "\u2191" };
const SWITCH = "review-keys-off";

function letter(event) {
  const other = event.key.length === 1 && event.key.charCodeAt(0) > 126;
  if (!other || !/^Key[A-Z]$/.test(event.code)) return event.key;
  return event.shiftKey ? event.code.slice(3) : event.code.slice(3).toLowerCase(); // other alphabets
}

function off() {
  try {
    return localStorage.getItem(SWITCH) === "1";
  } catch {
    return false;
  }
}

export function typing(target) {
  return target.matches?.("input:not([type=checkbox]), textarea, select");
}

/** rows: [key or keys, words, action]. An action that returns false leaves the key to the browser. */
export function keys(rows, leave) {
  const table = new Map();
  for (const [names, , action] of rows) for (const name of names) table.set(name, action);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    if (typing(event.target)) {
      if (event.key === "Escape") leave?.(event.target);
      return;
    }
    const name = letter(event);
    if (name === "?") return void (event.preventDefault(), help());
    const action = table.get(name);
    if (!action || (off() && name.length === 1 && name !== " ")) return;
    if (action(event) !== false) event.preventDefault();
  });
  fill(rows);
}

function fill(rows) {
  const list = document.getElementById("help-keys");
  for (const [names, words] of [...rows, [["?"], "this list"]]) {
    const [key, said] = [document.createElement("dt"), document.createElement("dd")];
    for (const name of names) {
      const cap = document.createElement("kbd");
      cap.textContent = SIGNS[name] || name;
      key.append(cap, " ");
    }
    said.textContent = words;
    list.append(key, said);
  }
  const box = document.getElementById("single-keys");
  box.checked = !off();
  box.onchange = () => localStorage.setItem(SWITCH, box.checked ? "0" : "1");
  document.getElementById("help-button").onclick = help;
}

export function help() {
  const dialog = document.getElementById("help");
  dialog.showModal();
  dialog.onkeydown = (event) => event.key === "?" && dialog.close();
}

/** The parts of a page that a narrow screen shows one at a time. */
export function tabs(show) {
  const all = [...document.querySelectorAll("#tabs [role=tab]")];
  const choose = (name) => {
    document.body.dataset.tab = name;
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab.dataset.show === name));
    }
  };
  for (const [n, tab] of all.entries()) {
    tab.onclick = () => (choose(tab.dataset.show), show?.(tab.dataset.show));
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) all[(n + step + all.length) % all.length].focus();
    };
  }
  choose(all[0].dataset.show);
  return choose;
}
