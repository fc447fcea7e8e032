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
