// An answer's words as the HTML that the server makes of them: block by block while they come, and whole at the end.

import { words } from "./turns.js";

// It takes the place of the `length` characters that are plain until now.
export function showBlock(turn, { html, length }) {
  const text = words(turn);
  const box = text.querySelector(".words") ?? document.createElement("div");
  box.className = "words";
  box.remove();
  const rest = [...text.textContent].slice(length).join(""); // a letter may be two of the script's characters
  put(box, elements(html));
  text.replaceChildren(box, rest);
}

// What stands there already, stays: somebody may have selected it, or be at one of its buttons.
export function showWhole(turn, html) {
  if (html == null) return;
  const [text, whole] = [words(turn), elements(html)];
  const box = text.querySelector(".words") ?? document.createElement("div");
  box.className = "words";
  const same = [...box.children].findIndex((element, place) => !whole[place]?.isEqualNode(element));
  const kept = same < 0 ? box.children.length : same;
  while (box.children.length > kept) box.lastChild.remove();
  put(box, whole.slice(kept));
  if (!box.isConnected) text.append(box);
  for (const node of [...text.childNodes]) if (node !== box) node.remove();
}

// A turn as it is read aloud: without what can be done with it.
export function spoken(turn) {
  const body = turn.querySelector(".turn__body").cloneNode(true);
  for (const control of body.querySelectorAll(".turn__acts, button")) control.remove();
  return body.textContent;
}

function put(box, made) {
  for (const element of made) box.append(element, "\n");
}

function elements(html) {
  return [...new DOMParser().parseFromString(html, "text/html").body.children];
}
