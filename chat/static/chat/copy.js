// The buttons that copy a block of code, or a whole message. Without script there are none.

import { announce, sentence, words } from "./turns.js";

const SECONDS = 2;

document.documentElement.toggleAttribute("data-copies", true);
document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("[data-copy]");
  if (button) copy(button);
});

async function copy(button) {
  const code = button.closest("figure")?.querySelector("code");
  const turn = button.closest(".turn");
  try {
    await navigator.clipboard.writeText(code ? code.textContent : plain(words(turn))); // there is none without https
  } catch {
    getSelection().selectAllChildren(code ?? words(turn));
    announce(sentence("not_copied"));
    return;
  }
  announce(sentence("copied"));
  button.toggleAttribute("data-copied", true);
  setTimeout(() => button.toggleAttribute("data-copied", false), SECONDS * 1000);
}

// As it is seen, without the words on the buttons inside.
function plain(text) {
  const buttons = [...text.querySelectorAll("button")];
  for (const button of buttons) button.hidden = true;
  const seen = text.innerText;
  for (const button of buttons) button.hidden = false;
  return seen;
}
