// The conversation on the page: its turns, and the sentences that the server has written down for them.

import { goToEnd } from "./scroll.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const sentences = new Map([...part("words").content.children].map((item) => [item.dataset.word, item.textContent]));

// A sentence of the server's, by its name; `number` takes the place of its #.
export function sentence(name, number) {
  return (sentences.get(name) ?? "").replace("#", number?.toLocaleString("en-US"));
}

export function words(turn) {
  return turn.querySelector(".turn__text");
}

export function addTurn(role, text) {
  const turn = part(`${role}-turn`).content.firstElementChild.cloneNode(true);
  words(turn).textContent = text;
  part("turns").append(turn);
  goToEnd();
  return turn;
}

export function append(turn, text) {
  words(turn).append(text);
}

// What stands under an answer: what ended it early, and the facts.
export function say(turn, ending, facts) {
  turn.querySelector(".turn__end").textContent = ending;
  turn.querySelector(".turn__facts").textContent = facts;
}

// A sentence of ours in the place of an answer without words does not look like the model's. Whether it is one.
export function markWordless(turn) {
  const ours = [...sentences].some(([name, text]) => name.startsWith("wordless.") && text === words(turn).textContent.trim());
  return words(turn).classList.toggle("turn__text--none", ours);
}

export function ending(turn) {
  return turn.querySelector(".turn__end").textContent;
}

// A screen reader hears it; the page looks as before.
export function announce(text) {
  part("announce").textContent = text.replace(/\s+/g, " ").trim();
}
