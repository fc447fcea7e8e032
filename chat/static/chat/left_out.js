// What of the conversation did not go along with the last question, and the offer to summarize it.

import { sentence } from "./turns.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);

export function showLeftOut(number, conversation) {
  part("left-out").hidden = !number;
  part("left-out-words").textContent = number ? sentence(number === 1 ? "left_out.1" : "left_out", number) : "";
  part("summarize").action = `/c/${conversation}/summary/`;
}
