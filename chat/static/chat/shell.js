// The page around the conversation: the drawer, the sheet of options and the examples. The browser opens and closes
// both by itself, also by Escape and by a click beside them; this adds where the focus goes.

import "./scroll.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const rail = document.getElementById("rail");
const options = part("options");
const form = part("form");

function hold(panel, first) {
  panel.addEventListener("toggle", ({ newState }) => newState === "open" && first()?.focus());
  // What has the focus must not lie under the panel.
  panel.addEventListener("focusout", ({ relatedTarget: next }) => {
    if (next && !panel.contains(next) && isOpen(panel)) panel.hidePopover();
  });
}

const isOpen = (panel) => panel.matches(":popover-open");

hold(rail, () => rail.querySelector("[aria-current]") ?? rail.querySelector("a, button"));
if (options) hold(options, () => options.querySelector("input, select"));

// Beside the conversation the list is no drawer, and what is chosen stays in sight.
matchMedia("(min-width: 60rem) and (min-height: 28rem)").addEventListener("change", () => {
  for (const panel of [rail, options]) if (panel && isOpen(panel)) panel.hidePopover();
});
rail.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });

if (form) {
  form.noValidate = false; // without script the server says it: a browser cannot point to a field in a closed sheet
  form.addEventListener("invalid", ({ target }) => open(target), true);
}

function open(field) {
  const isHidden = options.contains(field) && !field.checkVisibility();
  if (isHidden) options.showPopover();
}

const examples = [...document.querySelectorAll("[data-prompt]")];
for (const example of examples) {
  example.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // into a tab of its own
    event.preventDefault();
    fill(form.elements.prompt, example.dataset.prompt);
  });
}

// In the place of another example, and before what somebody has typed.
function fill(prompt, text) {
  const other = examples.map((example) => example.dataset.prompt).find((words) => prompt.value.startsWith(words)) ?? "";
  prompt.value = [text, prompt.value.slice(other.length).trim()].filter(Boolean).join("\n\n");
  prompt.dispatchEvent(new Event("input", { bubbles: true })); // it has a price, and is kept
  prompt.focus();
}
