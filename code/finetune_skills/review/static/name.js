import { ask } from "./save.js";

const form = document.getElementById("name-form");
document.getElementById("name").select();
form.onsubmit = async (event) => {
  event.preventDefault();
  const { status, data } = await ask("/api/reviewer", { name: form.elements.name.value });
  if (status === 200) location.href = "/";
  else document.getElementById("name-error").textContent = data.error || "The server does not answer.";
};
