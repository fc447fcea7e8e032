// What the message in the box would cost, with its files: asked of the server once typing has stopped. Above an empty
// box stands what the chosen model costs.

import { about, short } from "./budget.js";
import { sentence } from "./turns.js";

const STOPPED = 350; // milliseconds
const part = (name) => document.querySelector(`[data-chat="${name}"]`);
let asking = new AbortController();
let timer = 0;

// `body` gives what would be sent now, or null for nothing.
export function watch(form, body) {
  const ask = () => {
    clearTimeout(timer);
    asking.abort();
    timer = setTimeout(() => show(form, body()), STOPPED);
    showModel(form);
  };
  form.addEventListener("input", ask);
  form.addEventListener("change", ask);
  ask();
}

// At once, and each file's part of it.
function showModel(form) {
  const model = form.elements.model?.selectedOptions?.[0];
  const { price, input, image } = model?.dataset ?? {};
  if (!price) return;
  if (part("price-model").dataset.of !== price) part("price-model").textContent = part("price-model").dataset.of = price;
  for (const file of form.querySelectorAll("[data-file]")) {
    const of = (name) => file.querySelector(`[data-file-${name}]`);
    const isImage = "image" in file.dataset;
    const tokens = Number(file.dataset.tokens) + (isImage ? Number(image ?? 0) : 0);
    of("tokens").textContent = tokens.toLocaleString("en-US");
    of("price").textContent = short(Math.ceil((tokens * input) / 1e6), { atMost: true });
    if (!isImage) continue;
    of("taken").hidden = !image;
    of("not-taken").hidden = Boolean(image);
    of("model").textContent = model.value;
  }
}

// The price of what has been sent is no longer the price of the box.
export function forget() {
  clearTimeout(timer);
  asking.abort();
  say(null);
}

async function show(form, body) {
  asking = new AbortController();
  say(body ? await priced(form, body) : null);
}

async function priced(form, body) {
  const headers = { "Content-Type": "application/json", "X-CSRFToken": form.elements.csrfmiddlewaretoken.value };
  const given = { method: "POST", headers, body: JSON.stringify(body), signal: asking.signal };
  try {
    const response = await fetch("/api/chat/price/", given);
    return response.ok ? await response.json() : null; // what refuses the message says so when it is sent
  } catch {
    return null; // the line is lost, or somebody has typed on, also in the middle of the answer
  }
}

function say(price) {
  part("price-model").hidden = Boolean(price);
  part("price-message").hidden = !price;
  part("price-more").hidden = !(price && price.most > left());
  part("price-history").hidden = !(price && price.history_tokens * 2 > price.input_tokens);
  part("price").toggleAttribute("data-more", !part("price-more").hidden);
  if (!price) return;
  const [likely, most] = [about(price.likely), short(price.most, { atMost: true })];
  part("price-message").textContent = sentence("price").replace("{likely}", likely).replace("{most}", most);
}

// In the whole workspace, by the strip; where that is not known, nothing is too dear.
function left() {
  const { allocated, spent } = part("budget").dataset;
  return allocated ? allocated - spent : Infinity;
}
