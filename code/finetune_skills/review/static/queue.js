import { keys } from "./keys.js";
import { sendLeft } from "./save.js";

const lines = [...document.querySelectorAll(".line")];
const open = (id) => document.getElementById(id)?.click();

function step(by) {
  const at = lines.indexOf(document.activeElement);
  lines[Math.min(Math.max(at + by, 0), lines.length - 1)]?.focus();
}

keys([
  [["c"], "go on with the first that is not done", () => open("go-on")],
  [["j", "ArrowDown"], "next line", () => step(1)],
  [["k", "ArrowUp"], "line before", () => step(-1)],
  [["Enter"], "open the line", () => false],
  [["["], "page before", () => open("previous")],
  [["]"], "next page", () => open("next")],
  [["/"], "search", () => document.querySelector("input[type=search]").focus()],
], (field) => field.blur());

sendLeft().then((sent) => sent && setTimeout(() => location.reload(), 1200));
