// The composer's options: which model is asked, and a kept prompt that is put into the box. Without this script the
// form posts the model, and a prompt is a link that opens the page with it.

import { closing } from "./focus.js";

// Undefined where there is nothing to choose.
export const chosenModel = (form) => form.elements.model?.value || undefined;

const picker = document.querySelector("[data-prompts]");
if (picker) closing(picker);
picker?.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-text]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const answer = await fetch(link.dataset.text).catch(() => null);
  const text = answer?.ok && !answer.redirected ? await answer.text().catch(() => null) : null;
  // Whatever is wrong, the page that the link leads to says it.
  if (text === null) return location.assign(link.href);
  fill(text);
  link.closest("details").open = false;
  document.getElementById("options").hidePopover?.();
});

// Before what was typed, which is not lost.
function fill(text) {
  const { prompt } = document.getElementById("composer").elements;
  prompt.value = [text, prompt.value].filter(Boolean).join("\n\n");
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
  prompt.focus();
}
