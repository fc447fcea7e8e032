// What is typed and not sent yet: kept in this tab for each conversation while it is typed, and put back for the same
// member after a reload, a return or a log-in. For anybody else it is forgotten.

const place = () => `draft:${location.pathname}`;
let kept = null; // where the last one was put: the page of a new conversation gets another address

export function keepDraft(form) {
  const { prompt, max_tokens: cap, model } = form.elements;
  const draft = { member: form.dataset.member, prompt: prompt.value, cap: cap?.value, model: model?.value };
  if (kept && kept !== place()) sessionStorage.removeItem(kept);
  kept = place();
  if (prompt.value.trim()) sessionStorage.setItem(kept, JSON.stringify(draft));
  else sessionStorage.removeItem(kept);
}

export function forgetDraft() {
  if (kept) sessionStorage.removeItem(kept);
  sessionStorage.removeItem(place());
}

// Whether there was one. What the server put into the box, such as a message that is edited, goes before it.
export function takeDraft(form) {
  const draft = JSON.parse(sessionStorage.getItem(place()) ?? "null");
  const { prompt, max_tokens: cap, model } = form.elements;
  form.addEventListener("input", () => keepDraft(form));
  forgetOthers(form.dataset.member);
  if (draft?.member !== form.dataset.member || prompt.value) return false;
  prompt.value = draft.prompt;
  if (cap) cap.value = draft.cap;
  if (model && draft.model) model.value = draft.model;
  return true;
}

// Whoever was logged in at this tab before has left nothing for the next one to read.
function forgetOthers(member) {
  for (const key of Object.keys(sessionStorage)) {
    if (key.startsWith("draft:") && JSON.parse(sessionStorage.getItem(key)).member !== member) {
      sessionStorage.removeItem(key);
    }
  }
}
