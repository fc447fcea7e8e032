// What the tabs of this browser tell each other: that one asks in a conversation, that its answer has ended, and which
// title it has got.

import { showTitle } from "./conversations.js";

const EVERY = 4000;
const LOST = 3 * EVERY;
const note = document.querySelector('[data-chat="elsewhere"]');
const form = document.querySelector('[data-chat="form"]');
const channel = new BroadcastChannel("chat");
const here = () => form.elements.conversation_id.value;
let telling = null;
let lost = null;
let load = null;

// From the first event of an answer until `settled`.
export function answering(id) {
  clearInterval(telling);
  const tell = () => channel.postMessage({ member: form.dataset.member, id: String(id), state: "answering" });
  telling = setInterval(tell, EVERY);
  tell();
}

export function settled(id, call) {
  if (telling === null) return;
  clearInterval(telling);
  telling = null;
  channel.postMessage({ member: form.dataset.member, id: String(id), call, state: "settled" });
}

export function titled(id, title) {
  showTitle(id, title);
  channel.postMessage({ member: form.dataset.member, id: String(id), title, state: "titled" });
}

// `then` loads the turn that another tab has asked for, once the conversation has it.
export function watch(then) {
  load = then;
}

channel.addEventListener("message", ({ data }) => {
  if (data.member !== form.dataset.member) return;
  if (data.state === "titled") return showTitle(data.id, data.title);
  if (data.id !== here()) return;
  clearTimeout(lost);
  note.hidden = data.state !== "answering";
  if (data.state === "answering") lost = setTimeout(() => over(null), LOST); // that tab is gone
  else over(data.call);
});

function over(call) {
  note.hidden = true;
  load?.(call);
}
