// The buttons under a message. What they ask for streams into the page; without this script the same forms post.

// `act` is called with the kind ("again" or "continue") and the message's number.
export function listen(turns, act) {
  turns.addEventListener("submit", (event) => {
    const { act: kind } = event.target.dataset;
    if (!kind) return;
    event.preventDefault();
    act(kind, Number(event.target.elements.message_id.value));
  });
}

// A turn that streamed gets its numbers: from now on its buttons name it.
export function number(turn, conversation, message, { cut = false } = {}) {
  const acts = turn.querySelector(".turn__acts");
  if (!acts) return;
  acts.hidden = !message;
  if (!message) return;
  turn.id = `m${message}`;
  for (const form of acts.querySelectorAll("form")) {
    form.action = `/c/${conversation}/${form.dataset.act ?? "delete-turn"}/`;
    form.elements.message_id.value = message;
  }
  const edit = acts.querySelector("[data-edit]");
  if (edit) edit.href = `/c/${conversation}/?edit=${message}`;
  acts.querySelector("[data-act=continue]")?.toggleAttribute("hidden", !cut);
}
