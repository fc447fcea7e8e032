// What is typed and not sent yet: kept in this tab for each conversation while it is typed, and put back for the same
// member after a reload, a return or a log-in. For anybody else it is forgotten.

// An earlier message that is being changed is no draft of a new one.
const edited = new URLSearchParams(location.search).get("edit");
const isEditing = () => edited !== null && location.search !== "";
const place = () => `draft:${location.pathname}${isEditing() ? `?edit=${edited}` : ""}`;
let kept = null; // where the last one was put: the page of a new conversation gets another address

export function keepDraft(form) {
  if (kept && kept !== place()) sessionStorage.removeItem(kept);
  kept = place();
  put(form, kept);
}

function put(form, place) {
  const { prompt, max_tokens: cap, model } = form.elements;
  const draft = { member: form.dataset.member, prompt: prompt.value, cap: cap?.value, model: model?.value };
  if (prompt.value.trim()) keep(place, draft);
  else sessionStorage.removeItem(place);
}

// In this tab, if there is room: a few megabytes are all that a browser gives. What cannot be kept can still be sent.
export function keep(name, facts) {
  try {
    sessionStorage.setItem(name, JSON.stringify(facts));
  } catch {
    sessionStorage.removeItem(name);
  }
}

export function forgetDraft() {
  if (kept) sessionStorage.removeItem(kept);
  sessionStorage.removeItem(place());
}

// Whether there was one. What the server put into the box, such as the text of a link, goes before it; what somebody has
// made of a message that is being changed goes before the message.
export function takeDraft(form) {
  const draft = JSON.parse(sessionStorage.getItem(place()) ?? "null");
  const { prompt, max_tokens: cap, model } = form.elements;
  form.addEventListener("input", () => keepDraft(form));
  document.addEventListener("click", ({ target }) => target.closest?.("[data-takes-draft]") && carry(form));
  forgetOthers(form.dataset.member);
  if (draft?.member !== form.dataset.member || (prompt.value && !isEditing())) return false;
  prompt.value = draft.prompt;
  if (cap) cap.value = draft.cap;
  if (model && draft.model) model.value = draft.model;
  return true;
}

// To a new conversation, by a link that offers one for what is in the box.
function carry(form) {
  if (!form.elements.prompt.value.trim()) return; // what is kept there already stays
  forgetDraft();
  put(form, "draft:/");
}

// Whoever was logged in at this tab before has left nothing for the next one to read.
function forgetOthers(member) {
  for (const key of Object.keys(sessionStorage)) {
    if (key.startsWith("draft:") && JSON.parse(sessionStorage.getItem(key)).member !== member) {
      sessionStorage.removeItem(key);
    }
  }
}
