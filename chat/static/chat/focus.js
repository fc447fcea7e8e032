// Where the reader is, while parts of the page are put in anew.

// Whoever is at a control of what `put` replaces stays at its like: the next key is meant for it. `boxes` are the parts.
export function stayingIn(boxes, put) {
  const at = document.activeElement;
  const name = (control) => control.getAttribute("href") ?? control.textContent;
  const alike = (place) => {
    const controls = document.querySelectorAll(boxes)[place]?.querySelectorAll(at.localName) ?? [];
    return [...controls].filter((control) => name(control) === name(at));
  };
  const place = [...document.querySelectorAll(boxes)].findIndex((box) => box.contains(at));
  const among = alike(place).indexOf(at);
  put();
  if (!at.isConnected) alike(place)[among]?.focus({ preventScroll: true });
}

// Whoever came by keyboard to a button that `change` takes away, such as Send, goes on at `next`, and not at the top of
// the page. A finger is left alone: where one types, a phone opens its keyboard over what was asked for.
export function goingOnAt(next, change) {
  const at = document.activeElement;
  const isByKeyboard = at.matches(":focus-visible");
  change();
  if (isByKeyboard && !at.checkVisibility()) next.focus({ preventScroll: true });
}

// What opens over the page closes by Escape, by a click beside it, and when the focus goes on to what it covers. What
// stands in a row with the rest stays: closed by a press below it, it would take that away from under the finger.
export function closing(details) {
  const isOver = () => getComputedStyle(details.lastElementChild).position === "absolute";
  const leave = (next) => {
    if (isOver() && !details.contains(next)) details.open = false;
  };
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    event.preventDefault(); // what it stands in, such as the sheet of options, stays
    details.open = false;
    details.querySelector("summary").focus();
  });
  details.addEventListener("focusout", ({ relatedTarget: next }) => next && leave(next));
  document.addEventListener("click", ({ target }) => leave(target));
}
