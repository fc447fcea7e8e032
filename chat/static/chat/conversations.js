// The list of conversations and the menu of the one that is open, while its page stays: an answer moves it up, a new one
// gets into the list, and a change does not leave an answer that is under way.

import { closing } from "./focus.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const rail = document.getElementById("rail");
const menu = part("menu");
const group = (key) => rail.querySelector(`[data-group="${key}"]`);
const MOST_LETTERS = 60; // of a title by the first words, as the server has it

// What was asked in it last stands first, but for pinned ones. Without the list, on a page of a search, nothing moves.
export function showConversation(id, words) {
  const known = rail.querySelector(`[data-conversation="${id}"]`);
  if (menu.hidden && words) name(id, titleOf(words));
  if (known?.closest('[data-group="pinned"]') || !group("today")) return;
  put(known ?? entry(id, words));
}

// The title that the server has for it now, here and in the list.
export function showTitle(id, title) {
  for (const link of rail.querySelectorAll(`[data-conversation="${id}"] a`)) link.textContent = title;
  if (part("form")?.elements.conversation_id.value === String(id)) head(title);
}

// The same of the page's own: its heading, what the browser calls it, and the field that changes it.
function head(title) {
  const heading = document.getElementById("talk");
  document.title = document.title.replace(heading.textContent, () => title);
  heading.textContent = title;
  const field = menu.querySelector("[name=title]");
  if (field) field.defaultValue = title; // shown unless somebody is at changing it
}

function titleOf(words) {
  const line = words.trim().replace(/\s+/g, " ");
  const letters = [...line]; // one may be two of the script's characters
  return letters.length > MOST_LETTERS ? `${letters.slice(0, MOST_LETTERS - 1).join("")}…` : line;
}

function entry(id, words) {
  const item = document.createElement("li");
  item.dataset.conversation = id;
  const link = { href: `/c/${id}/`, textContent: titleOf(words ?? "Untitled"), dir: "auto", ariaCurrent: "page" };
  item.append(Object.assign(document.createElement("a"), link));
  return item;
}

function put(item) {
  const before = item.closest("[data-group]");
  group("today").querySelector("ul").prepend(item);
  group("today").hidden = false;
  if (before && !before.querySelector("li")) before.hidden = true;
  part("no-conversations")?.remove();
}

// The conversation that has just begun: its name, and a menu that names it.
function name(id, title) {
  head(title);
  for (const [elements, address] of [["form", "action"], ["a", "href"]]) {
    for (const one of menu.querySelectorAll(elements)) {
      one.setAttribute(address, one.getAttribute(address).replace("/c/0/", `/c/${id}/`));
    }
  }
  menu.hidden = false;
}

// --- the menu ---

menu.addEventListener("submit", (event) => {
  if (!part("form")?.hasAttribute("data-running")) return; // a new page is as good
  event.preventDefault();
  change(event.target);
});

// The page that the server would lead to has all that has changed; of this one only that is put in.
async function change(form) {
  const response = await fetch(form.action, { method: "POST", body: new FormData(form) }).catch(() => null);
  const html = await response?.text().catch(() => null); // the line may be lost in the middle of the page
  const page = html && new DOMParser().parseFromString(html, "text/html");
  const changed = page?.querySelector('[data-chat="menu"]');
  if (!changed) return location.assign(response?.url ?? location.href);
  menu.replaceChildren(...changed.childNodes);
  menu.open = changed.open;
  if (response.ok) document.title = page.title;
  for (const same of ["#talk", '[data-chat="rail-scroll"]']) {
    document.querySelector(same).replaceChildren(...page.querySelector(same).childNodes);
  }
  const refusal = page.querySelector('[data-chat="refusal"]:not([hidden]) [data-chat="refusal-words"]');
  if (refusal) part("refusal-words").textContent = refusal.textContent;
  if (refusal) part("refusal").hidden = false;
  part("announce").textContent = (refusal ?? page.querySelector(".messages"))?.textContent.trim() ?? "";
  menu.querySelector(menu.open ? "[aria-invalid]" : "summary")?.focus();
}

closing(menu);

// --- the drawer ---

// Whoever turned its page or searched in it looks at it still.
const isDrawer = !matchMedia("(min-width: 60rem) and (min-height: 28rem)").matches;
const asked = new URLSearchParams(location.search);
if (isDrawer && !asked.has("at") && (asked.has("before") || asked.has("q"))) rail.showPopover();
