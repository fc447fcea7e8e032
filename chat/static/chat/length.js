// How long a message may be. The server's own refusal has a program's words, and the text stood in the conversation first.

const TIMES = 2; // so much longer, a text can be put into the box and shortened there

// As the server counts them: 😀 is one.
const count = (text) => [...text].length;

// How many characters the message has, where those are too many, else 0.
export function excess({ value, dataset }) {
  const length = value.length > dataset.most ? count(value) : 0;
  return length > dataset.most ? length : 0;
}

// A box with a megabyte of a log in it is more than Chromium can bear: for half a minute it looks for the direction of
// each line (dir="auto"), and selecting them all takes more than a minute where any <details> of the page is closed. So
// what is far too long is not put in, and stays where it was copied from.
export function keepOut(box, tell) {
  box.addEventListener("beforeinput", (event) => {
    const added = event.data ?? event.dataTransfer?.getData("text/plain") ?? "";
    const replaced = box.selectionEnd - box.selectionStart;
    if (added.length <= 1 || box.value.length - replaced + added.length <= TIMES * box.dataset.most) return;
    event.preventDefault();
    tell(count(added));
  });
}
