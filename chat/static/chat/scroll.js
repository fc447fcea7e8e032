// Keeps the newest words in view while the reader is at the end, and offers the way back there once they scrolled up.
// Whatever makes the conversation grow need not call it: a change of its height is enough.

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const [box, end, latest] = [part("scroll"), part("end"), part("latest")];
let follows = true;
let last = 0; // where the reader was

// The messages have a scroll of their own, unless the window is so low that the page scrolls as a whole.
const isOwn = () => getComputedStyle(box).overflowY !== "visible";
const scroller = () => (isOwn() ? box : document.scrollingElement);

// An empty chat is read from its top.
const isEmpty = () => !box.querySelector(".turn, .refused:not([hidden])");

// How far below the visible part the conversation ends.
function gap() {
  return end.getBoundingClientRect().bottom - (isOwn() ? box.getBoundingClientRect().bottom : innerHeight);
}

export function goToEnd() {
  follows = true;
  keepUp();
}

function keepUp() {
  if (follows && !isEmpty() && gap() > 0) {
    scroller().scrollBy({ top: gap(), behavior: "instant" });
    // Here and not with its event: a reader who goes up before that event would seem to have gone down.
    last = scroller().scrollTop;
  }
  offer();
}

// Words may have come since a scroll of our own, so that being away from the end is no sign of the reader's wish:
// going up is. A smooth scroll goes up by a pixel first, and must not be taken back there. Only a conversation that got
// shorter takes the reader up and leaves them at its end. Where nothing moved, it is the event of a scroll of our own:
// it may come between a reader's key and what that scrolls, and tells nothing.
function look() {
  const { scrollTop: top } = scroller();
  const away = gap();
  if (top < last) follows = away < 1;
  else if (top > last && away < 24) follows = true;
  last = top;
  offer();
}

function offer() {
  latest.hidden = follows || isEmpty() || gap() < 24;
}

// A reader's key or wheel comes before the scroll that it makes. Words that came between the two would take the reader
// back to the end, and the scroll would be lost.
function goUp({ target }) {
  const isHere = isOwn() ? box.contains(target) : !target.closest?.("input, textarea, select");
  if (isHere && scroller().scrollTop > 0) follows = false;
}

const UP = ["PageUp", "ArrowUp", "Home"];
addEventListener("keydown", (event) => UP.includes(event.key) && goUp(event), { capture: true });
addEventListener("wheel", (event) => event.deltaY < 0 && goUp(event), { capture: true, passive: true });
// An event of the box does not bubble, but it is caught on its way down.
addEventListener("scroll", look, { capture: true, passive: true });
latest.addEventListener("click", () => {
  box.focus({ preventScroll: true }); // the button goes away, and the focus must not go with it
  goToEnd();
});

box.toggleAttribute("data-scripted", true); // until here the style alone has shown the end
goToEnd();
const watch = new ResizeObserver(keepUp);
watch.observe(part("turns"));
if (part("refusal")) watch.observe(part("refusal"));
watch.observe(box);
